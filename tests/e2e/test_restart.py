"""kill -9 of sluiced at any moment: every acknowledged job ends exactly once."""
import os
import random
import sqlite3
import subprocess
import time

from harness import PATIENCE, Daemon, check_sums, partials, reap_orphan, run, wait_for

# y4m: the frames themselves.  The H.264 of equal frames differs at times, by what
# the process has encoded before.
SHAPES = [["--format", "y4m", *shape.split()] for shape in (
    "--width 64 --height 64 --frames 5 --steps 2",
    "--width 128 --height 64 --frames 9 --steps 4",
    "--width 96 --height 96 --frames 9 --steps 3")]
ENDED = ("done", "failed", "cancelled")


def submit_all(d, count):
    """Jobs of several shapes and seeds; {request_id: job_id}."""
    return {f"r{i}": d.submit("--request-id", f"r{i}", "--seed", str(i), *SHAPES[i % len(SHAPES)])
            for i in range(count)}


def undisturbed(count):
    """The SHA-256 of every job when nobody dies."""
    with Daemon() as d:
        jobs = submit_all(d, count)
        return {r: d.wait_state(j, ["done"], 120)["output_sha256"] for r, j in jobs.items()}


def kill_and_start(d):
    worker = d.worker_pid() if d.process.poll() is None else 0
    d.kill()
    if worker:
        wait_for("the worker to be gone", lambda: reap_orphan(worker), 5)
    d.start()


def check_ends(d, jobs, want):
    """Each job is done, once, with the bytes of an undisturbed run."""
    for request_id, job_id in jobs.items():
        job = d.wait_state(job_id, ENDED, 120)
        assert job["state"] == "done", job
        assert job["output_sha256"] == want[request_id], (request_id, job)
        assert d.cli("fetch", job_id, "-o", request_id).code == 0
    assert not partials(d), partials(d)
    outputs = [n for n in os.listdir(d.outputs) if not n.startswith(".")]
    assert len(outputs) == len(jobs), outputs
    store = sqlite3.connect(f"file:{d.outputs}/.jobs.db?mode=ro", uri=True)
    for job_id in jobs.values():
        rows = store.execute("SELECT count(*), count(DISTINCT seq), max(seq) FROM events WHERE "
                             "job_id = ?", (job_id,)).fetchone()
        assert rows[0] == rows[1] == rows[2], rows  # no event is twice, none is missing
        ends = store.execute("SELECT count(*) FROM events WHERE job_id = ? AND state >= 8",
                             (job_id,)).fetchone()
        assert ends[0] == 1, ends
    store.close()


def test_a_queue_survives_ten_kills():
    count, seed = 8, int(time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    want = undisturbed(count)
    with Daemon() as d:
        jobs = submit_all(d, count)
        deadline = time.monotonic() + 30 * PATIENCE
        for _ in range(10):
            time.sleep(chance.random() * 0.4 * PATIENCE)
            kill_and_start(d)
            if time.monotonic() > deadline:
                break
        check_ends(d, jobs, want)
        again = submit_all(d, count)  # the same requests are the same jobs
        assert again == jobs
        check_sums(d.memory())
        assert d.stop() == 0


def test_a_job_continues_behind_its_last_step():
    shape = ["--format", "y4m", "--width", "192", "--height", "192", "--frames", "17", "--steps",
             "4", "--seed", "3"]
    with Daemon() as d:
        whole = d.wait_state(d.submit(*shape), ["done"], 120)
        assert whole["resumed_from_step"] == 0
        job_id = d.submit(*shape)
        wait_for("a step", lambda: d.job(job_id)["step"] >= 1, 60)
        kill_and_start(d)
        job = d.wait_state(job_id, ENDED, 120)
        assert job["state"] == "done" and job["attempt"] == 2, job
        assert job["resumed_from_step"] >= 1, job
        assert job["output_sha256"] == whole["output_sha256"], job
        assert job["planned_peak_bytes"] == job["measured_peak_bytes"], job
        assert not [n for n in os.listdir(d.outputs) if n.startswith(".latent")]


def test_kills_while_jobs_are_submitted():
    """What was acknowledged is there; what was not can be sent again."""
    chance = random.Random(7)
    with Daemon() as d:
        acknowledged = {}
        for i in range(4):
            client = d.cli_start("generate", "a red circle", "--model", "tiny", "--detach",
                                 "--json", "--request-id", f"s{i}", "--seed", str(i), *SHAPES[0])
            time.sleep(chance.random() * 0.1)
            kill_and_start(d)
            try:
                client.communicate(timeout=60 * PATIENCE)
            except subprocess.TimeoutExpired:
                client.kill()
                client.communicate()
            found = d.cli("job", f"s{i}", "--json")
            if client.returncode == 0:
                assert found.code == 0, found
            job_id = d.submit("--request-id", f"s{i}", "--seed", str(i), *SHAPES[0])
            if found.code == 0:
                assert found.json["job"]["job_id"] == job_id
            acknowledged[f"s{i}"] = job_id
        assert len(set(acknowledged.values())) == 4
        for job_id in acknowledged.values():
            assert d.wait_state(job_id, ENDED, 120)["state"] == "done"


def test_a_damaged_store_is_refused():
    with Daemon() as d:
        d.submit(*SHAPES[0])
        assert d.stop() == 0
        path = os.path.join(d.outputs, ".jobs.db")
        assert os.stat(path).st_mode & 0o777 == 0o600
        with open(path, "r+b") as f:
            f.write(b"\x5a" * 4096)
        refused = subprocess.run(d.command(), capture_output=True, text=True, check=False,
                                 timeout=20 * PATIENCE)
        assert refused.returncode == 1, refused
        assert path in refused.stderr and "damaged" in refused.stderr, refused.stderr


run(globals())
