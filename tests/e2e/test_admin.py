"""Running a daemon: switch, trim, reset, drain, reload, clean, doctor, explain,
events, top; priorities and deadlines."""
import json
import os
import signal
import subprocess
import time

from harness import BUILD, MODEL, PATIENCE, SLUICE, SLUICED, Daemon, Skip, check_sums, run, wait_for

SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "1"]
MIDDLE = ["--width", "192", "--height", "192", "--frames", "17", "--steps", "4", "--seed", "3"]
LONG = ["--width", "512", "--height", "512", "--frames", "81"]
OTHER = "other"


def two_model_root():
    """A folder with two models of the same kind and different weights."""
    root = os.path.join(BUILD, "e2e-two-models")
    for seed, name in ((1, MODEL), (2, OTHER)):
        subprocess.run([SLUICE, "synth-model", "--arch", "tiny-t2v", "--seed", str(seed),
                        os.path.join(root, name)], check=True, stdout=subprocess.DEVNULL,
                       timeout=120 * PATIENCE)
    return root


class TwoModels(Daemon):
    def command(self):
        return [SLUICED, "--device", self.device, "--models", two_model_root(), "--outputs",
                self.outputs, "--runtime", self.runtime]


def attempt(d, *words):
    """A command with --json, which this daemon may not know yet."""
    result = d.cli(*words, "--json", limit_s=120)
    if result.code == 1 and result.json.get("error", {}).get("code") == "UNIMPLEMENTED":
        assert result.json["error"]["answered"], result
        text = d.cli(*words)
        assert text.code == 1 and f"this daemon cannot do `{words[0]}`" in text.err, text
        raise Skip(f"no {words[0]} in this daemon")
    assert result.code == 0, result
    return result


def ask(d, *words):
    return attempt(d, *words).json


def test_top_shows_what_runs():
    with Daemon() as d:
        job = d.submit(*LONG)
        d.wait_state(job, ["denoising"])
        frame = d.cli("top", "--once")
        assert frame.code == 0, frame
        for part in (f"{MODEL}/dit", "denoising", job, "1 running", "memory", "in use"):
            assert part in frame.out, (part, frame)
        assert "\x1b" not in frame.out, frame
        assert d.cli("top").code == 2  # no terminal
        got = d.cli("top", "--json").json
        assert [j["job_id"] for j in got["jobs"]] == [job] and got["health"]["ready"], got
        check_sums(got["devices"][0])
        d.cli("cancel", job)


def test_switch_prints_each_step():
    with TwoModels() as d:
        assert d.cli("load", MODEL).code == 0
        full = d.memory()
        current, pid = MODEL, full["worker_pid"]
        for release in ("--soft", "--full", "--hard"):
            target = OTHER if current == MODEL else MODEL
            got = ask(d, "switch", target, release)
            assert len(got["steps"]) == 3 and got["duration_ns"] > 0, got
            for step in got["steps"]:
                assert step["duration_ns"] >= 0 and step["name"], step
                assert not step["receipt"] or step["receipt"]["residue_bytes"] == 0, step
            memory = d.memory()
            check_sums(memory)
            assert memory["weights_bytes"] == full["weights_bytes"], memory
            assert {c["model"] for c in memory["components"]
                    if c["measured_bytes"] > 0 and c["component"] == "dit"} == {target}, memory
            assert (memory["worker_pid"] != pid) == (release == "--hard"), (release, memory)
            current, pid = target, memory["worker_pid"]
            done = d.cli("generate", "x", "--model", target, "-o", f"{release}.mp4", *SMALL)
            assert done.code == 0, done
        text = d.cli("switch", MODEL)
        assert text.code == 0 and "FREE BEFORE" in text.out and "PEAK" in text.out, text


def test_soft_keeps_the_host_image_and_full_does_not():
    with Daemon() as d:
        ask(d, "load", MODEL)
        memory = d.memory()
        if not memory["host"] or memory["host"]["limit_bytes"] == 0:
            raise Skip("no host tier in this daemon")
        ask(d, "unload", MODEL, "--soft")
        soft = d.memory()
        assert soft["weights_bytes"] == 0 and soft["host"]["used_bytes"] > 0, soft
        ask(d, "unload", MODEL, "--full")
        gone = d.memory()
        assert gone["host"]["used_bytes"] == 0, gone
        ask(d, "load", MODEL, "--residency", "host")
        image = d.memory()
        assert image["weights_bytes"] == 0 and image["host"]["used_bytes"] > 0, image
        for memory in (soft, gone, image):
            check_sums(memory)
            host = memory["host"]
            assert host["used_bytes"] + host["free_bytes"] == host["limit_bytes"], host
        assert d.cli("stats").code == 0


def test_trim_leaves_a_job_alone():
    with Daemon() as d:
        whole = d.wait_state(d.submit(*MIDDLE), ["done"], 120)
        job = d.submit(*MIDDLE)
        d.wait_state(job, ["denoising"])
        receipt = ask(d, "trim")["receipt"]
        assert not receipt or receipt["residue_bytes"] == 0, receipt
        assert d.wait_state(job, ["done"], 120)["output_sha256"] == whole["output_sha256"]
        check_sums(d.memory())


def test_reset_loses_no_job():
    with Daemon() as d:
        whole = d.wait_state(d.submit(*MIDDLE), ["done"], 120)
        job = d.submit(*MIDDLE)
        d.wait_state(job, ["denoising"])
        before = d.worker_pid()
        got = ask(d, "reset", "--hard")
        assert got["old_pid"] == before and got["new_pid"] not in (0, before), got
        done = d.wait_state(job, ["done", "failed", "cancelled"], 120)
        assert done["state"] == "done", done
        assert done["output_sha256"] == whole["output_sha256"]
        assert d.cli("reset").code == 2  # without --hard
        check_sums(d.memory())


def test_unload_now_puts_the_job_back():
    with Daemon() as d:
        whole = d.wait_state(d.submit(*MIDDLE), ["done"], 120)
        ask(d, "trim")  # came with --now
        job = d.submit(*MIDDLE)
        d.wait_state(job, ["denoising"])
        ask(d, "unload", MODEL, "--now")
        done = d.wait_state(job, ["done", "failed", "cancelled"], 120)
        assert done["state"] == "done", done
        assert done["output_sha256"] == whole["output_sha256"]
        check_sums(d.memory())


def test_drain_and_off():
    with Daemon() as d:
        ask(d, "drain")
        job = d.submit(*SMALL)
        time.sleep(0.5)
        assert d.job(job)["state"] == "queued", d.job(job)
        assert ask(d, "drain")["queued_jobs"] == 1
        ask(d, "drain", "--off")
        assert d.wait_state(job, ["done", "failed"])["state"] == "done"


def test_reload_keeps_jobs():
    with Daemon() as d:
        job = d.submit(*MIDDLE)
        assert isinstance(ask(d, "reload")["changed"], list)
        assert d.wait_state(job, ["done", "failed"], 120)["state"] == "done"


TABLE = """rows:
  - name: this test
    kind: cpu
    forbid:
      - text: no video of more than {pixels} pixels
        pixels_above: {pixels}
"""


class WithTable(Daemon):
    def command(self):
        config = os.path.join(self.folder, "sluice.yaml")
        if not os.path.exists(config):
            self.write_table(TABLE.format(pixels=10 ** 6))
            with open(config, "w", encoding="utf-8") as f:
                f.write(f"budget: {self.table()}\n")
        return [*super().command(), "--config", config]

    def table(self):
        return os.path.join(self.folder, "budget.yaml")

    def write_table(self, text):
        with open(self.table(), "w", encoding="utf-8") as f:
            f.write(text)


def test_a_table_is_read_again_and_a_wrong_one_is_not():
    with WithTable() as d:
        plan = ["plan", "--model", MODEL, "--width", "128", "--height", "128", "--frames", "5"]
        assert d.cli(*plan).code == 0
        job = d.submit(*MIDDLE)
        d.wait_state(job, ["denoising"])
        d.write_table(TABLE.format(pixels=100 * 100))
        assert ask(d, "reload")["changed"], "the table has changed"
        refused = d.cli(*plan, "--json")
        assert refused.code == 3, refused
        refusal = refused.json["refusal"]
        assert refusal["table_row"] == "this test" and "10000 pixels" in refusal["table_rule"], refusal
        nearest = refusal["nearest"]
        assert nearest["exists"] and nearest["width"] * nearest["height"] <= 10000, nearest
        d.write_table("rows: [ {name: broken")
        wrong = d.cli("reload", "--json")
        assert wrong.code == 1 and "budget.yaml" in wrong.json["error"]["message"], wrong
        assert d.cli(*plan).code == 3, "the last good table holds"
        # one that was admitted before goes on
        assert d.wait_state(job, ["done", "failed"], 120)["state"] == "done"


def test_clean_removes_only_what_is_old():
    with Daemon() as d:
        job = d.wait_state(d.submit(*SMALL), ["done"])["job_id"]
        assert ask(d, "clean", "--older-than", "7d")["files"] == 0
        time.sleep(1.2)
        would = ask(d, "clean", "--older-than", "1s", "--dry-run")
        assert would["files"] == 1 and would["bytes"] > 0 and job in would["names"][0], would
        assert [n for n in os.listdir(d.outputs) if n.startswith(job)]
        assert ask(d, "clean", "--older-than", "1s") == would
        assert not [n for n in os.listdir(d.outputs) if n.startswith(job)]
        assert d.cli("fetch", job, "-o", "x.mp4").code == 1
        assert d.cli("clean").code == 2


def test_doctor_finds_nothing():
    with Daemon() as d:
        d.wait_state(d.submit(*SMALL), ["done"])
        got = ask(d, "doctor")
        assert got["ok"] and got["lines"] and all(line["ok"] for line in got["lines"]), got
        text = d.cli("doctor")
        assert text.code == 0 and "NOT OK" not in text.out and "OK" in text.out, text


def test_doctor_and_events_tell_of_a_dead_worker():
    with Daemon() as d:
        ask(d, "doctor")
        before = d.worker_pid()
        os.kill(before, signal.SIGKILL)
        wait_for("a new worker", lambda: (lambda m: m["worker_up"] and m["worker_pid"] != before)(
            d.memory()))
        sick = d.cli("doctor", "--json")
        assert sick.code == 1 and not sick.json["ok"], sick
        bad = [line for line in sick.json["lines"] if not line["ok"]]
        assert [line["check"] for line in bad] == ["restarts"] and bad[0]["advice"], bad
        text = d.cli("doctor")
        assert text.code == 1 and "NOT OK" in text.out and "do: " in text.out, text
        assert "worker_exit" in d.cli("events").out


def test_explain_has_the_bytes():
    with Daemon() as d:
        job = d.wait_state(d.submit(*SMALL), ["done"])["job_id"]
        got = ask(d, "explain", job)
        lines = "\n".join(got["lines"])
        assert got["job"]["job_id"] == job
        for word in ("device_before", "device_after", "peak"):
            assert word in lines, got
        assert "red circle" not in json.dumps(got), "the prompt"
        assert d.cli("explain", "no-such-job").code == 1


def test_events_follow_each_other():
    with Daemon() as d:
        assert d.cli("load", MODEL).code == 0
        events = [line["event"] for line in attempt(d, "events").lines]
        assert events and [e["seq"] for e in events] == sorted({e["seq"] for e in events}), events
        assert any(e["kind"].startswith("load") for e in events), events
        follower = d.cli_start("events", "--follow")
        time.sleep(0.5)
        assert d.cli("unload", MODEL).code == 0
        wait_for("an event of the unload",
                 lambda: "unload" in d.cli("events").out, 10)
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate(timeout=20 * PATIENCE)
        assert follower.returncode == 0 and "unload" in out, (follower.returncode, out, err)


def test_a_deadline_that_cannot_be_met():
    with Daemon() as d:
        result = d.cli("generate", "x", "--model", MODEL, "-d", "--json", *LONG, "--deadline", "1s")
        if result.code == 0:
            d.cli("cancel", result.json["job"]["job_id"])
            raise Skip("no deadlines in this daemon")
        assert result.code == 7, result
        refusal = result.json["error"]["refusal"]
        assert refusal["estimate_ns"] > refusal["deadline_ns"] == 10 ** 9, refusal
        assert d.cli("jobs", "--json").json["jobs"] == []


run(globals())
