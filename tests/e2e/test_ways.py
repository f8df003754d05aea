"""One planner: what `sluice budget` says fits, the daemon runs, in the way it said.

On smaller and smaller devices the same request is done with everything on the device
at once, phase by phase, with networks streamed from host memory, and at last not at
all; the video is the same to the byte, and what was planned is what is measured.
"""
import json
import os
import subprocess

from harness import PATIENCE, SLUICE, Daemon, check_sums, made_once, partials, run, synth, \
    wait_for

GRANULE = 2 << 20
SHAPE = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "2"]
ONE_THREAD = "threads: 1\nhost_memory: 256MiB\n"


def model_root():
    """A root with a model whose transformer outweighs all else, as a 14B one does."""
    return made_once("e2e-ways", lambda root: synth("small-t2v", os.path.join(root, "deep"), 3))


class Deep(Daemon):
    def __init__(self, **kwargs):
        super().__init__(models=model_root(), **kwargs)

    def submit(self, *args):
        result = self.cli("generate", "a red circle", "--model", "deep", "--detach", "--json",
                          "--format", "y4m", *SHAPE, *args)
        assert result.code == 0, result
        return result.json["job"]["job_id"]


def budget(limit, *args):
    got = subprocess.run([SLUICE, "budget", "--model", os.path.join(model_root(), "deep"),
                          "--device", f"cpu:{limit}", "--threads", "1", "--host-memory", "256MiB",
                          "--json", *SHAPE, *args], capture_output=True, text=True, check=False,
                         timeout=30 * PATIENCE)
    assert got.returncode in (0, 3), got
    return got.returncode, json.loads(got.stdout)


def way_of(plan):
    return plan["by_phase"], tuple(plan["streamed"])


def all_ways(*args):
    """Every way in which the request is done on some device: (limit, plan)."""
    ways, limit = [], 1 << 32
    while True:
        code, answer = budget(limit, *args)
        if code == 3:
            return ways
        ways.append((answer["plan"]["peak_bytes"], answer["plan"]))
        limit = answer["plan"]["peak_bytes"] - GRANULE


def run_on(limit, plan, *args):
    """Runs the request on a device that is just large enough; its SHA-256."""
    with Deep(device=f"cpu:{limit}", config=ONE_THREAD) as d:
        said = d.cli("plan", "--model", "deep", "--json", *SHAPE, *args)
        assert said.code == 0, said
        for name in ("by_phase", "streamed", "peak_bytes", "slowdown", "host_bytes",
                     "activation_bytes", "weight_bytes"):
            assert said.json["plan"][name] == plan[name], (name, said.json["plan"], plan)
        job = d.wait_state(d.submit(*args), ["done", "failed"], 120)
        assert job["state"] == "done", job
        assert way_of(job["plan"]) == way_of(plan), job["plan"]
        assert job["planned_peak_bytes"] == job["measured_peak_bytes"] == plan["peak_bytes"], job
        memory = d.memory()
        check_sums(memory)
        assert memory["arena_peak_bytes"] <= limit, memory
        assert not partials(d)
        events = d.cli("watch", job["job_id"], "--json")
        states = [line["event"]["state"] for line in events.lines if line.get("event")]
        loads = [i for i, s in enumerate(states) if s == "loading"]
        if plan["by_phase"]:  # loads come between the phases
            assert loads[-1] > states.index("encoding"), states
        return job["output_sha256"]


def test_every_way_gives_the_same_video():
    ways = all_ways()
    kinds = [way_of(plan) for _, plan in ways]
    assert (False, ()) in kinds and (True, ()) in kinds, kinds
    assert any(streamed for _, streamed in kinds), kinds
    assert len({run_on(limit, plan) for limit, plan in ways}) == 1


def test_streaming_on_and_off_are_obeyed():
    off, on = all_ways("--streaming", "off"), all_ways("--streaming", "on")
    assert [way_of(p)[1] for _, p in off] == [()] * len(off)
    assert all(way_of(p)[1] == ("text_encoder", "dit") for _, p in on), on
    assert on[-1][0] < off[-1][0]
    shas = {run_on(*off[-1], "--streaming", "off"), run_on(*on[-1], "--streaming", "on")}
    assert len(shas) == 1


def test_a_granule_less_is_refused():
    limit = all_ways()[-1][0] - GRANULE
    with Deep(device=f"cpu:{limit}", config=ONE_THREAD) as d:
        result = d.cli("generate", "x", "--model", "deep", "--json", *SHAPE)
        assert result.code == 3 and result.json["error"]["refusal"]["when"] == "never", result
        check_sums(d.memory())


def test_without_host_memory_nothing_streams():
    limit = all_ways()[-1][0]
    with Deep(device=f"cpu:{limit}", config="threads: 1\nhost_memory: 0\n") as d:
        assert d.cli("plan", "--model", "deep", *SHAPE).code == 3
        result = d.cli("generate", "x", "--model", "deep", "--json", "--streaming", "on", *SHAPE)
        assert result.code == 1, result
        assert "host_memory" in result.json["error"]["message"], result


def test_a_job_by_phase_goes_on_after_the_worker_died():
    ways = all_ways("--streaming", "off")
    limit, plan = next((peak, plan) for peak, plan in ways if plan["by_phase"])
    want = run_on(limit, plan, "--streaming", "off")
    with Deep(device=f"cpu:{limit}", config=ONE_THREAD) as d:
        for state in ("denoising", "decoding", "loading"):
            job = d.submit("--streaming", "off")
            killed = False
            for _ in range(400):
                now = d.job(job)
                if now["state"] == "done":
                    break
                if now["state"] == state and not killed:
                    killed = True
                    d.cli("reset", "--hard")
            done = d.wait_state(job, ["done", "failed"], 120)
            assert done["state"] == "done" and done["output_sha256"] == want, done
        wait_for("the device to be calm", lambda: d.memory()["activations_bytes"] == 0, 5)
        check_sums(d.memory())


run(globals())
