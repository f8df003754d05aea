"""Daemons that a test makes up, and a line between client and daemon that it cuts.

They run in threads of the test; everything is on Unix sockets or loopback.
"""
import os
import socket
import subprocess
import threading

import pynng

from sluice import sluice_pb2 as pb


class FakeDaemon:
    """An nng REP socket that answers with what `answer(envelope)` returns: a reply
    message, a pb.Reply, bytes as they are, or None for no answer."""

    def __init__(self, url, answer, tls=None):
        self.seen = []
        self._answer = answer
        self._socket = pynng.Rep0(tls_config=tls, recv_timeout=50)
        self._socket.listen(url)
        self._ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self._ending:
            try:
                envelope = pb.Envelope.FromString(self._socket.recv())
            except pynng.Timeout:
                continue
            self.seen.append(envelope)
            answer = self._answer(envelope)
            if answer is None:
                continue
            if not isinstance(answer, (bytes, pb.Reply)):
                answer = pb.Reply(payload=answer.SerializeToString())
            self._socket.send(answer if isinstance(answer, bytes) else answer.SerializeToString())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._ending = True
        self._thread.join()
        self._socket.close()


class Line:
    """Passes the bytes of every connection on, until it is cut."""

    def __init__(self, path, target):
        self.path, self._target = path, target
        self.connections = 0
        self._lock = threading.Lock()
        self._pairs = []
        self._swallow = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            far.connect(self._target)
            with self._lock:
                self.connections += 1
                self._pairs.append((near, far))
            threading.Thread(target=self._pass, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, far), daemon=True).start()

    def _pass(self, source, sink, answers):
        hello = 8  # bytes that both sides say first
        try:
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                if answers is not None and hello <= 0 and self._swallow is not None:
                    self._swallow.set()
                    self._swallow = None
                    break
                hello -= len(data)
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Breaks every connection; new ones are accepted."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sock in (s for pair in pairs for s in pair):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def swallow_the_next_answer(self):
        """The daemon's next answer is lost with its connection; the event is set then."""
        self._swallow = lost = threading.Event()
        return lost

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def _openssl(folder, *args):
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, timeout=30)


def make_certificates(folder):
    """ca.pem with server.* and client.* under it, and other.pem, a CA of its own."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for ca in ("ca", "other"):
        _openssl(folder, "req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem",
                 "-days", "2", "-subj", f"/CN={ca}")
    for name in ("server", "client"):
        _openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                 "-subj", "/CN=localhost" if name == "server" else "/CN=client")
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                 "-CAcreateserial", "-out", f"{name}.pem", "-days", "2")
    return {name: os.path.join(folder, name) for name in
            ("ca.pem", "other.pem", "server.pem", "server.key", "client.pem", "client.key")}
