"""Models that have the same text encoder and VAE have one of each between them."""
import os
import shutil

from harness import Daemon, check_sums, made_once, run, synth, wait_for

SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "1", "--format", "y4m"]


def make_models(root):
    """a and b differ in their transformer alone; c in everything."""
    synth("tiny-t2v", os.path.join(root, "a"), 1)
    synth("tiny-t2v", os.path.join(root, "c"), 2)
    shutil.copytree(os.path.join(root, "a"), os.path.join(root, "b"))
    for name in os.listdir(os.path.join(root, "c")):
        if "diffusion" in name or "dit" in name:
            shutil.copy(os.path.join(root, "c", name), os.path.join(root, "b", name))


def daemon(**kwargs):
    return Daemon(models=made_once("e2e-shared", make_models), **kwargs)


def submit(d, model, *args):
    result = d.cli("generate", "a red circle", "--model", model, "--detach", "--json", *SMALL,
                   *args)
    assert result.code == 0, result
    return result.json["job"]["job_id"]


def sha_of(d, model):
    return d.wait_state(submit(d, model), ["done"])["output_sha256"]


def on_device(d):
    """(model, component) of all that is there, with who shares it."""
    return {(c["model"], c["component"]): c["models"] for c in d.memory()["components"]
            if c["residency"] == "device"}


def alone():
    shas = {}
    for model in "abc":
        with daemon() as d:
            shas[model] = sha_of(d, model)
    assert len(set(shas.values())) == 3, shas
    return shas


def test_one_between_them():
    want = alone()
    with daemon() as d:
        assert {m: sha_of(d, m) for m in "abc"} == want
        there = on_device(d)
        assert set(there) == {("a", "text_encoder"), ("a", "vae"), ("a", "dit"), ("b", "dit"),
                              ("c", "text_encoder"), ("c", "vae"), ("c", "dit")}, there
        assert there["a", "vae"] == ["a", "b"] and there["c", "vae"] == ["c"], there
        assert d.log().count("component_load") == 7, d.log()
        listed = {m["name"]: {c["component"] for c in m["resident"]}
                  for m in d.cli("models", "--json").json["models"]}
        assert listed["b"] == {"text_encoder", "vae", "dit"}, listed
        check_sums(d.memory())


def test_an_unload_leaves_what_another_model_uses():
    with daemon() as d:
        for model in "ab":
            sha_of(d, model)
        assert d.cli("unload", "a").code == 0
        assert set(on_device(d)) == {("a", "text_encoder"), ("a", "vae"), ("b", "dit")}
        assert d.cli("unload", "b", "--full").code == 0
        memory = d.memory()
        assert memory["weights_bytes"] == 0, memory
        # What a had of its own was unloaded softly.
        assert [c["component"] for c in memory["components"]] == ["dit"], memory
        check_sums(memory)
        assert d.cli("unload", "--full").code == 0
        assert d.memory()["host"]["used_bytes"] == 0


def test_loads_and_switches_share():
    with daemon() as d:
        assert d.cli("load", "a").code == 0
        receipt = d.cli("load", "b", "--json").json["receipt"]
        loaded = receipt["device_after_bytes"] - receipt["device_before_bytes"]
        dit = next(c for c in receipt["components"] if c["component"] == "dit")
        assert loaded == dit["measured_bytes"], receipt
        assert d.cli("unload", "a").code == 0
        assert ("a", "vae") in on_device(d)
        result = d.cli("switch", "a", "--json")
        assert result.code == 0, result
        assert set(on_device(d)) == {("a", "text_encoder"), ("a", "vae"), ("a", "dit")}
        assert d.cli("unload", "b").code == 0  # refers to nothing any more
        assert len(on_device(d)) == 3
        check_sums(d.memory())


def test_the_next_jobs_weights_come_to_the_host_meanwhile():
    # On the device there is no room for both.
    config = "threads: 1\nlimits:\n  running: 1\n"
    with daemon(device="cpu:68MiB", config=config) as d:
        first = submit(d, "a", "--width", "128", "--height", "128", "--frames", "17", "--steps",
                       "4")
        d.wait_state(first, ["denoising", "decoding"])
        second = submit(d, "c")

        def on_host():
            return {c["component"] for c in d.memory()["components"]
                    if c["model"] == "c" and c["residency"] == "host"}

        wait_for("c on the host", lambda: "dit" in on_host(), 20)
        assert d.job(first)["state"] not in ("done", "failed"), "it was done too soon"
        queued = d.job(second)
        assert queued["state"] in ("queued", "admitted"), queued
        if queued["state"] == "queued":
            assert queued["estimated_start_ns"] > queued["submitted_ns"], queued
        assert d.wait_state(second, ["done"])["state"] == "done"
        check_sums(d.memory())


def test_a_file_that_changes_is_another_component():
    root = made_once("e2e-shared", make_models)
    with daemon() as d:
        shutil.copytree(root, os.path.join(d.folder, "models"))
        d.stop()
        d.models = os.path.join(d.folder, "models")
        d.start()
        want = {m: sha_of(d, m) for m in "abc"}
        # b becomes what c is, file by file.
        for name in os.listdir(os.path.join(d.models, "c")):
            source = os.path.join(d.models, "c", name)
            if os.path.isfile(source):
                shutil.copy(source, os.path.join(d.models, "b", name + ".new"))
                os.rename(os.path.join(d.models, "b", name + ".new"),
                          os.path.join(d.models, "b", name))
        wait_for("no job", lambda: not d.memory()["jobs"])
        assert d.cli("unload", "b").code == 0
        assert sha_of(d, "b") == want["c"]
        assert sha_of(d, "a") == want["a"]
        check_sums(d.memory())


run(globals())
