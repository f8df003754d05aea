"""Operations in random order against a real daemon: loads, unloads, switches,
jobs, cancels, worker kills, table changes, restarts.

After each the ledger sums to the byte, and nothing ran out of memory.  At the
end every acknowledged job has ended exactly once, with the bytes of an
undisturbed run.  Everything follows from the seed, which is printed, but for
the timing of the processes.

SLUICE_OPS (500), SLUICE_SEED, and for a soak SLUICE_WORKER_KILLS and
SLUICE_DAEMON_KILLS, which are spread over the run and aimed at every phase.
"""
import collections
import json
import os
import random
import signal
import sqlite3
import time

from harness import Daemon, check_sums, made_once, partials, png, reap_orphan, run, synth, wait_for

OPS = int(os.environ.get("SLUICE_OPS", "500"))
SEED = int(os.environ.get("SLUICE_SEED", str(int(time.time()))))
WORKER_KILLS = int(os.environ.get("SLUICE_WORKER_KILLS", str(OPS // 50)))
DAEMON_KILLS = int(os.environ.get("SLUICE_DAEMON_KILLS", str(OPS // 100)))

KINDS = {"a": "tiny-t2v", "b": "tiny-t2v", "c": "tiny-i2v", "d": "small-t2v"}
DEVICE = "cpu:230MiB"  # two models and a job, not all four
PHASES = ("loading", "encoding", "denoising", "decoding", "muxing")
ENDED = ("done", "failed", "cancelled")
TABLE = """rows:
  - name: all
    kind: cpu
    forbid:
      - text: large pictures are not made today
        pixels_above: {pixels}
"""
# What a command may answer when what was asked for cannot be had just now.
MAY_SAY = {"FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED", "NOT_FOUND",
           "CANCELLED", "DEADLINE_EXCEEDED"}


def make_models(root):
    for seed, (name, arch) in enumerate(KINDS.items()):
        synth(arch, os.path.join(root, name), seed + 1)
    png(os.path.join(root, "first.png"), 64, 48)


def models():
    return made_once("e2e-random", make_models)


def requests():
    """The jobs there are: options, by name."""
    picture = ["--image", os.path.join(models(), "first.png")]
    small = "--width 64 --height 48 --frames 5 --steps 2".split()
    return {
        "a": ["--model", "a", *small],
        "a-int8": ["--model", "a", "--precision", "int8", *small],
        "a-long": ["--model", "a", *"--width 96 --height 96 --frames 17 --steps 4".split()],
        "a-sla": ["--model", "a", "--attention", "sla", *small],
        "b": ["--model", "b", *small],
        "b-streamed": ["--model", "b", "--streaming", "on", *small],
        "c": ["--model", "c", *picture, *small],
        "d": ["--model", "d", *small],
        "d-int8": ["--model", "d", "--precision", "int8", *small],
    }


def undisturbed():
    """The SHA-256 of each kind of job when nothing else happens."""
    with Daemon(device=DEVICE, models=models(), config="threads: 2\nhost_memory: 512MiB\n") as d:
        shas = {}
        for name, options in requests().items():
            done = d.cli("generate", "x", *options, "-o", "x.y4m", "--json", limit_s=120)
            assert done.code == 0, (name, done)
            shas[name] = done.json["job"]["output_sha256"]
        return shas


class Walk:
    """One run of the test."""

    def __init__(self, d, rng, shas):
        self.d, self.rng, self.shas = d, rng, shas
        self.ended = collections.Counter()
        self.kinds = requests()
        self.jobs = {}       # job id: kind
        self.live = set()
        self.counts = collections.Counter()
        self.answers = collections.Counter()
        self.aim = None      # (phase, job): kill the worker as soon as it is there

    def say(self, *words, limit_s=120):
        """A command; its answer is right or says why not."""
        result = self.d.cli(*words, "--json", limit_s=limit_s)
        if result.code != 0:
            assert result.out, (words, result)
            error = result.json.get("error")
            if error is None:  # an answer that is no error (a plan that does not fit)
                return result
            code = error["code"]
            assert code in MAY_SAY, (words, result)
            self.answers[f"{words[0]}: {code}"] += 1
        return result

    def model(self):
        return self.rng.choice(list(KINDS))

    def op_submit(self):
        if len(self.live) > 12:
            return self.op_wait()
        kind = self.rng.choice(list(self.kinds))
        result = self.say("generate", "x", *self.kinds[kind], "--detach", "--format", "y4m",
                          "--priority", str(self.rng.randrange(1, 10)))
        if result.code == 0:
            job = result.json["job"]["job_id"]
            assert job not in self.jobs
            self.jobs[job] = kind
            self.live.add(job)

    def op_wait(self):
        """Until some job has ended, or a moment."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and self.live:
            # All of them: one that nobody looks at is forgotten after a thousand others.
            ended = [j for j in self.live if self.d.job(j)["state"] in ENDED]
            for job in ended:
                self.settle(job)
            if ended:
                return
            time.sleep(0.05)

    def settle(self, job_id):
        """A job that should have ended is judged; old ones are forgotten by the daemon."""
        kind = self.jobs[job_id]
        job = self.d.wait_state(job_id, ENDED, 240)
        self.live.discard(job_id)
        self.ended[job["state"]] += 1
        assert job["state"] != "failed", job
        if job["state"] == "done":
            assert job["output_sha256"] == self.shas[kind], (kind, job)
            assert job["measured_peak_bytes"] <= job["planned_peak_bytes"], job

    def op_cancel(self):
        if self.live:
            self.say("cancel", self.rng.choice(sorted(self.live)))

    def op_load(self):
        # A load pins: at most one model at a time, or jobs of others could not run.
        if not self.answers["pinned"]:
            name = self.model()
            words = ["load", name] + self.rng.choice([[], ["--residency", "host"]])
            if self.say(*words, limit_s=60).code == 0:
                self.pinned = name
                self.op_unload(name)

    def op_unload(self, name=None):
        how = self.rng.choice(["--soft", "--soft", "--full", "--hard"])
        now = self.rng.choice([[], ["--now"]])
        result = self.say("unload", name or self.model(), how, *now)
        if result.code == 0 and result.json.get("receipt"):
            assert result.json["receipt"]["residue_bytes"] == 0, result

    def op_switch(self):
        name = self.model()
        result = self.say("switch", name, self.rng.choice(["--soft", "--full", "--hard"]))
        for step in result.json.get("steps", []) if result.code == 0 else []:
            assert not step["receipt"] or step["receipt"]["residue_bytes"] == 0, step
        self.say("unload", name, "--soft")  # a switch pins, too

    def op_trim(self):
        self.say("trim")

    def op_reset(self):
        self.say("reset", "--hard")

    def op_table(self):
        """Another table, one that forbids nothing asked for here."""
        with open(os.path.join(self.d.folder, "budget.yaml"), "w", encoding="utf-8") as f:
            f.write(TABLE.format(pixels=self.rng.randrange(96 * 96, 1 << 20)))
        self.say("reload")

    def op_plan(self):
        kind = self.rng.choice(list(self.kinds))
        result = self.d.cli("plan", *self.kinds[kind], "--json")
        assert result.code in (0, 2), (kind, result)  # never "never"

    def op_look(self):
        self.d.cli("top", "--json")
        self.d.cli("events", "--json", "--limit", "3")

    def kill_worker(self):
        pid = self.d.memory()["worker_pid"]
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.counts["worker kills"] += 1

    def aim_at(self, phase):
        """Kills the worker when a job is seen in this phase, or at its next change."""
        if not self.live:
            self.op_submit()
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            states = {j["state"] for j in self.d.cli("jobs", "--json").json["jobs"][:40]}
            if phase in states:
                self.counts[f"killed while {phase}"] += 1
                break
            if not states - set(ENDED):
                self.op_submit()
        self.kill_worker()

    def kill_daemon(self):
        worker = self.d.worker_pid()
        client = self.d.cli_start("generate", "x", *self.kinds["a"], "--detach", "--json",
                                  "--format", "y4m",
                                  "--request-id", f"k{self.counts['daemon kills']}")
        time.sleep(self.rng.random() * 0.08)  # now and then in the middle of its commit
        self.d.kill()
        if worker:
            wait_for("the worker to be gone", lambda: reap_orphan(worker), 10)
        self.d.start()
        self.counts["daemon kills"] += 1
        out, _ = client.communicate(timeout=60)
        if client.returncode == 0:
            job = json.loads(out)["job"]["job_id"]
            self.jobs[job] = "a"
            self.live.add(job)

    def check(self):
        memory = self.d.memory()
        check_sums(memory)
        assert memory["arena_peak_bytes"] <= memory["limit_bytes"], memory


WEIGHTS = {"submit": 34, "wait": 12, "cancel": 6, "load": 6, "unload": 10, "switch": 5, "trim": 4,
           "reset": 2, "table": 3, "plan": 6, "look": 4}


def check_ends(walk):
    """What is left ends, too; and in the store each job ended once."""
    for job_id in list(walk.live):
        walk.settle(job_id)
    assert sum(walk.ended.values()) == len(walk.jobs), walk.ended
    assert not partials(walk.d), partials(walk.d)
    store = sqlite3.connect(f"file:{walk.d.outputs}/.jobs.db?mode=ro", uri=True)
    ends = dict(store.execute("SELECT job_id, count(*) FROM events WHERE state >= 8 "
                              "GROUP BY job_id").fetchall())
    store.close()
    assert len(ends) >= min(len(walk.jobs), 100) and set(ends.values()) == {1}, ends


def test_random_operations():
    print(f"seed {SEED}, {OPS} operations", flush=True)
    rng = random.Random(SEED)
    shas = undisturbed()
    config = ("threads: 2\nhost_memory: 512MiB\nbudget: {0}/budget.yaml\n"
              "limits:\n  retry_limit: 100\n  running: 2\n")
    with Daemon(device=DEVICE, models=models(), start=False) as d:
        d.config = config.format(d.folder)
        with open(os.path.join(d.folder, "budget.yaml"), "w", encoding="utf-8") as f:
            f.write(TABLE.format(pixels=1 << 20))
        d.start()
        walk = Walk(d, rng, shas)
        kills = {}
        for i in range(WORKER_KILLS):
            kills.setdefault(rng.randrange(OPS), []).append(
                ("worker", PHASES[i % len(PHASES)] if i % 3 else None))
        for i in range(DAEMON_KILLS):
            kills.setdefault(rng.randrange(OPS), []).append(("daemon", None))
        start = time.monotonic()
        for i in range(OPS):
            for who, phase in kills.get(i, []):
                if who == "daemon":
                    walk.kill_daemon()
                elif phase:
                    walk.aim_at(phase)
                else:
                    walk.kill_worker()
            name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            walk.counts[name] += 1
            try:
                getattr(walk, f"op_{name}")()
                walk.check()
            except BaseException:
                print(f"at operation {i}: {name}", flush=True)
                raise
        check_ends(walk)
        for name in KINDS:
            walk.say("unload", name, "--full")
        walk.check()
        assert "out of memory" not in d.log().lower()
        log = d.log()
        print(f"{OPS} operations in {time.monotonic() - start:.0f} s: {dict(walk.counts)}")
        print(f"jobs {len(walk.jobs)}: {dict(walk.ended)}; answers {dict(walk.answers)}; "
              f"workers started {log.count(' worker_start ')}")
        assert d.stop() == 0


run(globals())
