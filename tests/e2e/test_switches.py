"""An operator's day on one card: every switch between three models, each way.

Stand-ins of Wan2.1 T2V 1.3B, T2V 14B and Wan2.2 I2V A14B under a cap that does
not hold all of them; after each of the 27 switches a job of the model's kind
runs.  Prints the table of all figures.
"""
import os
import threading

from harness import BUILD, Daemon, check_sums, made_once, png, run, synth

KINDS = {"1.3b": "tiny-t2v", "14b": "small-t2v", "a14b": "small-i2v"}
DEVICE = "cpu:330MiB"
CONFIG = "threads: 2\nhost_memory: 1GiB\n"
MIB = 1 << 20


def make_models(root):
    for seed, (name, arch) in enumerate(KINDS.items()):
        synth(arch, os.path.join(root, name), seed + 1)


def models():
    return made_once("e2e-switches", make_models)


def picture():
    path = os.path.join(BUILD, "e2e-switches", "first.png")
    return path if os.path.exists(path) else png(path, 64, 48)


def request(name):
    words = ["a red circle", "--model", name, "--width", "64", "--height", "48", "--frames", "9",
             "-o", "out.y4m"]
    return words + (["--image", picture()] if name == "a14b" else [])


def job_of(d, name):
    done = d.cli("generate", *request(name), "--json", limit_s=120)
    assert done.code == 0, done
    job = done.json["job"]
    assert job["planned_peak_bytes"] == job["measured_peak_bytes"] > 0, job
    return job


def resident(memory):
    return {c["model"] for c in memory["components"]
            if c["measured_bytes"] > 0 and c["component"].startswith("dit")}


def test_the_27_switches():
    shas = {}
    rows = []
    with Daemon(device=DEVICE, models=models(), config=CONFIG) as d:
        limit, workspace = (d.memory()[k] for k in ("limit_bytes", "workspace_bytes"))
        for name in KINDS:
            assert d.cli("load", name).code == 0
            weights = d.memory()["weights_bytes"]
            assert d.cli("unload", name, "--full").code == 0
            rows.append((name, weights))
        assert workspace + sum(w for _, w in rows) > limit, (rows, limit)  # not all of them fit
        rows = []
        pid = d.worker_pid()
        for how in ("--soft", "--full", "--hard"):
            for old in KINDS:
                for new in KINDS:
                    first = d.cli("switch", old, "--json", limit_s=120)
                    assert first.code == 0, first
                    assert resident(d.memory()) == {old}, d.memory()
                    pid = d.worker_pid()
                    got = d.cli("switch", new, how, "--json", limit_s=120)
                    assert got.code == 0, got
                    steps = got.json["steps"]
                    assert len(steps) == 3, got
                    for step in steps:
                        receipt = step["receipt"]
                        assert not receipt or receipt["residue_bytes"] == 0, step
                        assert step["peak_bytes"] <= limit, step
                    memory = d.memory()
                    check_sums(memory)
                    assert resident(memory) == {new}, memory
                    assert (memory["worker_pid"] != pid) == (how == "--hard"), (how, memory)
                    job = job_of(d, new)
                    shas.setdefault(new, job["output_sha256"])
                    assert job["output_sha256"] == shas[new], (old, new, how)
                    check_sums(d.memory())
                    rows.append((old, new, how[2:], got.json["duration_ns"], steps, job))
    print(f"{'from':>5} {'to':>5} {'way':>4} {'ms':>6}  step: ms, free before -> after, peak (MiB)"
          "  | job peak planned = measured")
    for old, new, how, ns, steps, job in rows:
        cells = "; ".join(
            f"{s['name']} {s['duration_ns'] / 1e6:.0f}, {s['free_before_bytes'] / MIB:.0f} -> "
            f"{s['free_after_bytes'] / MIB:.0f}, {s['peak_bytes'] / MIB:.0f}" for s in steps)
        print(f"{old:>5} {new:>5} {how:>4} {ns / 1e6:6.0f}  {cells}  | "
              f"{job['planned_peak_bytes'] / MIB:.0f} MiB")
    assert len(rows) == 27


def test_a_load_and_a_job_join():
    """LoadModel and Generate for one model at the same time: it is read once."""
    with Daemon(device=DEVICE, models=models(), config=CONFIG) as d:
        results = {}

        def load():
            results["load"] = d.cli("load", "14b", "--json", limit_s=120)

        def generate():
            results["job"] = d.cli("generate", *request("14b"), "--json", limit_s=120)

        threads = [threading.Thread(target=f) for f in (load, generate)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results["load"].code == 0 and results["job"].code == 0, results
        loads = [line for line in d.log().splitlines()
                 if "component_load" in line and '"14b/dit (bf16)"' in line]
        assert len(loads) == 1, loads
        check_sums(d.memory())


run(globals())
