"""One planner: what `sluice budget` says fits, the daemon runs, in the way it said.

On smaller and smaller devices the same request is done with everything on the device
at once, phase by phase, with networks streamed from host memory, and at last not at
all; the video is the same to the byte, and what was planned is what is measured.
"""
import json
import os
import struct
import subprocess
import zlib

from harness import PATIENCE, SLUICE, Daemon, check_sums, made_once, partials, run, synth, \
    wait_for

GRANULE = 2 << 20
STEPS = {"deep": "2", "pair": "4"}  # with four there are some for each expert
ONE_THREAD = "threads: 1\nhost_memory: 256MiB\n"


def shape(model):
    return ["--width", "64", "--height", "64", "--frames", "5", "--steps", STEPS[model]]


def make_models(root):
    synth("small-t2v", os.path.join(root, "deep"), 3)
    synth("small-i2v", os.path.join(root, "pair"), 4)
    rows = b"".join(b"\0" + bytes((x * 7 + y * 3 + c * 50) % 256 for x in range(64)
                                  for c in range(3)) for y in range(64))
    with open(os.path.join(root, "first.png"), "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
                           (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            f.write(struct.pack(">I", len(data)) + kind + data
                    + struct.pack(">I", zlib.crc32(kind + data)))


def model_root():
    """A root with models whose transformers outweigh all else, as 14B ones do: one
    with one expert, one with two that begins with a picture."""
    return made_once("e2e-ways", make_models)


class Deep(Daemon):
    def __init__(self, model="deep", **kwargs):
        self.model = model
        super().__init__(models=model_root(), **kwargs)

    def submit(self, *args):
        image = ["-i", os.path.join(model_root(), "first.png")] if self.model == "pair" else []
        result = self.cli("generate", "a red circle", "--model", self.model, "--detach", "--json",
                          "--format", "y4m", *shape(self.model), *image, *args)
        assert result.code == 0, result
        return result.json["job"]["job_id"]


def budget(limit, *args, model="deep"):
    got = subprocess.run([SLUICE, "budget", "--model", os.path.join(model_root(), model),
                          "--device", f"cpu:{limit}", "--threads", "1", "--host-memory", "256MiB",
                          "--json", *shape(model), *args], capture_output=True, text=True, check=False,
                         timeout=30 * PATIENCE)
    assert got.returncode in (0, 3), got
    return got.returncode, json.loads(got.stdout)


def way_of(plan):
    return plan["by_phase"], tuple(plan["streamed"])


def all_ways(*args, model="deep"):
    """Every way in which the request is done on some device: (limit, plan)."""
    ways, limit = [], 1 << 32
    while True:
        code, answer = budget(limit, *args, model=model)
        if code == 3:
            return ways
        ways.append((answer["plan"]["peak_bytes"], answer["plan"]))
        limit = answer["plan"]["peak_bytes"] - GRANULE


def run_on(limit, plan, *args, model="deep"):
    """Runs the request on a device that is just large enough; its SHA-256."""
    with Deep(model, device=f"cpu:{limit}", config=ONE_THREAD) as d:
        said = d.cli("plan", "--model", model, "--json", *shape(model), *args)
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


def test_two_experts_take_turns():
    ways = all_ways(model="pair")
    kinds = [way_of(plan) for _, plan in ways]
    assert (True, ()) in kinds and (True, ("text_encoder", "dit_high", "dit_low")) in kinds, kinds
    assert len({run_on(limit, plan, model="pair") for limit, plan in ways}) == 1


def test_the_second_expert_comes_early_when_there_is_room():
    limit, plan = next((peak, plan) for peak, plan in all_ways("--streaming", "off", model="pair")
                       if plan["by_phase"])
    weights = {c["component"]: c["planned_bytes"] for c in plan["components"]}
    room = limit + weights["dit_low"]
    assert room < plan["weight_bytes"] + plan["workspace_bytes"] + plan["activation_bytes"], plan
    with Deep("pair", device=f"cpu:{room}", config=ONE_THREAD) as d:
        job = d.submit("--streaming", "off")
        assert d.wait_state(job, ["done", "failed"], 120)["state"] == "done"
        lines = d.cli("explain", job, "--json").json["lines"]
        loads = [line for line in lines if "component_load" in line and "dit" in line]
        assert "dit_high" in loads[0] and "dit_low" in loads[1], loads
        # No unload of the first expert came before: both were there.
        assert not any("component_unload" in line and "dit_high" in line
                       for line in lines[:lines.index(loads[1])]), lines
        check_sums(d.memory())


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
        result = d.cli("generate", "x", "--model", "deep", "--json", *shape("deep"))
        assert result.code == 3 and result.json["error"]["refusal"]["when"] == "never", result
        check_sums(d.memory())


def test_without_host_memory_nothing_streams():
    limit = all_ways()[-1][0]
    with Deep(device=f"cpu:{limit}", config="threads: 1\nhost_memory: 0\n") as d:
        assert d.cli("plan", "--model", "deep", *shape("deep")).code == 3
        result = d.cli("generate", "x", "--model", "deep", "--json", "--streaming", "on", *shape("deep"))
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
