"""What fits, what waits, what is refused; and that cancelling gives it all back."""
import json
import os
import signal
import subprocess
import time

from harness import MODEL, PATIENCE, SLUICE, Daemon, check_sums, partials, run, shared_model_root, \
    wait_for

BIG = ["--width", "256", "--height", "256", "--frames", "33", "--steps", "4"]
SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "1"]


ONE_LANE = "host_memory: 0\nlimits:\n  running: 1\n"


def need(*args):
    """The least that a request can be done with on the cpu device, from the plan."""
    peak, limit = 0, 64 << 30
    while True:
        got = subprocess.run([SLUICE, "budget", "--model",
                              os.path.join(shared_model_root(), MODEL), "--streaming", "off",
                              "--device", f"cpu:{limit}", "--json", *args], capture_output=True,
                             text=True, check=False, timeout=30)
        if got.returncode == 3:
            return peak
        assert got.returncode == 0, got
        peak = json.loads(got.stdout)["plan"]["peak_bytes"]
        limit = peak - (2 << 20)


def test_never_is_refused_with_the_nearest_that_fits():
    small, big = need(*SMALL), need(*BIG)
    assert small < big, (small, big)
    limit = (small + big) // 2 // (2 << 20) * (2 << 20)
    with Daemon(device=f"cpu:{limit}", config="host_memory: 0\n") as d:
        plan = d.cli("plan", "--model", MODEL, "--json", *BIG)
        assert plan.code == 3, plan
        result = d.cli("generate", "a red circle", "--model", MODEL, "--json", *BIG)
        assert result.code == 3, result
        error = result.json["error"]
        refusal = error["refusal"]
        assert error["code"] == "RESOURCE_EXHAUSTED" and refusal["when"] == "never", error
        assert refusal["need_bytes"] > refusal["have_bytes"] > 0, refusal
        assert d.cli("jobs", "--json").json["jobs"] == []
        nearest = refusal["nearest"]
        assert nearest["exists"], refusal
        assert nearest["width"] * nearest["height"] * nearest["frames"] < 256 * 256 * 33, nearest
        accepted = d.cli("generate", "a red circle", "--model", MODEL, "--json", "-o", "a.mp4",
                         "--width", str(nearest["width"]), "--height", str(nearest["height"]),
                         "--frames", str(nearest["frames"]), "--precision", nearest["precision"],
                         "--steps", "1", limit_s=120)
        assert accepted.code == 0, accepted
        check_sums(d.memory())
        text = d.cli("generate", "x", "--model", MODEL, *BIG)
        assert text.code == 3 and "can never fit" in text.err and "nearest that fits" in text.err


def test_the_edge_is_exact():
    peak = need(*SMALL)
    for limit, code in ((peak, 0), (peak - (2 << 20), 3)):
        with Daemon(device=f"cpu:{limit}", config="host_memory: 0\n") as d:
            assert d.cli("plan", "--model", MODEL, *SMALL).code == code, (peak, limit)
            result = d.cli("generate", "x", "--model", MODEL, "-o", "a.mp4", *SMALL)
            assert result.code == code, result
            check_sums(d.memory())


def test_jobs_run_in_their_order():
    with Daemon(config=ONE_LANE) as d:
        first = d.submit("--width", "192", "--height", "192", "--frames", "17")
        others = [d.submit(*SMALL, "--seed", str(i)) for i in range(3)]
        waiting = [d.job(j) for j in others]
        if d.job(first)["state"] != "done":  # on a very fast machine it may be
            assert [j["state"] for j in waiting] == ["queued"] * 3, waiting
            assert [j["position"] for j in waiting] == [1, 2, 3], waiting
            assert waiting[0]["waiting_for"]["when"] == "after", waiting[0]
            assert waiting[0]["waiting_for"]["after"], waiting[0]
        done = [d.wait_state(j, ["done"], 120) for j in [first, *others]]
        for a, b in zip(done, done[1:]):
            assert a["submitted_ns"] <= b["submitted_ns"]
            assert a["ended_ns"] <= b["started_ns"], (a, b)
        check_sums(d.memory())


def test_cancel_stops_a_step_and_gives_back_every_byte():
    with Daemon() as d:
        assert d.cli("load", MODEL).code == 0
        before = d.memory()
        job = d.submit("--width", "512", "--height", "512", "--frames", "81")
        behind = d.submit(*SMALL)
        d.wait_state(job, ["denoising"])
        time.sleep(0.3)
        assert d.job(job)["state"] == "denoising"
        start = time.monotonic()
        result = d.cli("cancel", job, "--json")
        took = time.monotonic() - start
        assert result.code == 0 and result.json["job"]["state"] == "cancelled", result
        assert took < 1.0 * PATIENCE, f"cancel took {took:.2f} s"
        assert d.wait_state(behind, ["done"])["state"] == "done"
        wait_for("the device as it was", lambda: d.memory()["arena_mapped_bytes"] ==
                 before["arena_mapped_bytes"], 5)
        after = d.memory()
        check_sums(after)
        assert after["weights_bytes"] == before["weights_bytes"]
        assert after["worker_restarts"] == 0 and after["worker_pid"] == before["worker_pid"]
        assert not partials(d)
        assert d.cli("watch", job).code == 6
        again = d.cli("cancel", job, "--json")  # idempotent
        assert again.code == 0 and again.json["job"]["state"] == "cancelled", again
        assert d.cli("cancel", "no-such-job").code == 1


def test_cancel_of_a_job_that_waits():
    with Daemon(config=ONE_LANE) as d:
        first = d.submit("--width", "512", "--height", "512", "--frames", "81")
        second = d.submit(*SMALL)
        assert d.cli("cancel", second, "--json").json["job"]["state"] == "cancelled"
        assert d.job(first)["state"] not in ("done", "failed", "cancelled")
        assert d.cli("cancel", first, "--json").json["job"]["state"] == "cancelled"


def test_ctrl_c_cancels_the_job():
    with Daemon() as d:
        client = d.cli_start("generate", "x", "--model", MODEL, "-o", "a.mp4", "--width", "512",
                             "--height", "512", "--frames", "81", "--request-id", "cc")
        wait_for("the job to run",
                 lambda: d.cli("job", "cc").code == 0 and d.job("cc")["state"] == "denoising")
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=20 * PATIENCE)
        assert client.returncode == 6, (client.returncode, err)
        assert "cancelling" in err, err
        assert d.job("cc")["state"] == "cancelled"
        assert not [n for n in os.listdir(d.folder) if n.startswith("a.mp4")]


def test_ctrl_c_twice_leaves_the_job():
    with Daemon() as d:
        client = d.cli_start("generate", "x", "--model", MODEL, "-o", "a.mp4", "--width", "512",
                             "--height", "512", "--frames", "81", "--request-id", "cc")
        wait_for("the job to run",
                 lambda: d.cli("job", "cc").code == 0 and d.job("cc")["state"] == "denoising")
        d.process.send_signal(signal.SIGSTOP)  # so that the cancel is not answered
        try:
            client.send_signal(signal.SIGINT)
            for line in client.stderr:
                if "cancelling" in line:
                    break
            client.send_signal(signal.SIGINT)
            _, err = client.communicate(timeout=20 * PATIENCE)
        finally:
            d.process.send_signal(signal.SIGCONT)
        assert client.returncode == 130, (client.returncode, err)
        assert "left to the daemon" in err, err
        d.cli("cancel", "cc")


def test_unload_of_a_model_in_use_is_refused():
    with Daemon() as d:
        job = d.submit("--width", "512", "--height", "512", "--frames", "81")
        d.wait_state(job, ["denoising"])
        result = d.cli("unload", MODEL, "--json")
        assert result.code == 1, result
        assert result.json["error"]["code"] == "FAILED_PRECONDITION", result
        assert job in result.json["error"]["message"], result
        assert d.cli("cancel", job).code == 0
        wait_for("unload", lambda: d.cli("unload", MODEL).code == 0, 10)
        memory = d.memory()
        check_sums(memory)
        assert memory["weights_bytes"] == 0


run(globals())
