"""Hostile peers against a daemon on TLS, and what a good client notices of them.

usage: attack.py [--seconds=N] [--descriptors=N] BUILD_DIR [attack ...]

Each attack runs in a process of its own, on one core, from other addresses of loopback than the
good client, which asks GetMemoryStats again and again on one connection.  A line
each: requests a second, p50, p99 and the worst in ms, and the daemon's memory before,
at most and after.  --descriptors is the daemon's limit.  Ends with 1 if a request failed, if memory grew without
bound, or if connections or descriptors are left.
"""
import multiprocessing
import os
import resource
import socket
import ssl
import struct
import sys
import time

SECONDS = float(next((a.split("=")[1] for a in sys.argv if a.startswith("--seconds=")), "60"))
DESCRIPTORS = int(next((a.split("=")[1] for a in sys.argv if a.startswith("--descriptors=")), "0"))
sys.argv = [a for a in sys.argv if not a.startswith(("--seconds=", "--descriptors="))]

import harness  # noqa: E402  pylint: disable=wrong-import-position
import wire  # noqa: E402  pylint: disable=wrong-import-position

MOST_GROWTH = 256 << 20
SILENT = 2000


class Target:
    """What an attacker knows."""

    def __init__(self, lan):
        self.port, self.certs = lan.port, lan.certs
        self.until = time.monotonic() + SECONDS
        self.turn = 0

    def on(self):
        return time.monotonic() < self.until

    def connect(self):
        self.turn += 1
        host = f"127.1.{self.turn // 60 % 200}.{self.turn % 60 + 2}"
        s = socket.socket()
        s.settimeout(5)
        s.bind((host, 0))
        s.connect(("127.0.0.1", self.port))
        return s

    def context(self):
        context = ssl.create_default_context(cafile=f"{self.certs}/ca.pem")
        context.load_cert_chain(f"{self.certs}/bob.pem", f"{self.certs}/bob.key")
        return context

    def hello(self):
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self.context().wrap_bio(into, out, server_hostname="localhost").do_handshake()
        except ssl.SSLWantReadError:
            pass
        return out.read()

    def inside(self):
        """A connection that was let in."""
        s = self.context().wrap_socket(self.connect(), server_hostname="localhost")
        s.sendall(wire.REQ_HELLO)
        s.recv(8)
        return s


def quietly(work):
    try:
        return work()
    except OSError:
        return None


def silence(t):
    open_ones = []
    while t.on():
        if len(open_ones) >= SILENT:
            open_ones.pop(0).close()
        s = quietly(t.connect)
        if s:
            open_ones.append(s)
        time.sleep(0.0005)


def slow_handshakes(t):
    hello, each = t.hello(), []
    while t.on():
        while len(each) < 200:
            s = quietly(t.connect)
            if not s:
                break
            each.append([s, 0])
        for item in each:
            if quietly(lambda i=item: i[0].send(hello[i[1]:i[1] + 1])) is None:
                item[0].close()
                item[1] = -1
            else:
                item[1] = min(item[1] + 1, len(hello) - 1)
        each = [i for i in each if i[1] >= 0]
        time.sleep(1)


def hello_then_reset(t):
    hello = t.hello()
    while t.on():
        s = quietly(t.connect)
        if s:
            quietly(lambda c=s: c.sendall(hello))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
        time.sleep(0.002)


def hellos(t):
    """As many as go, and the server's answer is waited for: all the work is its own."""
    hello = t.hello()
    while t.on():
        s = quietly(t.connect)
        if s:
            s.settimeout(0.05)
            quietly(lambda c=s: (c.sendall(hello), c.recv(4096)))
            s.close()


def handshakes(t):
    """As many as go, by somebody with a certificate."""
    context = t.context()
    while t.on():
        s = quietly(t.connect)
        if s:
            quietly(lambda c=s: context.wrap_socket(c, server_hostname="localhost").close())
            s.close()


def connects(t):
    """500 a second."""
    while t.on():
        s = quietly(t.connect)
        if s:
            s.close()
        time.sleep(0.0015)


def inside(*messages, pause=0.01):
    """An attack by somebody with a certificate."""
    def attack(t):
        while t.on():
            s = quietly(t.inside)
            if s:
                for m in messages:
                    quietly(lambda c=s, b=m: c.sendall(b))
                s.settimeout(0.2)
                quietly(lambda c=s: c.recv(4096))
                s.close()
            time.sleep(pause)
    return attack


def sp_then_silence(t):
    each = []
    while t.on():
        s = quietly(t.inside)
        if s:
            quietly(lambda c=s: c.sendall(b"\0\0\0"))
            each.append(s)
        if len(each) > 300:
            each.pop(0).close()
        time.sleep(0.005)


def never_reads(t):
    each = []
    request = wire.frame(wire.envelope("GetMemoryStats"))[1:]
    while t.on():
        if len(each) < 20:
            s = quietly(t.inside)
            if s:
                s.settimeout(0.01)
                each.append(s)
        for s in list(each):
            if quietly(lambda c=s: c.sendall(request)) is None and s.fileno() < 0:
                each.remove(s)
        time.sleep(0.005)


def streams(t):
    """Large messages on many connections of one user, as fast as they go."""
    big = wire.frame(wire.envelope("Generate", wire.message((1, "r"), (3, "x" * 1_000_000))))[1:]
    each = []
    while t.on():
        if len(each) < 50:
            s = quietly(t.inside)
            if s:
                s.setblocking(False)
                each.append([s, 0])
        for item in each:
            try:
                item[1] += item[0].send(big[item[1]:item[1] + 262_144])
            except ssl.SSLWantWriteError:
                pass
            except OSError:
                item[0].close()
            if item[1] == len(big):
                item[1] = 0
        each = [i for i in each if i[0].fileno() >= 0]


def garbage(t):
    while t.on():
        s = quietly(t.connect)
        if s:
            quietly(lambda c=s: c.sendall(os.urandom(3000)))
            s.close()
        time.sleep(0.002)


ATTACKS = {
    "silence": silence,
    "slow_handshakes": slow_handshakes,
    "hello_then_reset": hello_then_reset,
    "hellos": hellos,
    "handshakes": handshakes,
    "sp_then_silence": sp_then_silence,
    "lengths": inside(struct.pack(">Q", 1 << 63)),
    "length_1gib": inside(struct.pack(">Q", 1 << 30), b"x" * 1000),
    "length_above": inside(struct.pack(">Q", (1 << 20) + 1), b"x" * 1000),
    "deep_ids": inside(struct.pack(">Q", 400) + struct.pack(">I", 1) * 100),
    "streams": streams,
    "garbage": garbage,
    "garbage_inside": inside(os.urandom(2000)),
    "never_reads": never_reads,
    "empty_messages": inside(wire.frame(wire.message((1, "sluice.v1.Inference/PlanJob"),
                                                     (2, b"\x0a\x00" * 480_000)))[1:], pause=0.05),
    "connects": connects,
}


def memory_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def good_client(lan, until):
    """Latencies in ms, the most memory in KiB."""
    times, most = [], 0
    with lan.dial("alice") as c:
        while time.monotonic() < until:
            start = time.monotonic()
            c.call("GetMemoryStats")
            times.append((time.monotonic() - start) * 1000)
            if len(times) % 50 == 0:
                most = max(most, memory_kib(lan.process.pid))
            time.sleep(0.002)
    return sorted(times), most


def show(name, times, before, most, after):
    print(f"{name:18} {len(times) / SECONDS:6.0f}/s  p50 {times[len(times) // 2]:6.2f}  "
          f"p99 {times[len(times) * 99 // 100]:7.2f}  worst {times[-1]:7.2f} ms  "
          f"memory {before // 1024} -> {most // 1024} -> {after // 1024} MiB", flush=True)


def attack(name, target):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ATTACKS[name](target)


def attack_once(lan, name):
    pid = lan.process.pid
    fds, before = descriptors(pid), memory_kib(pid)
    target = Target(lan)
    attacker = None
    if name != "none":
        attacker = multiprocessing.Process(target=attack, args=(name, target))
        attacker.start()
    times, most = good_client(lan, target.until)
    if attacker:
        attacker.join(10)
        if attacker.is_alive():
            attacker.kill()
    harness.wait_for("its connections to be gone", lambda: descriptors(pid) <= fds + 2, 20)
    show(name, times, before, most, memory_kib(pid))
    assert (most - before) * 1024 < MOST_GROWTH, "memory grew"
    health = lan.remote("alice", "health")
    assert health.code == 0, health


def main():
    names = harness.ARGS[1:] or ["none", *ATTACKS]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(
        resource.RLIMIT_NOFILE)[1]),) * 2)
    # What a sanitizer keeps of freed memory (256 MiB if it may) is not the daemon's.
    os.environ["ASAN_OPTIONS"] = f"{os.environ.get('ASAN_OPTIONS', '')}:quarantine_size_mb=8"
    from test_tls import Lan  # pylint: disable=import-outside-toplevel

    class Limited(Lan):
        """With fewer descriptors, where that is asked for."""

        def command(self):
            limit = ["prlimit", f"--nofile={DESCRIPTORS}"] if DESCRIPTORS else []
            return [*limit, *super().command()]

    with Limited() as lan:
        for name in names:
            attack_once(lan, name)


if __name__ == "__main__":
    main()
