"""The main job: load, generate, watch, fetch, memory true to the byte, unload."""
import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import threading

from harness import LEDGER, MODEL, SLUICE, Daemon, Skip, check_sums, partials, run, shared_model_root

SHAPE = ["--width", "64", "--height", "64", "--frames", "9", "--steps", "2"]


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def generate(d, path, *args, prompt="a red circle moves from left to right"):
    """The job's JSON; the file is at path, whole and nothing beside it."""
    result = d.cli("generate", prompt, "--model", MODEL, "-o", path, "--json", *args)
    assert result.code == 0, result
    whole = os.path.join(d.folder, path)
    answer = result.json
    assert answer["output"]["sha256"] == sha256(whole) == answer["job"]["output_sha256"]
    assert os.path.getsize(whole) == answer["job"]["output_size_bytes"]
    assert not os.path.exists(whole + ".part")
    assert answer["job"]["planned_peak_bytes"] == answer["job"]["measured_peak_bytes"] > 0
    return answer["job"]


class Sampler(threading.Thread):
    """Asks for the ledger as often as it can, until told to stop."""

    def __init__(self, daemon):
        super().__init__()
        self.daemon_under_test, self.samples, self.error = daemon, [], None
        self.halt = threading.Event()

    def run(self):
        try:
            while not self.halt.is_set():
                memory = self.daemon_under_test.memory()
                check_sums(memory)
                self.samples.append(memory)
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.halt.set()
        self.join()
        if exc[0] is None and self.error:
            raise self.error


def test_load_generate_unload_with_true_numbers():
    with Daemon() as d:
        models = d.cli("models", "--json").json["models"]
        assert [m["name"] for m in models] == [MODEL] and models[0]["problem"] == "", models
        before = d.memory()
        check_sums(before)
        assert before["weights_bytes"] == before["activations_bytes"] == 0, before

        with Sampler(d) as sampler:
            loaded = d.cli("load", MODEL, "--json")
            assert loaded.code == 0, loaded
            receipt = loaded.json["receipt"]
            assert receipt["residue_bytes"] == 0, receipt
            assert len(receipt["components"]) == 3
            for c in receipt["components"]:
                assert c["planned_bytes"] == c["measured_bytes"] > 0, receipt
            weights = sum(c["measured_bytes"] for c in receipt["components"])
            assert receipt["device_after_bytes"] - receipt["device_before_bytes"] == weights
            assert d.memory()["weights_bytes"] == weights

            job = generate(d, "a.mp4", "--width", "128", "--height", "128", "--frames", "17")
            assert job["plan"]["peak_bytes"] == job["planned_peak_bytes"], job
        busy = [m for m in sampler.samples if m["activations_bytes"] > 0]
        assert busy, f"no sample of {len(sampler.samples)} was taken while the job ran"
        for m in busy:
            assert m["activations_bytes"] == job["plan"]["activation_bytes"], m
            assert m["arena_peak_bytes"] <= job["planned_peak_bytes"], m

        after = d.memory()
        check_sums(after)
        assert after["weights_bytes"] == weights and after["activations_bytes"] == 0, after
        assert after["arena_peak_bytes"] == job["planned_peak_bytes"], after

        unloaded = d.cli("unload", MODEL, "--json")
        assert unloaded.code == 0, unloaded
        receipt = unloaded.json["receipt"]
        assert receipt["residue_bytes"] == 0, receipt
        assert receipt["device_before_bytes"] - receipt["device_after_bytes"] == weights, receipt
        end = d.memory()
        check_sums(end)
        assert end["weights_bytes"] == 0, end
        assert end["arena_mapped_bytes"] == before["arena_mapped_bytes"], (before, end)
        assert not partials(d)
        assert d.stop() == 0
        assert not os.path.exists(d.socket)


def test_the_same_request_twice_is_the_same_bytes():
    with Daemon() as d:
        first = generate(d, "a.mp4", *SHAPE, "--seed", "5")
        second = generate(d, "b.mp4", *SHAPE, "--seed", "5")
        other = generate(d, "c.mp4", *SHAPE, "--seed", "6")
        words = generate(d, "d.mp4", *SHAPE, "--seed", "5", prompt="a blue square")
        assert first["job_id"] != second["job_id"]
        assert first["output_sha256"] == second["output_sha256"]
        assert len({j["output_sha256"] for j in (first, other, words)}) == 3
        # and in another process, loaded by another worker
        with Daemon() as e:
            assert generate(e, "a.mp4", *SHAPE, "--seed", "5")["output_sha256"] == \
                first["output_sha256"]


def test_samplers_steps_and_precisions():
    tiny = ["--width", "64", "--height", "64", "--frames", "5"]
    with Daemon() as d:
        jobs = [generate(d, "x.y4m", *tiny, *args) for args in (
            ["--sampler", "sde", "--steps", "4"], ["--sampler", "ode", "--steps", "4"],
            ["--steps", "1"], ["--steps", "2"], ["--steps", "3"],
            ["--steps", "3", "--sigma-max", "40"])]
        seen = [job["output_sha256"] for job in jobs]
        assert len(set(seen)) == len(seen), seen
        defaults = generate(d, "x.y4m", *tiny)
        assert defaults["output_sha256"] == seen[0], "SDE in 4 steps is not the default"
        f32 = generate(d, "x.y4m", *tiny, "--precision", "f32")
        assert f32["plan"]["weight_bytes"] > jobs[0]["plan"]["weight_bytes"], f32
        assert f32["request"]["precision"] == "f32" and jobs[0]["request"]["precision"] == "bf16"
        # Both precisions stay loaded while there is room: one model, two sets.
        check_sums(d.memory())


def test_formats():
    with Daemon() as d:
        generate(d, "a.y4m", *SHAPE)
        with open(os.path.join(d.folder, "a.y4m"), "rb") as f:
            y4m = f.read()
        head, body = y4m.split(b"\n", 1)
        assert head.startswith(b"YUV4MPEG2 W64 H64 F16:1"), head
        assert len(body) == 9 * (len(b"FRAME\n") + 64 * 64 * 3 // 2), len(body)

        generate(d, "a.png", *SHAPE)
        with open(os.path.join(d.folder, "a.png"), "rb") as f:
            png = f.read()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", png[16:24]) == (64 * 9, 64)


def test_mp4_plays():
    if not shutil.which("ffprobe"):
        raise Skip("no ffprobe")
    with Daemon() as d:
        generate(d, "a.mp4", *SHAPE)
        probe = subprocess.run(["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of",
                                "json", os.path.join(d.folder, "a.mp4")], capture_output=True,
                               text=True, check=True, timeout=30)
        assert probe.stderr == "", probe.stderr
        video = json.loads(probe.stdout)["streams"][0]
        assert video["codec_name"] == "h264" and video["pix_fmt"] == "yuv420p", video
        assert video["avg_frame_rate"] == "16/1" and video["nb_read_frames"] == "9", video
        assert (video["width"], video["height"]) == (64, 64), video


def test_events_of_a_watched_job():
    with Daemon() as d:
        job_id = d.submit(*SHAPE)
        for _ in range(2):  # the second one sees the same story, from the beginning
            watched = d.cli("watch", job_id, "--json")
            assert watched.code == 0, watched
            events = [line["event"] for line in watched.lines[:-1]]
            assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), events
            steps = [e["step"] for e in events if e["state"] == "denoising" and e["step"] > 0]
            assert steps == sorted(set(steps)) and steps[-1] == 2, events
            states = [e["state"] for e in events]
            order = [s for i, s in enumerate(states) if i == 0 or states[i - 1] != s]
            for state in ("queued", "encoding", "denoising", "decoding", "done"):
                assert state in order, order
            assert len(order) == len(set(order)), order
            assert watched.lines[-1]["job"]["state"] == "done"
        listed = d.cli("jobs", "--json").json["jobs"]
        assert [j["job_id"] for j in listed] == [job_id]
        assert d.cli("jobs", "--active", "--json").json["jobs"] == []
        text = d.cli("watch", job_id)
        assert "step 2 of 2" in text.err, text


def test_the_prompt_stays_out_of_jobs_and_logs():
    secret = "wolframite xylophone"
    with Daemon() as d:
        job = generate(d, "a.mp4", *SHAPE, prompt=secret)
        assert job["request"]["prompt"] == ""
        assert "wolframite" not in d.log() and "wolframite" not in d.cli("jobs", "--json").out


def test_fetch_continues_and_refuses_what_is_not_done():
    with Daemon() as d:
        job_id = d.submit(*SHAPE)
        d.wait_state(job_id, ["done"])
        assert d.cli("fetch", job_id, "-o", "a.mp4").code == 0
        with open(os.path.join(d.folder, "a.mp4"), "rb") as f:
            whole = f.read()
        with open(os.path.join(d.folder, "b.mp4.part"), "wb") as f:
            f.write(whole[:1000])
        result = d.cli("fetch", job_id, "-o", "b.mp4", "--json")
        assert result.code == 0 and result.json["output"]["resumed_bytes"] == 1000, result
        assert sha256(os.path.join(d.folder, "b.mp4")) == hashlib.sha256(whole).hexdigest()
        default = d.cli("fetch", job_id)
        assert default.code == 0 and os.path.exists(os.path.join(d.folder, job_id + ".mp4"))

        long_job = d.submit("--width", "256", "--height", "256", "--frames", "81")
        early = d.cli("fetch", long_job, "-o", "c.mp4", "--json")
        assert early.code == 1 and early.json["error"]["code"] == "FAILED_PRECONDITION", early
        assert not [n for n in os.listdir(d.folder) if n.startswith("c.mp4")]
        assert d.cli("cancel", long_job).code == 0
        assert d.cli("fetch", "no-such-job", "-o", "c.mp4").code == 1


def test_a_fetch_that_cannot_write_leaves_what_it_has():
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    with Daemon() as d:
        job_id = d.submit(*SHAPE, "--format", "y4m")
        size = d.wait_state(job_id, ["done"])["output_size_bytes"]
        assert size > 5000
        got = subprocess.run([SLUICE, "fetch", job_id, "-o", "a.y4m", "--socket", d.socket],
                             capture_output=True, text=True, check=False, timeout=60, cwd=d.folder,
                             preexec_fn=small_files)
        assert got.returncode == 1 and "a.y4m.part" in got.stderr, got
        assert sorted(n for n in os.listdir(d.folder) if n.startswith("a.")) == ["a.y4m.part"]
        again = d.cli("fetch", job_id, "-o", "a.y4m", "--json")
        assert again.code == 0 and again.json["output"]["size_bytes"] == size, again
        assert os.path.getsize(os.path.join(d.folder, "a.y4m")) == size


def test_a_request_id_names_one_job():
    with Daemon() as d:
        args = ["--request-id", "my-job.1", "--model", MODEL, "--detach", "--json", *SHAPE]
        first = d.cli("generate", "a red circle", *args)
        again = d.cli("generate", "a red circle", *args)
        assert first.code == again.code == 0, (first, again)
        assert first.json["job"]["job_id"] == again.json["job"]["job_id"]
        for other in (["a blue square", *args], ["a red circle", *args, "--seed", "9"]):
            refused = d.cli("generate", *other)
            assert refused.code == 1, refused
            assert refused.json["error"]["code"] == "ALREADY_EXISTS", refused
        by_request = d.job("my-job.1")
        assert by_request["job_id"] == first.json["job"]["job_id"]
        d.wait_state(by_request["job_id"], ["done"])
        after = d.cli("generate", "a red circle", *args)
        assert after.json["job"]["state"] == "done"
        assert len(d.cli("jobs", "--json").json["jobs"]) == 1


def test_what_is_invalid_names_the_nearest():
    with Daemon() as d:
        for args, field, nearest in ((["--width", "100"], "width", "96"),
                                     (["--height", "8"], "height", "16"),
                                     (["--frames", "18"], "frames", "17"),
                                     (["--steps", "9"], "steps", "4")):
            for command in (["generate", "x"], ["plan", "x"]):
                result = d.cli(*command, "--model", MODEL, "--json", *args)
                assert result.code == (2 if command[0] == "generate" else 1), result
                error = result.json["error"]
                assert error["code"] == "INVALID_ARGUMENT", error
                assert error["field"]["field"] == field, error
                assert error["field"]["nearest"] == nearest, error
        for args, code in ((["--model", "no-such-model"], 1), (["--model", "../tiny"], 2),
                           (["--sampler", "euler"], 2), (["--frames", "many"], 2)):
            result = d.cli("generate", "x", "--json", *args)
            assert result.code == code, result
        assert d.cli("jobs", "--json").json["jobs"] == []
        nowhere = d.cli("generate", "x", "-o", "no/such/folder/a.mp4")
        assert nowhere.code == 1 and d.cli("jobs", "--json").json["jobs"] == [], nowhere


def test_components_one_by_one():
    with Daemon() as d:
        assert d.cli("load", MODEL, "-c", "vae", "-c", "text_encoder").code == 0
        held = {c["component"]: c for c in d.memory()["components"]}
        assert set(held) == {"vae", "text_encoder"} and all(c["pinned"] for c in held.values())
        again = d.cli("load", MODEL, "-c", "vae", "--json")
        assert again.code == 0, again
        assert d.cli("unload", MODEL, "-c", "vae").code == 0
        memory = d.memory()
        check_sums(memory)
        assert [c["component"] for c in memory["components"]
                if c["residency"] == "device"] == ["text_encoder"]
        assert d.cli("unload").code == 0
        assert d.memory()["weights_bytes"] == 0
        for words in (["unload"], ["unload", MODEL], ["unload", MODEL, "-c", "dit"]):
            nothing = d.cli(*words, "--json")  # idempotent
            assert nothing.code == 0 and nothing.json["receipt"]["components"] == [], nothing
        assert d.cli("load", MODEL, "-c", "dit_high", "--json").code in (1, 2)
        assert d.cli("load", "no-such-model").code == 1
        assert d.cli("unload", MODEL, "-c", "engine").code == 2


def test_plan_and_budget_say_the_same():
    with Daemon() as d:
        asked = ["--frames", "9", "--steps", "3", "--width", "96", "--height", "64", "--json"]
        plan = d.cli("plan", "--model", MODEL, *asked)
        assert plan.code == 0 and plan.json["admitted_now"], plan
        budget = subprocess.run([SLUICE, "budget", "--model",
                                 os.path.join(shared_model_root(), MODEL), "--device", "cpu:2GiB",
                                 *asked], capture_output=True, text=True, check=False, timeout=30)
        assert budget.returncode == 0, budget
        for name in ("activation_bytes", "weight_bytes", "workspace_bytes", "peak_bytes",
                     "device_bytes", "phases", "table_row"):
            assert plan.json["plan"][name] == json.loads(budget.stdout)["plan"][name], name
        job = generate(d, "a.mp4", *asked[:-1])
        assert job["planned_peak_bytes"] == plan.json["plan"]["peak_bytes"]
        row = subprocess.run([SLUICE, "budget", "--model", "tiny-t2v", "--device", "cpu:2GiB",
                              *asked], capture_output=True, text=True, check=False, timeout=30)
        assert json.loads(row.stdout)["plan"]["peak_bytes"] == plan.json["plan"]["peak_bytes"]


def test_the_command_without_a_daemon():
    with Daemon(start=False) as d:
        for command in (["health"], ["stats"], ["models"], ["generate", "x"], ["cancel", "x"]):
            result = d.cli(*command, "--json")
            assert result.code == 4, result
            assert result.json["error"]["code"] == "UNAVAILABLE" and not result.json["error"]["answered"]
        for code, *words in ((2, "no-such-command"), (2, "generate"), (2, "generate", "a", "b"),
                             (2, "stats", "--steps", "3"), (1, "budget", "--model", "nothing"),
                             (0, "help"), (0, "help", "budget"), (0, "synth-model", "--help")):
            got = subprocess.run([SLUICE, *words], capture_output=True, text=True, check=False,
                                 timeout=10)
            assert got.returncode == code, (words, got)


def test_inspect_and_a_broken_model():
    with Daemon(start=False) as d:
        root = os.path.join(d.folder, "models")
        shutil.copytree(os.path.join(shared_model_root(), MODEL), os.path.join(root, MODEL))
        def inspect():
            got = subprocess.run([SLUICE, "inspect", os.path.join(root, MODEL), "--json"],
                                 capture_output=True, text=True, check=False, timeout=30)
            return got.returncode, json.loads(got.stdout)
        assert inspect()[0] == 0 and inspect()[1]["arch"] == "tiny-t2v"
        file = os.path.join(root, MODEL, "diffusion_pytorch_model.safetensors")
        with open(file, "r+b") as f:
            f.truncate(os.path.getsize(file) // 2)
        code, answer = inspect()
        assert code == 1, answer
        assert "diffusion_pytorch_model" in json.dumps(answer), answer


def test_the_ledger_as_text_sums():
    with Daemon() as d:
        d.cli("load", MODEL)
        text = d.cli("stats")
        assert text.code == 0 and "= the sum" in text.out, text
        numbers = {}
        for line in text.out.splitlines():
            words = line.split()
            if words and words[0] + "_bytes" in LEDGER + ("total_bytes",):
                numbers[words[0]] = int(words[1].replace(",", ""))
        assert len(numbers) == 9, numbers
        total = numbers.pop("total")
        assert sum(numbers.values()) == total, text


run(globals())
