"""kill -9 of anyone in the middle: nothing is left behind, nothing is lost."""
import os
import signal
import subprocess
import time

from harness import MODEL, PATIENCE, SLUICED, Daemon, check_sums, children_of, partials, \
    process_state, reap_orphan, run, shared_model_root, wait_for

SHAPE = ["--width", "192", "--height", "192", "--frames", "17", "--steps", "4", "--seed", "3"]
LONG = ["--width", "512", "--height", "512", "--frames", "81"]


def test_the_client_dies():
    with Daemon() as d:
        client = d.cli_start("generate", "a red circle", "--model", MODEL, "-o", "a.mp4",
                             "--request-id", "left-alone", *SHAPE)
        wait_for("the job to run", lambda: d.cli("job", "left-alone").code == 0 and
                 d.job("left-alone")["state"] == "denoising")
        client.kill()
        client.communicate(timeout=10)
        job = d.wait_state("left-alone", ["done", "failed", "cancelled"], 120)
        assert job["state"] == "done" and job["attempt"] == 1, job
        assert d.cli("fetch", job["job_id"], "-o", "b.mp4").code == 0
        assert not os.path.exists(os.path.join(d.folder, "a.mp4"))
        check_sums(d.memory())


def test_the_worker_dies():
    with Daemon() as d:
        assert d.cli("load", MODEL).code == 0
        whole = d.wait_state(d.submit(*SHAPE), ["done"], 120)
        before = d.memory()
        job_id = d.submit(*SHAPE)
        d.wait_state(job_id, ["denoising", "decoding"])
        os.kill(before["worker_pid"], signal.SIGKILL)
        job = d.wait_state(job_id, ["done", "failed", "cancelled"], 120)
        assert job["state"] == "done" and job["attempt"] == 2, job
        assert job["output_sha256"] == whole["output_sha256"]
        assert job["planned_peak_bytes"] == job["measured_peak_bytes"]
        after = d.memory()
        check_sums(after)
        assert after["worker_restarts"] == 1 and after["worker_pid"] != before["worker_pid"]
        assert after["weights_bytes"] == before["weights_bytes"], "pinned weights did not return"
        assert all(c["pinned"] for c in after["components"]), after
        assert process_state(before["worker_pid"]) is None, "a zombie"
        assert not partials(d)
        assert d.stop() == 0


def test_a_worker_that_dies_again_and_again_fails_the_job():
    with Daemon() as d:
        job_id = d.submit(*LONG)
        for attempt in (1, 2, 3):
            wait_for(f"attempt {attempt}", lambda a=attempt: (d.job(job_id)["attempt"] == a and
                                                             d.job(job_id)["state"] == "denoising"))
            os.kill(d.worker_pid(), signal.SIGKILL)
        job = d.wait_state(job_id, ["failed", "done", "cancelled"])
        assert job["state"] == "failed" and job["attempt"] == 3 and job["message"], job
        assert d.cli("watch", job_id).code == 5
        assert not partials(d)
        done = d.submit("--width", "64", "--height", "64", "--frames", "5", "--steps", "1")
        d.wait_state(done, ["done"])
        check_sums(d.memory())


def test_a_worker_that_dies_while_idle():
    with Daemon() as d:
        assert d.cli("load", MODEL).code == 0
        before = d.memory()
        os.kill(before["worker_pid"], signal.SIGKILL)
        wait_for("a new worker with the pinned weights",
                 lambda: (lambda m: m["worker_up"] and m["worker_pid"] != before["worker_pid"] and
                          m["weights_bytes"] == before["weights_bytes"])(d.memory()))
        check_sums(d.memory())
        wait_for("the old one to be reaped",
                 lambda: process_state(before["worker_pid"]) is None, 5)


def test_the_daemon_dies():
    with Daemon() as d:
        job_id = d.submit(*LONG)
        d.wait_state(job_id, ["denoising"])
        worker = d.worker_pid()
        d.kill()
        start = time.monotonic()
        wait_for("the worker to be gone", lambda: reap_orphan(worker), 2)
        assert time.monotonic() - start < 2 * PATIENCE
        d.start()  # at once: the lock went with the worker
        assert not [n for n in partials(d) if n.endswith("-1.mp4")]  # of the first attempt
        job = d.job(job_id)  # nothing that was acknowledged is lost
        assert job["state"] not in ("done", "failed", "cancelled"), job
        assert d.cli("cancel", job_id).code == 0
        small = d.submit("--width", "64", "--height", "64", "--frames", "5", "--steps", "1")
        d.wait_state(small, ["done"])
        check_sums(d.memory())
        assert d.stop() == 0


def test_the_daemon_dies_while_writing_the_output():
    with Daemon() as d:
        job_id = d.submit("--width", "192", "--height", "192", "--frames", "33", "--steps", "1")
        d.wait_state(job_id, ["decoding", "muxing"])
        worker = d.worker_pid()
        wait_for("the partial output", lambda: partials(d), 20)
        d.kill()
        wait_for("the worker to be gone", lambda: reap_orphan(worker), 2)
        assert not [n for n in os.listdir(d.outputs) if n.startswith(job_id)]
        d.start()
        job = d.wait_state(job_id, ["done", "failed", "cancelled"], 120)
        assert job["state"] == "done" and job["attempt"] == 2, job
        assert not partials(d), partials(d)


def test_a_second_daemon_is_refused():
    with Daemon() as d:
        second = subprocess.run(d.command(), capture_output=True, text=True, check=False,
                                timeout=20 * PATIENCE)
        assert second.returncode == 3, second
        assert str(d.process.pid) in second.stderr, second.stderr
        assert d.cli("health").code == 0, "the first one lost its socket"


def test_sigterm_in_the_middle_of_a_job():
    with Daemon() as d:
        job_id = d.submit(*LONG)
        d.wait_state(job_id, ["denoising"])
        watcher = d.cli_start("watch", job_id, "--timeout", "5")
        children = children_of(d.process.pid)
        assert children
        start = time.monotonic()
        assert d.stop() == 0
        assert time.monotonic() - start < 8 * PATIENCE
        assert all(process_state(pid) is None for pid in children)
        assert not partials(d) and not os.path.exists(d.socket)
        watcher.communicate(timeout=60 * PATIENCE)
        assert watcher.returncode in (4, 6), watcher.returncode
        d.start()
        d.wait_state(job_id, ["denoising"])  # it goes on where the signal found it
        assert d.job(job_id)["attempt"] == 2
        assert d.cli("cancel", job_id).code == 0
        assert d.stop() == 0


def test_wrong_flags_and_folders():
    with Daemon(start=False) as d:
        for args in (["--device", "gpu"], ["--device", "cpu:1KiB"], ["--no-such-flag"],
                     ["--config", "/no/such/file"]):
            got = subprocess.run([SLUICED, "--models", shared_model_root(), "--outputs", d.outputs,
                                  "--runtime", d.runtime, "--device", "cpu:1GiB", *args],
                                 capture_output=True, text=True, check=False, timeout=20 * PATIENCE)
            assert got.returncode not in (0, 3) and got.returncode > 0 and got.stderr, (args, got)


run(globals())
