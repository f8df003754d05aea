"""Jobs side by side: they overlap, give what they give alone, and the books stay true."""
import hashlib
import os
import signal

from harness import MODEL, Daemon, check_sums, partials, run, wait_for

LONG = ["--width", "128", "--height", "128", "--frames", "17", "--steps", "4"]
SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "1"]


class TwoLanes(Daemon):
    """Two jobs at once; what else the file says is given."""

    def __init__(self, more="", **kwargs):
        self.more = more
        super().__init__(**kwargs)

    def command(self):
        path = os.path.join(self.folder, "sluice.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write("threads: 1\nlimits:\n  running: 2\n" + self.more)
        return [*super().command(), "--config", path]


def sha256_of(d, job_id):
    with open(os.path.join(d.outputs, job_id + ".mp4"), "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def test_two_jobs_overlap_and_give_what_they_give_alone():
    with Daemon() as d:
        alone = [d.submit(*LONG, "--seed", str(seed)) for seed in (1, 2)]
        want = [d.wait_state(j, ["done"], 120)["output_sha256"] for j in alone]
    assert want[0] != want[1]
    with TwoLanes() as d:
        jobs = [d.submit(*LONG, "--seed", str(seed)) for seed in (1, 2)]
        running = ("encoding", "denoising", "decoding", "muxing")

        def both():
            memory = d.memory()
            check_sums_of_parts(memory)
            states = [d.job(j)["state"] for j in jobs]
            assert "done" not in states, "the jobs were not seen side by side"
            return all(s in running for s in states)

        wait_for("both jobs to run", both)
        assert d.cli("health", "--json").json["running_jobs"] == 2
        done = [d.wait_state(j, ["done"], 120) for j in jobs]
        assert max(j["started_ns"] for j in done) < min(j["ended_ns"] for j in done), done
        assert [j["output_sha256"] for j in done] == want
        assert [sha256_of(d, j) for j in jobs] == want
        for job in done:
            assert job["planned_peak_bytes"] == job["measured_peak_bytes"] > 0, job
        wait_for("the device to be calm", lambda: d.memory()["activations_bytes"] == 0, 5)
        check_sums(d.memory())
        assert not partials(d)


def check_sums_of_parts(memory):
    """What holds whatever is being mapped at the moment."""
    names = ("context_bytes", "weights_bytes", "activations_bytes", "workspace_bytes",
             "reserved_bytes", "foreign_bytes", "free_bytes", "unexplained_bytes")
    assert sum(memory[name] for name in names) == memory["total_bytes"], memory
    assert memory["arena_mapped_bytes"] <= memory["limit_bytes"], memory
    assert memory["unexplained_bytes"] == 0, memory


def test_priority_goes_first():
    with Daemon(config="limits:\n  running: 1\n") as d:
        first = d.submit(*LONG)
        late = d.submit(*SMALL, "--priority", "1")
        soon = d.submit(*SMALL, "--priority", "9")
        done = [d.wait_state(j, ["done"], 120) for j in (first, soon, late)]
        assert done[1]["ended_ns"] <= done[2]["started_ns"], done


def test_a_deadline_that_cannot_be_met_is_refused():
    with Daemon() as d:
        result = d.cli("generate", "x", "--model", MODEL, "--detach", "--json", "--deadline",
                       "1s", "--width", "512", "--height", "512", "--frames", "81")
        assert result.code != 0, result
        error = result.json["error"]
        assert error["code"] == "DEADLINE_EXCEEDED", error
        assert error["refusal"]["estimate_ns"] > error["refusal"]["deadline_ns"] == 10**9, error
        assert d.cli("jobs", "--json").json["jobs"] == []


def test_a_user_may_only_have_so_many():
    with TwoLanes(more="  user_running: 1\n  user_queued: 1\n") as d:
        first = d.submit(*LONG)
        second = d.submit(*LONG)
        wait_for("the first to run", lambda: d.job(first)["state"] == "denoising")
        assert d.job(second)["state"] == "queued", d.job(second)
        third = d.cli("generate", "x", "--model", MODEL, "--detach", "--json", *SMALL)
        assert third.code != 0 and "limit" in third.json["error"]["message"], third
        for job in (first, second):
            assert d.cli("cancel", job).code == 0


def test_images_outlive_the_worker_and_a_soft_unload():
    with TwoLanes(more="host_memory: 1GiB\n") as d:
        assert d.cli("load", MODEL, "--no-pin").code == 0
        memory = d.memory()
        assert not any(c["pinned"] for c in memory["components"]), memory
        used, pid = memory["host"]["used_bytes"], memory["worker_pid"]
        assert used > 0, memory
        want = d.wait_state(d.submit(*SMALL), ["done"])["output_sha256"]
        os.kill(pid, signal.SIGKILL)
        wait_for("another worker", lambda: d.memory()["worker_pid"] not in (0, pid))
        assert d.memory()["host"]["used_bytes"] == used
        assert d.wait_state(d.submit(*SMALL), ["done"])["output_sha256"] == want
        assert d.log().count("image_fill") == len(memory["components"]), "filled again"
        assert d.cli("unload", MODEL).code == 0
        memory = d.memory()
        assert memory["weights_bytes"] == 0 and memory["host"]["used_bytes"] == used, memory
        assert d.cli("unload", MODEL, "--full").code == 0
        assert d.memory()["host"]["used_bytes"] == 0
        check_sums(d.memory())


def test_a_streamed_job_gives_the_same_with_less():
    with Daemon(config="host_memory: 0\n") as d:
        refused = d.cli("generate", "x", "--model", MODEL, "--detach", "--json", "--streaming", "on",
                        *SMALL)
        assert refused.json["error"]["code"] == "FAILED_PRECONDITION", refused
    with TwoLanes(more="host_memory: 1GiB\n") as d:
        whole = d.wait_state(d.submit(*SMALL), ["done"])
        job = d.wait_state(d.submit(*SMALL, "--streaming", "on"), ["done", "failed"])
        assert job["state"] == "done", job
        assert job["output_sha256"] == whole["output_sha256"]
        assert job["planned_peak_bytes"] == job["measured_peak_bytes"], job
        assert job["measured_peak_bytes"] <= whole["measured_peak_bytes"], (job, whole)
        assert any(c["streamed"] for c in d.memory()["components"]), d.memory()
        check_sums(d.memory())


run(globals())
