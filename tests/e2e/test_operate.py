"""Running a daemon: explain, doctor, events, drain, reset, clean, reload, a full disk."""
import os
import resource
import signal
import subprocess

from harness import Daemon, check_sums, partials, run, wait_for

SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "2"]


def done(d, *args):
    job_id = d.submit(*(args or SMALL))
    d.wait_state(job_id, ["done"])
    return job_id


def outputs(d):
    return sorted(n for n in os.listdir(d.outputs) if not n.startswith(".") and n != "evidence")


def test_a_job_is_explained_and_the_doctor_is_content():
    with Daemon() as d:
        job_id = done(d)
        text = d.cli("explain", job_id)
        assert text.code == 0, text
        for word in ("job_queued", "job_admitted", "component_load", "job_step", "job_done",
                     "device_before=", "device_after=", "peak"):
            assert word in text.out, (word, text)
        doctor = d.cli("doctor")
        assert doctor.code == 0 and "NOT OK" not in doctor.out, doctor
        for check in ("ledger", "unexplained", "worker", "canary", "disk", "strays", "store", "clock", "lock"):
            assert check in doctor.out, (check, doctor)
        events = d.cli("events")
        assert events.code == 0 and "worker_up" in events.out and "load_done" in events.out, events
        hours = d.memory()["history"]
        assert sum(h["jobs"] for h in hours) == 1 and hours[0]["peak_bytes"] > 0, hours


def test_reset_and_evidence():
    with Daemon() as d:
        job_id = d.submit("--width", "256", "--height", "256", "--frames", "17")
        d.wait_state(job_id, ["denoising"])
        before = d.worker_pid()
        reset = d.cli("reset", "--hard")
        assert reset.code == 0, reset
        assert d.worker_pid() != before
        assert not os.path.exists(os.path.join(d.outputs, "evidence"))  # it was wanted
        d.wait_state(job_id, ["denoising"])
        os.kill(d.worker_pid(), signal.SIGKILL)  # this one was not
        folder = wait_for("evidence", lambda: os.path.isdir(f"{d.outputs}/evidence") and
                          os.listdir(f"{d.outputs}/evidence"), 10)[0]
        wait_for("all of it", lambda: len(os.listdir(f"{d.outputs}/evidence/{folder}")) == 4, 10)
        with open(f"{d.outputs}/evidence/{folder}/jobs.json", encoding="utf-8") as f:
            text = f.read()
        assert job_id in text and "circle" not in text, text
        assert "signal" in folder
        assert d.cli("doctor").code == 1  # restarts are worth a look
        assert d.cli("cancel", job_id).code == 0
        check_sums(d.memory())


def test_drain_and_clean():
    with Daemon() as d:
        first = done(d)
        assert d.cli("drain").code == 0
        second = d.submit(*SMALL)
        assert d.job(second)["state"] == "queued"
        assert d.cli("drain", "--off").code == 0
        d.wait_state(second, ["done"])
        assert len(outputs(d)) == 2
        assert d.cli("clean", "--older-than", "1h").code == 0
        assert len(outputs(d)) == 2
        wait_for("a second to pass", lambda: d.cli("clean", "--older-than", "1s").code == 0 and
                 not outputs(d), 10, 0.3)
        assert d.cli("job", first).code == 1 and d.cli("jobs").code == 0
        again = d.submit("--request-id", "new", *SMALL)
        d.wait_state(again, ["done"])
        # What no job has goes by its own age; what is none of ours stays.
        for name in ("0123456789abcdef.mp4", "0123456789abcdef.txt", "notes.mp4"):
            path = os.path.join(d.outputs, name)
            with open(path, "w", encoding="utf-8") as f:
                f.write("x")
            os.utime(path, (1000, 1000))
        fresh = os.path.join(d.outputs, "00000000000000ff.y4m")
        with open(fresh, "w", encoding="utf-8") as f:
            f.write("x")
        would = d.cli("clean", "--older-than", "1h", "--dry-run", "--json").json
        assert would["names"] == ["0123456789abcdef.mp4"] and would["bytes"] == 1, would
        assert d.cli("clean", "--older-than", "1h", "--json").json["names"] == would["names"]
        left = set(os.listdir(d.outputs))
        assert {"0123456789abcdef.txt", "notes.mp4", "00000000000000ff.y4m"} < left, left
        assert "0123456789abcdef.mp4" not in left, left



def test_the_table_is_read_again():
    with Daemon(start=False) as d:
        config, table = os.path.join(d.folder, "sluice.yaml"), os.path.join(d.folder, "budget.yaml")
        with open(config, "w", encoding="utf-8") as f:
            f.write(f"budget: {table}\n")
        rows = ("rows:\n  - name: all\n    kind: cpu\n    forbid:\n"
                "      - text: no more than {n} frames\n        frames_above: {n}\n")
        with open(table, "w", encoding="utf-8") as f:
            f.write(rows.format(n=100))
        command = d.command() + ["--config", config]
        d.command = lambda: command
        d.start()
        done(d)
        with open(table, "w", encoding="utf-8") as f:
            f.write(rows.format(n=1))
        d.process.send_signal(signal.SIGHUP)
        refused = wait_for("the new table", lambda: (lambda r: r if r.code != 0 else None)(
            d.cli("generate", "x", "--model", "tiny", "--detach", *SMALL)), 10)
        assert refused.code == 3 and "no more than 1 frames" in refused.err, refused
        with open(table, "w", encoding="utf-8") as f:
            f.write("rows: wrong\n")
        broken = d.cli("reload")
        assert broken.code == 1 and "budget.yaml" in broken.err, broken
        assert d.cli("generate", "x", "--model", "tiny", "--detach", *SMALL).code == 3  # as before
        assert d.cli("health").code == 0


def test_limits_are_read_again():
    text = "threads: 1\nhost_memory: {host}\nlimits:\n  running: {running}\n  queue: {queue}\n"
    with Daemon(config=text.format(host="64MiB", running=1, queue=50)) as d:
        def reload(**values):
            d.config = text.format(**values)
            d.command()  # writes it
            return d.cli("reload", "--json")

        pid = d.worker_pid()
        done(d)
        images = d.memory()["host"]["used_bytes"]
        assert images > 0
        big = ["--width", "160", "--height", "160", "--frames", "17", "--steps", "4"]
        first = d.submit(*big)
        d.wait_state(first, ["denoising"])
        result = reload(host="1MiB", running=2, queue=1)
        assert result.code == 0, result
        assert set(result.json["changed"]) == {"host_memory", "limits.running", "limits.queue"}
        # Another number of lanes takes another worker, which waits for the job.
        assert d.worker_pid() == pid
        wait_for("the images to go", lambda: d.memory()["host"]["used_bytes"] < images, 10)
        second = d.submit(*SMALL)
        refused = d.cli("generate", "x", "--model", "tiny", "--detach", "--json", *SMALL)
        assert refused.code == 7 and "queue is full" in refused.json["error"]["message"], refused
        for job in (first, second):
            last = d.wait_state(job, ["done", "failed"], 120)
            assert last["state"] == "done" and last["attempt"] == 1, last
        wait_for("another worker", lambda: d.worker_pid() not in (0, pid), 20)
        both = [d.submit(*big, "--seed", str(i)) for i in range(2)]
        wait_for("both to run", lambda: all(d.job(j)["state"] in ("encoding", "denoising")
                                            for j in both), 20)
        assert d.cli("load", "tiny", "--residency", "host").code != 0  # 1 MiB is too little
        assert reload(host="64MiB", running=2, queue=1).code == 0
        assert d.cli("load", "tiny", "--residency", "host").code == 0
        low = reload(host="1MiB", running=2, queue=1)
        assert low.code == 1 and "pinned" in low.json["error"]["message"], low
        for job in both:
            assert d.cli("cancel", job).code == 0
        check_sums(d.memory())


def test_a_full_disk_fails_the_job_and_nothing_else():
    with Daemon(start=False) as d:
        limit = 600 << 10  # of any one file: writes beyond it fail like those on a full disk

        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with open(d.log_path, "ab") as log:
            d.process = subprocess.Popen(d.command(), stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, preexec_fn=limited)
        wait_for("the daemon to be ready", d.is_ready)
        job_id = d.submit("--width", "256", "--height", "256", "--frames", "9", "--steps", "1",
                          "--format", "y4m")
        job = d.wait_state(job_id, ["done", "failed", "cancelled"], 120)
        assert job["state"] == "failed" and "large" in job["message"], job
        assert not partials(d) and not outputs(d)
        done(d)
        check_sums(d.memory())


run(globals())
