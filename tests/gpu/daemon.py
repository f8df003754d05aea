#!/usr/bin/env python3
"""daemon.py - the daemon and its worker on a card, with models of real sizes.

    tests/gpu/daemon.py [options] PART...

Parts, each on a daemon of its own; `models` is done for what a part lacks.
  models    made-up models in the folder --work: 60 GB of the full scale
  first     T2V 1.3B bf16 under 48 GiB: loads, videos in every precision, streaming,
            unloads against the driver's own numbers, a killed worker
  small     1.3B under 8 GiB; 14B int8 under 12 GiB, streamed, beside it resident
  switches  every switch between 1.3B, 14B and A14B int8, three ways, under 48 GiB;
            then a hard reset

  --build DIR     of sluiced, sluice and sluice-worker (build-gpu)
  --work DIR      for the models (DIR of the build/work)
  --device D      cuda:0; a size is added by each part.  cpu: the tiny scale only
  --scale S       full, or tiny: small models, to try this script where there is no card
  --runs N        of each switch (1), --jobs all, first (of each pair) or none
  --seconds N     to stop after; what was not done by then is said (540)

One line a check, with the seconds since the start: "ok", "FAIL" or, for what is
only told, neither; last "N passed, N failed".
"""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from datetime import datetime

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MIB, GIB = 1 << 20, 1 << 30
START = time.monotonic()


def read_options():
    p = argparse.ArgumentParser()
    p.add_argument("parts", nargs="+", choices=["models", "first", "small", "switches"])
    p.add_argument("--build", default=os.path.join(ROOT, "build-gpu"))
    p.add_argument("--work")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--scale", choices=["full", "tiny"], default="full")
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("--jobs", choices=["all", "first", "none"], default="first")
    p.add_argument("--seconds", type=float, default=540)
    return p.parse_args()


OPTIONS = read_options()
sys.argv = [sys.argv[0], "--patience=3", OPTIONS.build]  # what the harness looks at
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from harness import SLUICE, Daemon, check_sums, png, wait_for  # noqa: E402 pylint: disable=C0413

FULL = OPTIONS.scale == "full"
ON_CARD = OPTIONS.device.startswith("cuda")
WORK = os.path.abspath(OPTIONS.work or os.path.join(OPTIONS.build, "work"))
MODELS = os.path.join(WORK, f"models-{OPTIONS.scale}")

# name: (architectures of full and tiny, layout of the transformers)
KINDS = {
    "1.3b": ("wan2.1-t2v-1.3b", "tiny-t2v", "turbo"),
    "1.3b-int8": ("wan2.1-t2v-1.3b", "tiny-t2v", "turbo-quant"),
    "14b": ("wan2.1-t2v-14b", "small-t2v", "turbo-quant"),
    "a14b": ("wan2.2-i2v-a14b", "small-i2v", "turbo-quant"),
}
# What a part's device may take; the tiny ones are such that what has to be streamed
# at full size has to be there, too.
SIZES = {"first": ("48GiB", "2GiB"), "1.3b": ("8GiB", "96MiB"), "14b": ("12GiB", "92MiB"),
         "resident": ("48GiB", "1GiB"), "switches": ("48GiB", "330MiB")}
# The three models of `switches` are 57 GB in host memory.
CONFIG = "host_memory: 64GiB\n" if FULL else "threads: 2\nhost_memory: 1GiB\n"
T2V = ["--width", "832", "--height", "480", "--frames", "81"] if FULL else \
    ["--width", "96", "--height", "64", "--frames", "17"]
I2V = ["--width", "1280", "--height", "720", "--frames", "81"] if FULL else \
    ["--width", "64", "--height", "48", "--frames", "9"]


# ---- telling ----

class Out:
    """The outcome: what was checked, and how it went."""
    passed = failed = 0


def tell(word, text):
    print(f"{word:4} {time.monotonic() - START:6.1f} s  {text}", flush=True)


def note(text):
    tell("", text)


def check(good, text):
    if good:
        Out.passed += 1
    else:
        Out.failed += 1
    tell("ok" if good else "FAIL", text)
    return good


def seconds_left():
    return OPTIONS.seconds - (time.monotonic() - START)


def gib(size_bytes):
    return f"{size_bytes / GIB:.2f} GiB"


def mib(size_bytes):
    return f"{size_bytes / MIB:.0f} MiB"


# ---- the card, by the driver ----

def card_used():
    """Bytes of the card that are in use by the driver's count; None: not known."""
    if not ON_CARD:
        return None
    index = OPTIONS.device.split(":")[1]
    try:
        run = subprocess.run(["nvidia-smi", "-i", index, "--query-gpu=memory.used",
                              "--format=csv,noheader,nounits"], capture_output=True, text=True,
                             timeout=20, check=True)
        return int(run.stdout.split()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as e:
        note(f"nvidia-smi does not tell: {e}")
        return None


class CardPeak:
    """Looks at the card every 100 ms: the most that was in use meanwhile."""

    def __enter__(self):
        self.peak = 0
        self.process = None
        if not ON_CARD:
            return self
        index = OPTIONS.device.split(":")[1]
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", "-i", index, "-lms", "100", "--query-gpu=memory.used",
                 "--format=csv,noheader,nounits"], stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return self
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return self

    def read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.peak = max(self.peak, int(line) * MIB)

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.thread.join(5)


# ---- models ----

def make_models(names):
    """Those that are missing; text encoder and VAE are written once."""
    os.makedirs(MODELS, exist_ok=True)
    shared = None
    for name, (full, tiny, layout) in KINDS.items():
        path = os.path.join(MODELS, name)
        done = os.path.join(path, "synthetic.json.done")
        if name in names and not os.path.exists(done):
            start = time.monotonic()
            command = [SLUICE, "synth-model", "--arch", full if FULL else tiny, "--layout", layout,
                       "--seed", "1", path] + (["--shared", shared] if shared else [])
            if FULL and name == "a14b" and shutil.disk_usage(MODELS).free < 33e9:
                note("the disk is small: a14b's second expert is a link to the first")
                command.append("--one-expert")
            run = subprocess.run(command, capture_output=True, text=True, check=False,
                                 timeout=max(seconds_left(), 1))
            took = time.monotonic() - start
            if not check(run.returncode == 0, f"model {name}, {layout}, written"):
                raise AssertionError(run.stderr)
            size = sum(os.path.getsize(f) for f in files_of(name)
                       if not (shared and os.stat(f).st_nlink > 1))
            note(f"model {name}: {size / 1e9:.1f} GB in {took:.1f} s, {size / 1e9 / took:.2f} GB/s")
            with open(done, "w", encoding="utf-8"):
                pass
        if shared is None and os.path.exists(done):
            shared = path


def files_of(name):
    """The model's checkpoints."""
    return [os.path.join(folder, file)
            for folder, _, files in os.walk(os.path.join(MODELS, name))
            for file in sorted(files) if file.endswith(".safetensors")]


def forget_files(name):
    """Out of the page cache, so that reading them is reading the disk."""
    for path in files_of(name):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def direct_read_rate(path):
    """GB/s of dd with direct I/O over the first 4 GiB; None where that is not to be had."""
    size = min(os.path.getsize(path), 4 * GIB)
    start = time.monotonic()
    run = subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M", "iflag=direct",
                          f"count={max(size // (16 * MIB), 1)}"], capture_output=True, text=True,
                         timeout=60, check=False)
    if run.returncode != 0:
        note(f"dd with direct I/O: {run.stderr.strip()[:200]}")
        return None
    return size / 1e9 / (time.monotonic() - start)


# ---- the daemon ----

class CardDaemon(Daemon):
    """Waits for the worker alone: a canary that came back wrong is a check that fails,
    and the rest goes on."""

    def is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"sluiced ended with {self.process.returncode}:\n{self.log()}")
        stats = self.cli("stats", "--json")
        return stats.code == 0 and stats.json["devices"][0]["worker_up"]


def open_daemon(size_of):
    size = SIZES[size_of][0 if FULL else 1]
    d = CardDaemon(device=f"{OPTIONS.device}:{size}", models=MODELS, config=CONFIG, start=False)
    start = time.monotonic()
    try:
        d.start()
    except BaseException:
        print(d.log()[-6000:], flush=True)
        d.close()
        raise
    note(f"a daemon on {d.device} is ready after {time.monotonic() - start:.2f} s")
    for line in re.findall(r"card (uuid=.*)", d.log())[:1]:
        note(line)
    canary = [line for line in d.cli("doctor").out.splitlines() if "canary" in line]
    check(len(canary) == 1 and canary[0].startswith("OK"), " ".join(canary))
    return d


def card_lines(d, kind, since=0):
    """The log's lines of that kind, as dictionaries."""
    found = []
    for line in d.log()[since:].splitlines():
        words = line.split(" ", 3)
        if len(words) == 4 and words[2] == kind:
            line = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', words[3]))
            line["time"] = datetime.fromisoformat(words[0].replace("Z", "+00:00")).timestamp()
            found.append(line)
    return found


def call(d, *words, limit_s=None):
    """A command with --json: its document and the seconds it took."""
    start = time.monotonic()
    got = d.cli(*words, "--json", limit_s=limit_s or max(seconds_left() + 10, 5))
    took = time.monotonic() - start
    if got.code != 0:
        raise AssertionError(f"sluice {' '.join(words)}: {got}")
    return got.json, took


def request(name, *more):
    words = ["a red circle", "--model", name, "--steps", "4", "--seed", "1", "--format", "y4m",
             "-o", "out.y4m"]
    if name != "a14b":
        return words + T2V + list(more)
    picture = os.path.join(MODELS, "first.png")
    if not os.path.exists(picture):
        png(picture, 1280 if FULL else 64, 720 if FULL else 48)
    return words + I2V + ["--image", picture, *more]


def step_ms(d, job_id):
    """Milliseconds of a step: the median of those after the first."""
    got = d.cli("watch", job_id, "--json")
    at = [line["event"]["time_ns"] for line in got.lines
          if "event" in line and re.match(r"step \d+ of", line["event"]["text"])]
    gaps = sorted(b - a for a, b in zip(at, at[1:]))
    return gaps[len(gaps) // 2] / 1e6 if gaps else float("nan")


def job_text(job, ms, took):
    return (f"{took:.2f} s, run {job['run_ns'] / 1e9:.2f} s, step {ms:.0f} ms, peak planned "
            f"{gib(job['planned_peak_bytes'])}, measured {gib(job['measured_peak_bytes'])}")


def generate(d, text, name, *more):
    """A video by the command; the job.  Its bytes are checked against its plan."""
    reply, took = call(d, "generate", *request(name, *more))
    job = reply["job"]
    ms = step_ms(d, job["job_id"])
    check(0 < job["measured_peak_bytes"] <= job["planned_peak_bytes"],
          f"{text}: {job_text(job, ms, took)}")
    job["step_ms"] = ms
    return job


def same_video(job, sha, text):
    check(job["output_sha256"] == sha, f"{text}: the same bytes ({job['output_sha256'][:12]})")


def no_residue(receipt, text):
    check(receipt["residue_bytes"] == 0,
          f"{text}: arena {mib(receipt['device_before_bytes'])} -> "
          f"{mib(receipt['device_after_bytes'])}, free {mib(receipt['free_before_bytes'])} -> "
          f"{mib(receipt['free_after_bytes'])}, residue {receipt['residue_bytes']}")


def check_ledger(d, text, base=None):
    """The ledger sums up and nothing is unexplained; beside it the driver's count."""
    memory = d.memory()
    used = card_used()
    try:
        check_sums(memory)
        problem = ""
    except AssertionError as e:
        problem = f": {str(e)[:300]}"
    beside = ""
    if used is not None and base is not None:
        beside = f", by nvidia-smi {mib(used - base - memory['arena_mapped_bytes'])} beside the " \
                 f"arena of {mib(memory['arena_mapped_bytes'])}"
    check(not problem and memory["unexplained_bytes"] == 0,
          f"{text}: unexplained {memory['unexplained_bytes']}, reserve "
          f"{mib(memory['context_bytes'])}{beside}{problem}")
    return memory


def against_driver(receipt, before, after, text, unpinned=0):
    """What an unload gave back is what nvidia-smi says, to two granules and its rounding.
    Where host memory was unpinned, too, its page tables on the card go as well: 8 bytes
    for 4 KiB."""
    if before is None or after is None:
        return
    freed = receipt["device_before_bytes"] - receipt["device_after_bytes"]
    tables = unpinned // 512
    check(-6 * MIB <= before - after - freed - tables <= 6 * MIB,
          f"{text}: {mib(freed)} unmapped"
          + (f" and {mib(tables)} of page tables" if tables else "")
          + f", {mib(before - after)} fewer by nvidia-smi")


def load(d, name, text, *more):
    reply, took = call(d, "load", name, *more)
    receipt = reply["receipt"]
    moved = receipt["device_after_bytes"] - receipt["device_before_bytes"]
    no_residue(receipt, f"{text}: loaded {took:.3f} s after the request "
                        f"({gib(moved)}, {moved / 1e9 / took:.1f} GB/s)")
    return took


# ---- first ----

def fills(d, since):
    """Told: what reading files and copying images took, by the daemon's log."""
    for kind in ("image_fill", "filled", "component_load", "copied"):
        for line in card_lines(d, kind, since):
            what = {k: v for k, v in line.items() if k in ("component", "model", "bytes", "ms",
                                                           "memory_ms", "pinned", "new", "status")}
            note(f"  {kind} " + " ".join(f"{k}={v}" for k, v in what.items()))


def first_unloads(d, base):
    before = card_used()
    receipt = call(d, "unload", "1.3b", "--soft")[0]["receipt"]
    no_residue(receipt, "unload --soft")
    against_driver(receipt, before, card_used(), "unload --soft")
    since = len(d.log())
    load(d, "1.3b", "warm", "--precision", "bf16")
    fills(d, since)
    before, pinned = card_used(), d.memory()["host"]["used_bytes"]
    receipt = call(d, "unload", "1.3b", "--full")[0]["receipt"]
    no_residue(receipt, "unload --full")
    against_driver(receipt, before, card_used(), "unload --full", pinned)
    check(d.memory()["host"]["used_bytes"] == 0, "unload --full: the host tier is empty")
    forget_files("1.3b")
    largest = max(files_of("1.3b"), key=os.path.getsize)
    rate = direct_read_rate(largest)
    forget_files("1.3b")
    since = len(d.log())
    took = load(d, "1.3b", "cold", "--precision", "bf16")
    fills(d, since)
    size = sum(os.path.getsize(f) for f in files_of("1.3b"))
    note(f"cold: {size / 1e9:.1f} GB of files, {size / 1e9 / took:.2f} GB/s from request to loaded")
    forget_files("1.3b")
    rates = [r for r in (rate, direct_read_rate(largest)) if r]  # the disk may cache, too
    read = [int(f["bytes"]) / 1e6 / float(f["ms"]) for f in card_lines(d, "filled", since)
            if f["component"] == "text_encoder"]
    if rates and read:
        check(read[0] >= 0.85 * max(rates), f"cold: the text encoder's file at {read[0]:.2f} GB/s, "
              f"dd with direct I/O {' and '.join(f'{r:.2f}' for r in rates)}: "
              f"{read[0] / max(rates):.0%} (the mark 85%)")
    check_ledger(d, "after the loads", base)


def first_killed_worker(d, sha, base):
    used = card_used()
    reply, _ = call(d, "generate", *request("1.3b", "--precision", "bf16", "--attention", "dense"),
                    "--detach")
    job_id = reply["job"]["job_id"]
    wait_for("two steps", lambda: d.job(job_id)["step"] >= 2, 60, 0.005)
    pid = d.worker_pid()
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for("another worker", lambda: d.memory()["worker_up"] and d.worker_pid() != pid, 60, 0.01)
    note(f"another worker {time.monotonic() - start:.2f} s after the signal")
    job = d.wait_state(job_id, ("done", "failed", "cancelled"), 120)
    check(job["state"] == "done" and job["attempt"] == 2,
          f"the worker killed in step {job['resumed_from_step'] + 1}: the job went on from there, "
          f"done {time.monotonic() - start:.2f} s after the signal {job['message']}")
    same_video(job, sha, "after the kill")
    memory = check_ledger(d, "after the kill", base)
    now = card_used()
    if used is not None and now is not None:
        # The new one has loaded less code so far.
        check(now - used <= 64 * MIB,
              f"the card's memory came back: {mib(used)} in use before, {mib(now)} after")
    check(memory["worker_restarts"] == 1, "one restart is counted")


def part_first():
    make_models(["1.3b"])
    base = card_used()
    d = open_daemon("first")
    try:
        since = len(d.log())
        load(d, "1.3b", "first load, files in the page cache", "--precision", "bf16")
        fills(d, since)
        reserve = check_ledger(d, "loaded", base)["context_bytes"]
        dense = ["--precision", "bf16", "--attention", "dense"]
        sha = generate(d, "dense bf16", "1.3b", *dense)["output_sha256"]
        first_sha["1.3b"] = sha
        same_video(generate(d, "dense bf16 again", "1.3b", *dense), sha, "twice")
        check_ledger(d, "after two videos", base)
        for precision, attention in (("bf16", "sla"), ("int8", "sagesla"), ("fp8", "sagesla")):
            generate(d, f"{attention} {precision}", "1.3b", "--precision", precision,
                     "--attention", attention)
        streamed = generate(d, "dense bf16 streamed", "1.3b", *dense, "--streaming", "on")
        check(len(streamed["plan"]["streamed"]) == 2, "text encoder and transformer were streamed")
        same_video(streamed, sha, "streamed")
        memory = check_ledger(d, "after all precisions", base)
        if ON_CARD:  # on cpu it is what the process has
            check(memory["context_bytes"] == reserve, f"the reserve stayed {mib(reserve)}")
        got = d.cli("stats")
        check(got.code == 0, "stats adds up")
        # The loads of other precisions by jobs are not pinned; out with all.
        call(d, "unload", "--full")
        load(d, "1.3b", "again", "--precision", "bf16")
        first_unloads(d, base)
        first_killed_worker(d, sha, base)
        got = d.cli("doctor")
        check(got.code in (0, 1) and all(line.startswith("OK") or line.startswith(" ")
                                         or "restarts" in line
                                         for line in got.out.splitlines() if line),
              "doctor finds nothing but the restart")
        if got.code != 0:
            print(got.out, flush=True)
        check(d.stop() == 0, "the daemon stopped")
        now = card_used()
        if now is not None and base is not None:
            check(now - base <= 16 * MIB, f"stopped: {mib(now - base)} more in use than before")
    finally:
        close(d)


first_sha = {}


def close(d):
    if sys.exc_info()[0] is not None:
        print(d.log()[-6000:], flush=True)
    d.close()


# ---- small ----

def on_small(size_of, name, *more):
    """A video under that limit, with the most that the card had in use meanwhile."""
    base = card_used()
    d = open_daemon(size_of)
    try:
        with CardPeak() as card:
            job = generate(d, f"{name} on {d.device}", name, *more)
        limit = int(d.memory()["total_bytes"])
        if card.peak and base is not None:
            check(card.peak - base <= limit,
                  f"{name}: at most {mib(card.peak - base)} of the card in use, allowed "
                  f"{mib(limit)}")
        note(f"{name}: streamed {job['plan']['streamed']}, by phase {job['plan']['by_phase']}")
        check_ledger(d, f"{name} after it", base)
        check(d.stop() == 0, "the daemon stopped")
        return job
    finally:
        close(d)


def part_small():
    make_models(["1.3b", "14b"])
    job = on_small("1.3b", "1.3b", "--precision", "bf16", "--attention", "dense")
    if "1.3b" in first_sha:
        same_video(job, first_sha["1.3b"], "1.3b on a small card")
    int8 = ["--precision", "int8", "--attention", "sagesla"]
    resident = on_small("resident", "14b", *int8, "--streaming", "off")
    streamed = on_small("14b", "14b", *int8)
    check("dit" in streamed["plan"]["streamed"], "14b: its transformer had to be streamed")
    same_video(streamed, resident["output_sha256"], "14b streamed")
    ratio = streamed["step_ms"] / resident["step_ms"]
    text = f"14b: a step takes {ratio:.3f} times as long as a resident one"
    if FULL:
        check(ratio <= 1.25, f"{text} (the mark 1.25)")
    else:
        note(text)


# ---- switches ----

NAMES = ("1.3b-int8", "14b", "a14b")
WAYS = ("--soft", "--full", "--hard")


class Row:
    """One switch: what it took, and the job behind it."""

    def __init__(self, old, new, way, run, reply, took, copied):
        self.old, self.new, self.way, self.run = old, new, way, run
        self.steps = reply["steps"]
        self.seconds = reply["duration_ns"] / 1e9
        self.took = took
        self.copied = copied
        self.peak = max(s["peak_bytes"] for s in self.steps)
        self.job = None
        self.job_seconds = 0

    def __str__(self):
        steps = ", ".join(f"{s['name']} {s['duration_ns'] / 1e6:.0f}" for s in self.steps)
        copied = "; ".join(f"{c['component']} {int(c['bytes']) / 1e9:.1f} GB {float(c['ms']):.0f} ms"
                           f"{' pinned ' + str(int(c['new']) >> 20) + ' MiB' if int(c['new']) else ''}"
                           for c in self.copied)
        job = f" | job {self.job_seconds:.2f} s, peak {gib(self.job['measured_peak_bytes'])} of " \
              f"{gib(self.job['planned_peak_bytes'])}" if self.job else ""
        return f"{self.old:>9} {self.new:>9} {self.way[2:]:>4} {self.seconds:7.3f} s " \
               f"({self.took:.3f})  ms: {steps} | peak {gib(self.peak)}" \
               f"{' | ' + copied if copied else ''}{job}"


def residents(memory):
    return {c["model"] for c in memory["components"]
            if c["measured_bytes"] > 0 and c["component"].startswith("dit")}


def one_switch(d, old, new, way, run, shas):
    """To `old` first, if it is not there; then the switch that counts."""
    if residents(d.memory()) != {old}:
        call(d, "switch", old, "--precision", "int8")
    limit = d.memory()["limit_bytes"]
    pid = d.worker_pid()
    since = len(d.log())
    reply, took = call(d, "switch", new, way, "--precision", "int8")
    row = Row(old, new, way, run, reply, took, card_lines(d, "copied", since))
    memory = d.memory()
    problems = []
    if any(s["receipt"] and s["receipt"]["residue_bytes"] != 0 for s in row.steps):
        problems.append("a residue")
    if row.peak > limit:
        problems.append(f"peak {gib(row.peak)} over {gib(limit)}")
    if residents(memory) != {new}:
        problems.append(f"resident {residents(memory)}")
    if (memory["worker_pid"] != pid) != (way == "--hard"):
        problems.append(f"worker {pid} -> {memory['worker_pid']}")
    if OPTIONS.jobs == "all" or (OPTIONS.jobs == "first" and (old, new) not in shas):
        reply, row.job_seconds = call(d, "generate", *request(new, "--precision", "int8",
                                                              "--attention", "sagesla"))
        row.job = reply["job"]
        shas[old, new] = row.job["output_sha256"]
        if shas.setdefault(new, row.job["output_sha256"]) != row.job["output_sha256"]:
            problems.append("other bytes than before")
        if not 0 < row.job["measured_peak_bytes"] <= row.job["planned_peak_bytes"]:
            problems.append("peak above its plan")
        memory = d.memory()
    try:
        check_sums(memory)
    except AssertionError as e:
        problems.append(str(e)[:200])
    check(not problems, f"{row}{' ' + '; '.join(problems) if problems else ''}")
    return row


def worst(rows, old, new, way, mark):
    seconds = [r.seconds for r in rows if (r.old, r.new, r.way) == (old, new, way)]
    if not seconds:
        note(f"{way[2:]} {old} -> {new}: not reached")
        return
    text = f"{way[2:]} {old} -> {new}: at worst {max(seconds):.3f} s of {len(seconds)}"
    if mark and FULL:
        check(max(seconds) <= mark, f"{text} (the mark {mark} s)")
    else:
        note(text)


def sum_up(rows):
    worst(rows, "1.3b-int8", "14b", "--soft", 0.5)
    worst(rows, "14b", "a14b", "--soft", 1.0)
    for old, new in (("14b", "1.3b-int8"), ("a14b", "14b"), ("1.3b-int8", "a14b")):
        worst(rows, old, new, "--soft", None)
    for way in WAYS[1:]:
        for old, new in (("1.3b-int8", "14b"), ("14b", "a14b")):
            worst(rows, old, new, way, None)
    peaks = [max(r.peak, r.job["measured_peak_bytes"] if r.job else 0) for r in rows
             if "a14b" not in (r.old, r.new)]
    if peaks and FULL:
        check(max(peaks) < 38.5 * GIB, f"1.3b <-> 14b: at most {gib(max(peaks))} (below 38.5 GiB)")
    rates = sorted(int(c["bytes"]) / 1e6 / float(c["ms"]) for r in rows for c in r.copied
                   if int(c["new"]) == 0 and int(c["bytes"]) > GIB)
    if rates:
        note(f"copies of more than 1 GiB from pinned memory: {rates[0]:.1f} to {rates[-1]:.1f} GB/s, "
             f"median {rates[len(rates) // 2]:.1f} of {len(rates)}; with mapping and its wait")
    for name in NAMES:
        jobs = [r.job for r in rows if r.job and r.new == name]
        if jobs:
            note(f"{name}: jobs at most {gib(max(j['measured_peak_bytes'] for j in jobs))}, planned "
                 f"{gib(max(j['planned_peak_bytes'] for j in jobs))}")


def tell_pinning(d, since, reset_at):
    """From the worker's log: when copying began, and what pinning everything took."""
    copied = [c for c in card_lines(d, "copied", since) if int(c["new"]) > 0]
    if not copied:
        return
    first = copied[0]
    began = first["time"] - float(first["ms"]) / 1e3
    part = min(GIB / int(first["bytes"]), 1.0)
    seconds = sum(float(c["ms"]) for c in copied) / 1e3
    note(f"reset --hard: copying began {began - reset_at:.2f} s after the request, the first "
         f"segment was there after about {began + part * float(first['ms']) / 1e3 - reset_at:.2f} s")
    pinned = sum(int(c["new"]) for c in copied)
    note(f"reset --hard: {gib(pinned)} pinned again within {seconds:.2f} s of copying "
         f"{sum(int(c['bytes']) for c in copied) / 1e9:.1f} GB, {pinned / 1e9 / seconds:.1f} GB/s")


def hard_reset(d):
    """What pinned components cost that come back by themselves, then all images."""
    call(d, "switch", "a14b", "--precision", "int8")
    since = len(d.log())
    start, reset_at = time.monotonic(), time.time()
    reply, took = call(d, "reset", "--hard")
    note(f"reset --hard: another worker after {reply['duration_ns'] / 1e9:.2f} s ({took:.2f})")
    wait_for("the first component", lambda: d.memory()["weights_bytes"] > 0, 120, 0.01)
    note(f"reset --hard: the first component after {time.monotonic() - start:.2f} s")
    wait_for("the model", lambda: residents(d.memory()) == {"a14b"} and not any(
        c["residency"] == "host" and "a14b" in c["models"] for c in d.memory()["components"]),
        120, 0.01)
    check(True, f"reset --hard: the model is back after {time.monotonic() - start:.2f} s")
    for name in NAMES:
        call(d, "switch", name, "--precision", "int8")
    fills(d, since)
    tell_pinning(d, since, reset_at)
    note(f"reset --hard: every model was loaded again after {time.monotonic() - start:.2f} s")


def part_switches():
    make_models(NAMES)
    d = open_daemon("switches")
    rows, shas = [], {}
    total = len(WAYS) * OPTIONS.runs * len(NAMES) ** 2
    try:
        since = len(d.log())
        start = time.monotonic()
        for name in NAMES:
            call(d, "load", name, "--precision", "int8", "--residency", "host")
        note(f"all images in host memory after {time.monotonic() - start:.1f} s: "
             f"{gib(d.memory()['host']['used_bytes'])}")
        fills(d, since)
        # The warm ones of every run first: they are what there is a mark for.
        for way in WAYS:
            for run in range(OPTIONS.runs):
                for old in NAMES:
                    for new in NAMES:
                        if seconds_left() < (60 if FULL else 5):
                            continue
                        rows.append(one_switch(d, old, new, way, run, shas))
        check(len(rows) == total, f"{len(rows)} of {total} switches were done")
        sum_up(rows)
        if seconds_left() > (20 if FULL else 2):
            hard_reset(d)
        else:
            check(False, "no time was left for the hard reset")
        check_ledger(d, "at the end")
        check(d.stop() == 0, "the daemon stopped")
    finally:
        close(d)


# ---- running ----

def on_alarm(_number, _frame):
    raise TimeoutError(f"not done after {OPTIONS.seconds + 20:.0f} s")


PARTS = {"models": lambda: make_models(KINDS), "first": part_first, "small": part_small,
         "switches": part_switches}


def tell_machine():
    """What the machine has; memory may grow as it is used."""
    with open("/proc/meminfo", encoding="utf-8") as f:
        memory = {k: v for k, v in (line.split(":") for line in f)}
    os.makedirs(WORK, exist_ok=True)
    note(f"{os.cpu_count()} cores, memory {memory['MemTotal'].strip()}, available "
         f"{memory['MemAvailable'].strip()}, disk {shutil.disk_usage(WORK).free / 1e9:.1f} GB free")


def main():
    tell_machine()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(int(OPTIONS.seconds) + 20)
    for part in OPTIONS.parts:
        tell("----", part)
        try:
            PARTS[part]()
        except Exception as e:  # pylint: disable=broad-except
            traceback.print_exc(file=sys.stdout)
            check(False, f"{part}: {str(e)[:600]}")
            if isinstance(e, TimeoutError):
                break
    print(f"{Out.passed} passed, {Out.failed} failed", flush=True)
    sys.exit(1 if Out.failed or Out.passed == 0 else 0)


if __name__ == "__main__":
    main()
