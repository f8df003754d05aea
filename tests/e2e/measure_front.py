"""What a daemon on TLS bears, measured; the numbers of docs/SPEED.md in one table.

usage: measure_front.py [--seconds=N] [--only=NAME[,NAME]] BUILD_DIR

NAMEs: stats, fetch, idle, watchers, attacks, attacks256; all of them take about 27
minutes.  --seconds is that of an attack (60; with 256 descriptors half of it).
For a quiet machine: whoever makes the load has one core, the daemon all.  Ends with 1
if a number misses its target.
"""
import contextlib
import hashlib
import os
import platform
import re
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time


def option(name, default):
    found = [a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--{name}=")]
    sys.argv = [a for a in sys.argv if not a.startswith(f"--{name}=")]
    return found[-1] if found else default


SECONDS = float(option("seconds", "60"))
ONLY = [name for name in option("only", "").split(",") if name]

import attack  # noqa: E402  pylint: disable=wrong-import-position
from harness import BUILD, MODEL, SLUICE  # noqa: E402  pylint: disable=wrong-import-position
from test_tls import Lan  # noqa: E402  pylint: disable=wrong-import-position
import wire  # noqa: E402  pylint: disable=wrong-import-position

OUTPUT_BYTES = 1 << 30
IDLE = 500
CORE = str(max(os.sched_getaffinity(0)))
ONE_CORE = ["taskset", "-c", CORE]
rows, missed = [], []


def add(what, target, measured, met=True):
    rows.append(f"| {what} | {target} | {measured}{'' if met else ' **missed**'} |")
    if not met:
        missed.append(what)
    print(rows[-1], flush=True)


def p99(times):
    return times[len(times) * 99 // 100]


def measure_stats():
    with Lan() as d:
        cert, key = d.pair("alice")
        for clients in (64, 1):
            done = subprocess.run(
                [*ONE_CORE, f"{BUILD}/load", d.url, f"{d.certs}/ca.pem", cert, key, "localhost",
                 str(clients), "15"], capture_output=True, text=True, check=True, timeout=120)
            rate, p50, worst = (float(x) for x in re.search(
                r"(\d+) requests/s, p50 ([\d.]+) ms, p99 ([\d.]+) ms", done.stdout).groups())
            text = f"{rate:,.0f}/s, p50 {p50:.2f} ms, p99 {worst:.1f} ms"
            if clients == 64:
                add("64 clients, GetMemoryStats", "5,000/s, p99 30 ms", text,
                    rate >= 5000 and worst <= 30)
            else:
                add("one client, the same", "", text)


def big_output(d):
    """The id of a job of OUTPUT_BYTES.  A model of this machine's cpu would take an hour for
    it, so a small job's file is replaced while the daemon is down, and its size and sum in
    the store; what is measured does not look at what is in it."""
    job = d.remote("alice", "generate", "x", "--model", MODEL, "--resolution", "64x64", "--frames",
                   "5", "--format", "y4m", "--detach", "--json").json["job"]["job_id"]
    d.wait_state(job, ("done",))
    d.stop()
    block, sha = os.urandom(1 << 20), hashlib.sha256()
    with open(os.path.join(d.outputs, f"{job}.y4m"), "wb") as f:
        for i in range(OUTPUT_BYTES >> 20):
            piece = i.to_bytes(8, "little") + block[8:]
            sha.update(piece)
            f.write(piece)
        f.flush()
        os.fsync(f.fileno())
    with contextlib.closing(sqlite3.connect(os.path.join(d.outputs, ".jobs.db"))) as db, db:
        db.execute("UPDATE jobs SET output_size_bytes = ?, output_sha256 = ? WHERE job_id = ?",
                   (OUTPUT_BYTES, sha.hexdigest(), job))
    d.start()
    return job


def timed(command, folder, times=3):
    """MB/s of each run, after one that fills the caches."""
    rates = []
    for _ in range(times + 1):
        start = time.monotonic()
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=300)
        rates.append(OUTPUT_BYTES / (time.monotonic() - start) / 1e6)
    return sorted(rates[1:])


def say_rates(rates):
    return f"{rates[len(rates) // 2]:.0f} MB/s ({rates[0]:.0f} to {rates[-1]:.0f})"


def measure_fetch():
    with Lan() as d:
        job = big_output(d)
        ca, (cert, key) = f"{d.certs}/ca.pem", d.pair("alice")
        rates = []
        for _ in range(3):
            done = subprocess.run([f"{BUILD}/load", d.url, ca, cert, key, "localhost", "1", "5",
                                   job], capture_output=True, text=True, check=True, timeout=60)
            rates.append(float(re.search(r"(\d+) MB/s", done.stdout).group(1)))
        rates.sort()
        add("FetchOutput, one libsluice client, 1 GiB", "200 MB/s", say_rates(rates),
            rates[1] >= 200)
        out = os.path.join(d.folder, "fetched")
        rates = timed([SLUICE, "fetch", job, "-o", out, "--address", d.url, "--ca", ca, "--cert",
                       cert, "--key", key], d.folder)
        add("`sluice fetch` of it: to a file, SHA-256, fsync", "200 MB/s", say_rates(rates),
            rates[1] >= 200)
        both = os.path.join(d.folder, "both.pem")
        with open(both, "wb") as f:
            for path in (cert, key):
                with open(path, "rb") as part:
                    f.write(part.read())
        for name, size in (("1 MB", 1_000_000), ("4 MiB", 4 << 20)):
            rates = timed([f"{BUILD}/stock_client", d.url, ca, both, "localhost", MODEL,
                           "/dev/null", job, str(size)], d.folder)
            add(f"the same, stock nng in C, pieces of {name}", "80 MB/s", say_rates(rates),
                rates[1] >= 80)


def measure_idle():
    with Lan(limits=f"  connections: {IDLE + 100}\n  connections_user: {IDLE + 100}\n"
                    f"  connections_host: {IDLE + 100}\n") as d:
        pid, open_ones = d.process.pid, []

        def connect(count):
            for _ in range(count):
                c = d.dial("alice")
                c.call("GetMemoryStats")
                open_ones.append(c)
        connect(20)  # what only the first ones cost
        before = attack.memory_kib(pid)
        connect(IDLE)
        each = (attack.memory_kib(pid) - before) / IDLE
        for c in open_ones:
            c.sock.close()
        add(f"an idle connection, of {IDLE}", "60 KiB", f"{each:.1f} KiB", each <= 60)


def watch(d, until, who):
    """Long polls, again and again; those above the cap are answered at once."""
    with contextlib.suppress(OSError, EOFError, ValueError), d.dial(who, 30) as c:
        while time.monotonic() < until:
            start = time.monotonic()
            c.call("WatchEvents", wire.message((1, 1 << 40), (2, 5_000_000_000)))
            time.sleep(0.2 if time.monotonic() - start < 1 else 0)


def measure_watchers():
    with Lan() as d:
        def asked(seconds):
            return attack.good_client(d, time.monotonic() + seconds)[0]
        alone = asked(10)
        until = time.monotonic() + 25
        watchers = [threading.Thread(target=watch, args=(d, until, ("bob", "root", "eve")[i % 3]))
                    for i in range(60)]
        for w in watchers:
            w.start()
        time.sleep(2)
        beside = asked(20)
        for w in watchers:
            w.join(30)
        add("GetMemoryStats beside 60 watchers, p99", "50 ms",
            f"{p99(beside):.1f} ms (without them {p99(alone):.1f})", p99(beside) <= 50)


def measure_attacks(descriptors, seconds):
    class Limited(Lan):
        def command(self):
            limit = ["prlimit", f"--nofile={descriptors}"] if descriptors else []
            return [*limit, *super().command()]

    attack.SECONDS = seconds
    more = f", {descriptors} descriptors" if descriptors else ""

    def show(name, times, before, most, after):
        add(f"attack {name}{more}: GetMemoryStats p99", "50 ms",
            f"{p99(times):.1f} ms (worst {times[-1]:.0f}, p50 {times[len(times) // 2]:.2f}); "
            f"memory {before >> 10}, {most >> 10}, {after >> 10} MiB", p99(times) <= 50)
    attack.show = show
    with Limited() as d:
        for name in ("none", *attack.ATTACKS):
            try:
                attack.attack_once(d, name)
            except (AssertionError, OSError) as e:
                add(f"attack {name}{more}", "", " ".join(f"{e!r}".split())[:300], False)


MEASURES = {
    "stats": measure_stats,
    "fetch": measure_fetch,
    "idle": measure_idle,
    "watchers": measure_watchers,
    "attacks": lambda: measure_attacks(0, SECONDS),
    "attacks256": lambda: measure_attacks(256, SECONDS / 2),
}


def machine():
    def git(*args):
        return subprocess.run(["git", *args], capture_output=True, text=True, check=False,
                              cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    with open("/proc/cpuinfo", encoding="ascii") as f:
        cpu = re.search(r"model name\s*: (.*)", f.read())
    return (f"{len(os.sched_getaffinity(0))} cores, {cpu.group(1) if cpu else platform.machine()}, "
            f"commit {git('rev-parse', '--short', 'HEAD')}, load before {os.getloadavg()[0]:.2f}, "
            f"load's core {CORE}, attacks {SECONDS:g} s each ({SECONDS / 2:g} with 256 "
            "descriptors).")


def main():
    wrong = [name for name in ONLY if name not in MEASURES]
    if wrong:
        sys.exit(f"no measurement {', '.join(wrong)}: there are {', '.join(MEASURES)}")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, most), most))
    socket.setdefaulttimeout(30)
    about = machine()
    for name in ONLY or MEASURES:
        MEASURES[name]()
    print(f"\n{about}\n\n| | target | measured |\n|---|---|---|\n" + "\n".join(rows))
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
