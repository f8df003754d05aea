"""A user on another machine, with what docs/OPERATE.md says and nothing else.

The lines are taken from its section "From another machine, step by step"; only the
folders /etc/sluice and /var/lib/sluice are others here.  The daemon is in one network
namespace, the user in another, joined by a veth pair.  Needs root and ip(8).
"""
import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile

from harness import BUILD, PATIENCE, Skip, children_of, reap_orphan, run, shared_model_root, wait_for

DOC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "OPERATE.md")
SECTION = "### From another machine, step by step\n"
TAG = f"sll{os.getpid() % 10000}"
HERE, THERE = f"{TAG}h", f"{TAG}t"  # the daemon's, the user's
SERVER_IP, USER_IP = "10.77.1.1", "10.77.1.2"


def steps():
    """The indented blocks of the section, in order, without their indent."""
    with open(DOC, encoding="utf-8") as f:
        section = f.read().split(SECTION, 1)[1].split("\n##", 1)[0]
    blocks = re.findall(r"(?:^ {7}.*\n)+", section, re.M)
    assert len(blocks) == 5, blocks
    return ["".join(line[7:] + "\n" for line in b.splitlines()) for b in blocks]


def ip(*args):
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(f"no network namespaces here: ip {' '.join(args)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_machines():
    """Namespaces HERE and THERE; in THERE the daemon's machine has its name."""
    hosts = f"/etc/netns/{THERE}"
    if not shutil.which("ip") or os.geteuid() != 0:
        raise Skip("needs root and ip(8)")
    try:
        for name in (HERE, THERE):
            ip("netns", "add", name)
        ip("link", "add", "lan0", "netns", HERE, "type", "veth", "peer", "name", "lan0", "netns",
           THERE)
        for name, address in ((HERE, SERVER_IP), (THERE, USER_IP)):
            for command in (f"addr add {address}/24 dev lan0", "link set lan0 up", "link set lo up"):
                ip("-n", name, *command.split())
        os.makedirs(hosts)
        with open(f"{hosts}/hosts", "w", encoding="ascii") as f:
            f.write(f"127.0.0.1 localhost\n{SERVER_IP} gpu1.lan\n")
        yield
    finally:
        shutil.rmtree(hosts, ignore_errors=True)
        for name in (HERE, THERE):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Machine:
    """A namespace with a home of its own, where the build is installed."""

    def __init__(self, name, folder):
        self.name, self.folder, self.home = name, folder, os.path.join(folder, name)
        os.makedirs(self.home)

    def path(self, text):
        for system in ("etc", "var/lib"):
            text = text.replace(f"/{system}/sluice", f"{self.folder}/{system}/sluice")
        return text

    def start(self, lines, **how):
        env = {"HOME": self.home, "PATH": f"{BUILD}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
        return subprocess.Popen(["ip", "netns", "exec", self.name, "sh", "-ec", self.path(lines)],
                                env=env, cwd=self.home, stdin=subprocess.DEVNULL, text=True, **how)

    def type(self, lines):
        process = self.start(lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=120 * PATIENCE)
        assert process.returncode == 0, (lines, out, err)
        return out


def end(process):
    """The daemon, and whatever it started."""
    started = [process.pid, *children_of(process.pid)]
    process.terminate()
    process.wait(timeout=30 * PATIENCE)
    for pid in started[1:]:
        wait_for(f"process {pid} to be gone", lambda p=pid: reap_orphan(p), 10)


@contextlib.contextmanager
def daemon(machine, start):
    log = os.path.join(machine.folder, "log")
    with open(log, "w", encoding="utf-8") as f:
        process = machine.start(f"exec {start}", stdout=f, stderr=f)

    def text():
        with open(log, encoding="utf-8") as f:
            return f.read()

    def is_up():
        assert process.poll() is None, text()
        return "worker_start" in text()
    try:
        wait_for("the daemon to be up", is_up)
        yield text
    except BaseException:
        print(f"--- log of sluiced\n{text()[-4000:]}---")
        raise
    finally:
        end(process)


@contextlib.contextmanager
def installed():
    """The two machines, as they are before the walk."""
    folder = tempfile.mkdtemp(prefix="sluice-lan-")
    try:
        os.makedirs(f"{folder}/etc/sluice")
        os.makedirs(f"{folder}/var/lib/sluice/outputs")
        with open(f"{folder}/etc/sluice/sluice.yaml", "w", encoding="utf-8") as f:
            f.write(f"device: cpu:2GiB\nmodels:\n  - {shared_model_root()}\n"
                    f"outputs: {folder}/var/lib/sluice/outputs\nruntime: {folder}/run\n")
        yield folder, Machine(HERE, folder), Machine(THERE, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_walk_of_the_docs():
    certificates, tls, start, profile, commands = steps()
    with two_machines(), installed() as (folder, server, user):
        server.type(certificates)
        with open(f"{folder}/etc/sluice/sluice.yaml", "a", encoding="utf-8") as f:
            f.write(server.path(tls))
        with daemon(server, start.strip()) as log:
            config = f"{user.home}/.config/sluice"
            os.makedirs(config)
            for name in ("ca.pem", "alice.pem", "alice.key"):
                shutil.copy(f"{folder}/etc/sluice/certs/{name}", config)
            with open(f"{config}/config.yaml", "w", encoding="utf-8") as f:
                f.write(profile)
            generate, stats, budget = commands.splitlines()
            user.type(generate)
            videos = glob.glob(f"{user.home}/*.mp4")
            assert len(videos) == 1 and os.path.getsize(videos[0]) > 1000, os.listdir(user.home)
            assert json.loads(user.type(stats))["devices"][0]["total_bytes"] > 0
            assert user.type(budget)
            jobs = json.loads(user.type("sluice jobs --json"))["jobs"]
            assert [j["owner"] for j in jobs] == ["cert:alice"], jobs
            assert "refused" not in log(), log()


def test_who_has_no_certificate_is_told_so():
    certificates, tls, start, profile, _ = steps()
    with two_machines(), installed() as (folder, server, user):
        server.type(certificates)
        with open(f"{folder}/etc/sluice/sluice.yaml", "a", encoding="utf-8") as f:
            f.write(server.path(tls))
        with daemon(server, start.strip()) as log:
            config = f"{user.home}/.config/sluice"
            os.makedirs(config)
            shutil.copy(f"{folder}/etc/sluice/certs/ca.pem", config)
            with open(f"{config}/config.yaml", "w", encoding="utf-8") as f:
                f.write("".join(line + "\n" for line in profile.splitlines()
                                if not line.startswith(("cert:", "key:"))))
            process = user.start("sluice stats", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            _, err = process.communicate(timeout=60 * PATIENCE)
            assert process.returncode == 1 and "certificate required" in err, err
            wait_for("a line about it", lambda: f"peer=tcp:{USER_IP}" in log(), 5)


if __name__ == "__main__":
    run(globals())
