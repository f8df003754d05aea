"""From another network namespace, and with the cable pulled in the middle.

Needs root and ip(8); a client of its own in a namespace, joined by a veth pair.
"""
import contextlib
import hashlib
import os
import subprocess
import time

from harness import MODEL, PATIENCE, SLUICE, Result, Skip, run, wait_for
from test_tls import Lan

PULLED_S = 20
TAG = f"sl{os.getpid() % 10000}"
NET = f"10.{os.getpid() // 250 % 200 + 20}.{os.getpid() % 250}"


def ip(*args, check=True):
    return subprocess.run(["ip", *args], check=check, capture_output=True, text=True).returncode


@contextlib.contextmanager
def cable():
    """A namespace TAG with the address NET.2; ours is NET.1."""
    try:
        if ip("netns", "add", TAG, check=False) != 0:
            raise Skip("no network namespace can be made here")
    except FileNotFoundError as e:
        raise Skip("ip(8) is not there") from e
    try:
        if ip("link", "add", f"{TAG}a", "type", "veth", "peer", "name", f"{TAG}b", "netns", TAG,
              check=False) != 0:
            raise Skip("no pair of network devices can be made here")
        ip("addr", "add", f"{NET}.1/24", "dev", f"{TAG}a")
        ip("link", "set", f"{TAG}a", "up")
        for command in (f"addr add {NET}.2/24 dev {TAG}b", f"link set {TAG}b up", "link set lo up"):
            ip("-n", TAG, *command.split())
        yield
    finally:
        ip("netns", "del", TAG, check=False)
        ip("link", "del", f"{TAG}a", check=False)


def pull(seconds):
    ip("link", "set", f"{TAG}a", "down")
    time.sleep(seconds)
    ip("link", "set", f"{TAG}a", "up")


class Elsewhere(Lan):
    def __init__(self):
        super().__init__(host=f"{NET}.1")
        home = os.path.join(self.folder, "config", "sluice")
        os.makedirs(home)
        for name in ("ca.pem", "alice.pem", "alice.key"):
            os.link(os.path.join(self.certs, name), os.path.join(home, name))
        with open(os.path.join(home, "config.yaml"), "w", encoding="utf-8") as f:
            f.write(f"address: {self.url}\nca: ca.pem\ncert: alice.pem\nkey: alice.key\n")
        self.env = dict(os.environ, XDG_CONFIG_HOME=os.path.dirname(home))

    def begin(self, *args):
        return subprocess.Popen(["ip", "netns", "exec", TAG, SLUICE, *args], env=self.env,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, cwd=self.folder)

    @staticmethod
    def end(process, limit_s=120):
        out, err = process.communicate(timeout=limit_s * PATIENCE)
        process.stdout, process.stderr = out, err
        return Result(process)


def test_a_user_in_another_namespace():
    with cable(), Elsewhere() as d:
        for args in (["generate", "a red circle", "--resolution", "64x64", "--frames", "5"],
                     ["budget", "--model", "wan2.1-t2v-1.3b", "--device", "24GiB"],
                     ["stats", "--json"]):
            result = d.end(d.begin(*args))
            assert result.code == 0, (args, result)
        assert f"peer=tcp:{NET}.2" not in d.log()  # nothing was refused


def test_pulled_while_generating():
    with cable(), Elsewhere() as d:
        command = d.begin("generate", "a red circle", "--resolution", "128x128", "--frames", "33",
                          "-o", "a.mp4", "--json")
        wait_for("the job", lambda: "job_admitted" in d.log())
        pull(PULLED_S)
        result = d.end(command)
        assert result.code == 0, result
        job = result.lines[-1]["job"]
        with open(os.path.join(d.folder, "a.mp4"), "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == job["output_sha256"]
        assert len(d.cli("jobs", "--json").json["jobs"]) == 1


def test_pulled_while_fetching():
    with cable(), Elsewhere() as d:
        job = d.end(d.begin("generate", "x", "--model", MODEL, "--resolution", "256x256",
                            "--frames", "17", "-n", "1", "--format", "y4m", "--detach",
                            "--json")).json["job"]["job_id"]
        size = int(d.wait_state(job, ("done",), 120)["output_size_bytes"])
        if subprocess.run(["tc", "qdisc", "add", "dev", f"{TAG}a", "root", "tbf", "rate", "2mbit",
                           "burst", "32k", "latency", "50ms"], check=False,
                          capture_output=True).returncode != 0:
            raise Skip("the pair cannot be made slow")
        command = d.begin("fetch", job, "-o", "b.y4m", "--json")
        time.sleep(2)  # of about 7
        assert command.poll() is None
        pull(PULLED_S)
        result = d.end(command)
        assert result.code == 0, result
        with open(os.path.join(d.folder, "b.y4m"), "rb") as f:
            data = f.read()
        assert len(data) == size
        assert hashlib.sha256(data).hexdigest() == result.json["output"]["sha256"]


run(globals())
