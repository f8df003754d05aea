"""The daemon on the network: certificates, tokens, roles, refusals, hostile peers."""
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings

from harness import BUILD, MODEL, PATIENCE, SLUICE, Daemon, Result, Skip, run, wait_for
import wire

API = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "api")
STOCK = os.path.join(BUILD, "stock_client")
SMALL = ("--model", MODEL, "--resolution", "64x64", "--frames", "5")


class Lan(Daemon):
    """A daemon that listens on the network, with a CA of its own."""

    def __init__(self, auth="required", more="", handshake="5s", limits="", host="127.0.0.1"):
        self.host = host
        folder = tempfile.mkdtemp(prefix="sluice-tls-")
        self.certs = os.path.join(folder, "certs")
        self.tokens = os.path.join(folder, "tokens")
        self.audit_path = os.path.join(folder, "audit.log")
        self.make("certs", "init", "--dir", self.certs)
        self.issue("server", "--host", f"localhost,{host}")
        for name, role in (("alice", "user"), ("bob", "user"), ("root", "admin"),
                           ("eve", "viewer")):
            self.issue(name, "--role", role)
        self.make("token", "new", "robot", "--role", "user", "--file", self.tokens)
        config = (f"tls:\n  listen: [\"{host}:0\"]\n  certificate: {self.certs}/server.pem\n"
                  f"  key: {self.certs}/server.key\n  client_ca: {self.certs}/ca.pem\n"
                  f"  client_auth: {auth}\n  revoked: {self.certs}/revoked\n"
                  f"  handshake: {handshake}\n"
                  f"tokens: {self.tokens}\naudit: {self.audit_path}\n{more}"
                  + (f"limits:\n{limits}" if limits else ""))
        super().__init__(folder=folder, config=config)
        self.own_folder = True

    @staticmethod
    def make(*args):
        return subprocess.run([SLUICE, *args], check=True, capture_output=True, text=True,
                              timeout=60).stdout

    def issue(self, name, *args):
        self.make("certs", "issue", name, *args, "--dir", self.certs)

    @property
    def port(self):
        return int(re.findall(r"tls_listen address=tcp:[0-9.]+:(\d+)", self.log())[-1])

    @property
    def url(self):
        return f"tls+tcp://{self.host}:{self.port}"

    def pair(self, name):
        return f"{self.certs}/{name}.pem", f"{self.certs}/{name}.key"

    def remote(self, who, *args, limit_s=60, ca=None, server_name=None, token=None, env=None):
        """The command over the network, as `who` (None: without a certificate)."""
        command = [SLUICE, *args]
        if env is None:
            command += ["--address", self.url, "--ca", ca or f"{self.certs}/ca.pem"]
            if who:
                cert, key = self.pair(who)
                command += ["--cert", cert, "--key", key]
            if server_name:
                command += ["--server-name", server_name]
            if token:
                command += ["--token", token]
        return Result(subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                                     text=True, timeout=limit_s * PATIENCE, check=False,
                                     cwd=self.folder, env=dict(os.environ, **(env or {}))))

    def reload(self):
        result = self.cli("reload")
        assert result.code == 0, result
        return result

    def audit(self):
        with open(self.audit_path, encoding="utf-8") as f:
            return [json.loads(line) for line in f]

    def audited(self, **fields):
        """A line with these fields; a value is a part of the text."""
        return wait_for(f"an audit line with {fields}", lambda: [
            line for line in self.audit() if all(v in line.get(k, "") for k, v in fields.items())
        ], 5)[-1]

    def context(self, who):
        context = ssl.create_default_context(cafile=f"{self.certs}/ca.pem")
        if who:
            context.load_cert_chain(*self.pair(who))
        return context

    def dial(self, who, limit_s=20):
        return Remote(self, who, limit_s)


class Remote(wire.Connection):
    """wire.Connection over TLS: without the byte before each length."""

    def __init__(self, lan, who, limit_s=20):  # pylint: disable=super-init-not-called
        raw = socket.create_connection(("127.0.0.1", lan.port), timeout=limit_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = lan.context(who).wrap_socket(raw, server_hostname="localhost")
        self.sock.sendall(wire.REQ_HELLO)
        got = self.read(8)
        assert got == wire.REP_HELLO, got
        self.next_id = struct.unpack(">I", os.urandom(4))[0] | 0x80000000
        self.token = None

    def read_frame(self):
        return self.read(struct.unpack(">Q", self.read(8))[0])

    def send(self, method, payload=b"", ids=None):
        self.next_id = self.next_id + 1 & 0xFFFFFFFF | 0x80000000
        ids = ids or (self.next_id,)
        body = wire.envelope(method, payload)
        if self.token:
            body += wire.field(4, self.token)
        self.sock.sendall(wire.frame(body, ids)[1:])
        return ids

    def code(self, method, payload=b""):
        self.send(method, payload)
        return self.receive()[1]


def alert_of(lan, who, context=None):
    """What TLS says to a client that is refused, "" when it is not."""
    raw = socket.create_connection(("127.0.0.1", lan.port), timeout=20)
    try:
        with (context or lan.context(who)).wrap_socket(raw, server_hostname="localhost") as s:
            s.sendall(wire.REQ_HELLO)
            return "" if s.recv(8) == wire.REP_HELLO else "closed"
    except ssl.SSLError as e:
        return e.reason
    except ConnectionError as e:
        return str(e)
    finally:
        raw.close()


# --- it works ---

def test_the_command_from_elsewhere():
    with Lan() as d:
        video = os.path.join(d.folder, "a.mp4")
        result = d.remote("alice", "generate", "a red circle", *SMALL, "-o", video, "--json")
        assert result.code == 0, result
        job = result.lines[-1]["job"]
        assert job["owner"] == "cert:alice", job
        with open(video, "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == job["output_sha256"]
        assert d.remote("alice", "stats", "--json").json["devices"]
        assert d.remote("root", "load", MODEL).code == 0
        assert d.audited(identity="cert:root", method="LoadModel")["result"] == "OK"
        ledger = d.remote("eve", "stats", "--json")
        assert ledger.code == 0, ledger


def test_a_profile_says_it_all():
    with Lan() as d:
        home = os.path.join(d.folder, "config", "sluice")
        os.makedirs(home)
        for name in ("ca.pem", "alice.pem", "alice.key"):
            shutil.copy(os.path.join(d.certs, name), home)
        path = os.path.join(home, "config.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"profile: lab\nprofiles:\n  - name: lab\n    address: {d.url}\n    ca: ca.pem\n"
                    "    cert: alice.pem\n    key: alice.key\n    server_name: localhost\n"
                    "  - name: other\n    address: /nowhere/sluice.sock\n")
        env = {"XDG_CONFIG_HOME": os.path.dirname(home)}
        result = d.remote(None, "generate", "a red circle", "--json", env=env, limit_s=120)
        assert result.code == 0, result
        assert result.lines[-1]["job"]["owner"] == "cert:alice"
        assert d.remote(None, "health", "--profile", "other", env=env).code == 4
        assert d.remote(None, "health", "--profile", "none", env=env).code == 2
        token = d.make("token", "new", "x", "--role", "user", "--file", d.tokens).strip()
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"address: {d.url}\nca: ca.pem\ntoken: {token}\n")
        os.chmod(path, 0o644)
        assert "chmod 600" in d.remote(None, "health", env=env).err


def test_a_stock_client_in_c():
    if not os.path.exists(STOCK):
        raise Skip("stock_client was not built")
    with Lan() as d:
        both = os.path.join(d.folder, "both.pem")
        with open(both, "wb") as f:
            for path in d.pair("root"):
                with open(path, "rb") as part:
                    f.write(part.read())
        out = os.path.join(d.folder, "video")
        done = subprocess.run([STOCK, d.url, f"{d.certs}/ca.pem", both, "localhost", MODEL, out],
                              capture_output=True, text=True, timeout=120 * PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        with open(out, "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == done.stdout.strip()


def test_a_stock_client_in_python():
    try:
        import pynng  # pylint: disable=import-outside-toplevel
        import google.protobuf  # pylint: disable=import-outside-toplevel,unused-import
    except ImportError as e:
        raise Skip(f"{e}: see e2e_tls_pynng") from e
    with Lan() as d:
        subprocess.run(["protoc", f"--python_out={d.folder}", f"-I{API}", "sluice.proto"],
                       check=True)
        sys.path.insert(0, d.folder)
        pb = __import__("sluice_pb2")
        files = {}
        for name, path in (("ca", f"{d.certs}/ca.pem"), *zip(("cert", "key"), d.pair("root"))):
            with open(path, encoding="ascii") as f:
                files[name] = f.read()
        config = pynng.TLSConfig(pynng.TLSConfig.MODE_CLIENT, ca_string=files["ca"],
                                 auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED,
                                 server_name="localhost", own_cert_string=files["cert"],
                                 own_key_string=files["key"])
        with pynng.Req0(tls_config=config, recv_timeout=60000) as s:
            s.dial(d.url, block=True)

            def call(method, request, reply_type):
                s.send(pb.Envelope(method=f"sluice.v1.Inference/{method}", api_version=1,
                                   payload=request.SerializeToString()).SerializeToString())
                reply = pb.Reply.FromString(s.recv())
                assert reply.code == 0, reply
                return reply_type.FromString(reply.payload)

            call("LoadModel", pb.LoadModelRequest(model=MODEL), pb.LoadModelReply)
            job = call("Generate", pb.GenerateRequest(request_id="p1", model=MODEL, prompt="a cat",
                                                      width=64, height=64, frames=5),
                       pb.GenerateReply).job
            seq = 0
            while job.state < pb.DONE:
                reply = call("WatchJob", pb.WatchJobRequest(job_id=job.job_id, after_seq=seq,
                                                            wait_ns=5_000_000_000),
                             pb.WatchJobReply)
                job = reply.job
                seq = reply.events[-1].seq if reply.events else seq
            assert job.state == pb.DONE, job
            data, size = b"", 1
            while len(data) < size:
                chunk = call("FetchOutput", pb.FetchOutputRequest(job_id=job.job_id, max_bytes=3000,
                                                                  offset=len(data)),
                             pb.FetchOutputReply)
                data, size = data + chunk.data, chunk.size_bytes
            assert hashlib.sha256(data).hexdigest() == job.output_sha256


def test_large_messages_and_many_at_once():
    """Bytes that TLS has decrypted make no event: nothing may wait for one."""
    with Lan() as d, d.dial("alice") as c:
        big = wire.message((1, "r"), (2, MODEL), (3, "x" * 700_000))
        for _ in range(3):
            assert c.code("Generate", big) == 3  # the prompt is too long
        sent = [c.send("Health") for _ in range(30)]
        got = [c.receive() for _ in range(30)]
        assert sorted(g[0] for g in got) == sorted(sent) and all(g[1] == 0 for g in got)
        # two requests and a half in one record, then the rest
        pieces = wire.frame(wire.envelope("Health"))[1:] * 3
        c.sock.sendall(pieces[:-5])
        assert c.receive()[1] == c.receive()[1] == 0
        c.sock.sendall(pieces[-5:])
        assert c.receive()[1] == 0
        assert c.sock.version() == "TLSv1.3"


def test_tls_1_2_with_forward_secrecy_only():
    warnings.simplefilter("ignore", DeprecationWarning)  # what is refused is deprecated
    with Lan() as d:
        def version(lowest, highest, ciphers=None):
            context = d.context("alice")
            context.minimum_version, context.maximum_version = lowest, highest
            if ciphers:
                context.set_ciphers(ciphers)
            return alert_of(d, None, context)
        two, three = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
        assert version(two, two) == ""
        assert version(three, three) == ""
        assert version(two, two, "AES128-SHA:@SECLEVEL=0") != ""  # RSA, CBC
        assert version(two, two, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0") != ""  # CBC
        assert version(ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0") != ""


# --- refusals ---

def test_certificates_that_are_refused():
    with Lan() as d:
        assert alert_of(d, "alice") == ""
        assert "CERTIFICATE_REQUIRED" in alert_of(d, None)
        d.audited(method="TLS", reason="peer did not return a certificate")
        other = os.path.join(d.folder, "other")
        d.make("certs", "init", "--dir", other)
        d.make("certs", "issue", "alice", "--role", "admin", "--dir", other)
        stranger = ssl.create_default_context(cafile=f"{d.certs}/ca.pem")
        stranger.load_cert_chain(f"{other}/alice.pem", f"{other}/alice.key")
        assert "UNKNOWN_CA" in alert_of(d, None, stranger)
        d.audited(method="TLS", reason="unable to get local issuer certificate")
        d.issue("old", "--role", "user", "--expires", "1s")
        time.sleep(2.1)
        assert "CERTIFICATE_EXPIRED" in alert_of(d, "old")
        d.audited(method="TLS", reason="certificate has expired")
        # a server's certificate does not make a client
        assert alert_of(d, "server") != ""
        # the command says it in words, and does not try for ever
        start = time.monotonic()
        result = d.remote(None, "stats")
        assert result.code != 0 and "certificate required" in result.err, result
        assert time.monotonic() - start < 10 * PATIENCE
        assert "tls_refused" in d.log()


def test_the_daemon_is_checked_too():
    with Lan() as d:
        result = d.remote("alice", "health", server_name="gpu2.lan")
        assert result.code != 0 and "hostname mismatch" in result.err.lower(), result
        result = d.remote("alice", "health", server_name="10.1.2.3")
        assert result.code != 0 and "ip address mismatch" in result.err.lower(), result
        other = os.path.join(d.folder, "other")
        d.make("certs", "init", "--dir", other)
        result = d.remote("alice", "health", ca=f"{other}/ca.pem")
        assert result.code != 0 and "not to be trusted" in result.err, result
        assert "needs a CA" in Result(subprocess.run(
            [SLUICE, "health", "--address", d.url], capture_output=True, text=True, timeout=20,
            check=False)).err


def test_roles():
    with Lan() as d:
        for who, method, code in (("alice", "load", 1), ("alice", "trim", 1), ("eve", "jobs", 1)):
            args = [method] + ([MODEL] if method == "load" else [])
            result = d.remote(who, *args, "--json")
            assert result.code == code and "PERMISSION_DENIED" in result.out + result.err, result
        line = d.audited(identity="cert:alice", method="LoadModel", result="PERMISSION_DENIED")
        assert line["role"] == "user" and line["address"].startswith("tcp:127.0.0.1:"), line
        assert "code=PERMISSION_DENIED" in d.log()


def test_jobs_of_somebody_else():
    with Lan() as d:
        job = d.remote("alice", "generate", "a red circle", *SMALL, "--detach", "--json",
                       "--request-id", "mine").json["job"]["job_id"]
        d.wait_state(job, ("done",))
        with d.dial("bob") as c:
            one = wire.message((1, job))
            for method in ("GetJob", "WatchJob", "CancelJob", "FetchOutput", "ExplainJob"):
                assert c.code(method, one) == 5, method
                d.audited(identity="cert:bob", method=method, result="NOT_FOUND")
            assert c.code("DecodeLatent", wire.message((1, "r1"), (2, job))) == 5
            assert c.code("GetJob", wire.message((1, "mine"))) == 5
            assert wire.parse(c.call("ListJobs")).get(1) is None
        assert d.remote("alice", "job", job).code == 0
        assert d.remote("root", "job", job).code == 0
        assert len(d.remote("root", "jobs", "--json").json["jobs"]) == 1


def test_a_request_id_with_another_body():
    with Lan() as d:
        args = ["generate", "--detach", "--json", "--request-id", "once", *SMALL]
        first = d.remote("alice", *args, "a red circle").json["job"]["job_id"]
        assert d.remote("alice", *args, "a red circle").json["job"]["job_id"] == first
        result = d.remote("alice", *args, "a blue circle")
        assert result.code != 0 and "ALREADY_EXISTS" in result.out + result.err, result
        d.audited(identity="cert:alice", method="Generate", result="ALREADY_EXISTS")
        assert "code=ALREADY_EXISTS" in d.log()
        assert d.remote("bob", *args, "a blue circle").json["job"]["job_id"] != first


def test_tokens():
    with Lan(auth="optional") as d:
        token = d.make("token", "new", "carol", "--role", "user", "--file", d.tokens).strip()
        short = d.make("token", "new", "dave", "--role", "user", "--expires", "2s", "--file",
                       d.tokens).strip()
        assert d.remote(None, "stats", token=token).code == 1  # the daemon has not read it yet
        assert "access" in d.reload().out
        result = d.remote(None, "generate", "x", *SMALL, "--json", "-o", "t.mp4", token=token)
        assert result.code == 0 and result.lines[-1]["job"]["owner"] == "token:carol", result
        assert d.remote(None, "load", MODEL, token=token).code == 1
        d.audited(identity="token:carol", method="LoadModel", result="PERMISSION_DENIED")
        # a token counts for more than a certificate, also for less
        assert d.remote("root", "load", MODEL, token=token).code == 1
        time.sleep(2.1)
        for wrong in (short, token[:-1], token + "0", "carol." + "0" * 64, "nobody." + "0" * 64,
                      "x"):
            result = d.remote("root", "stats", "--json", token=wrong)
            assert result.code == 1 and "UNAUTHENTICATED" in result.out + result.err, result
        d.audited(result="UNAUTHENTICATED", reason='"dave" has expired')
        # without either only Health answers
        assert d.remote(None, "health").code == 0
        assert d.remote(None, "stats").code == 1
        d.make("token", "revoke", "carol", "--file", d.tokens)
        d.reload()
        assert d.remote(None, "stats", token=token).code == 1
        with open(d.audit_path, encoding="utf-8") as f:
            text = f.read() + d.log()
        with open(d.tokens, encoding="utf-8") as f:
            text += f.read()
        for secret in (token, short):
            assert secret not in text and secret.split(".")[-1] not in text
        assert os.stat(d.tokens).st_mode & 0o777 == 0o600


def test_insecure_is_for_loopback_alone():
    with Lan(auth="optional", handshake="5s\n  insecure: true") as d:
        result = d.remote(None, "generate", "a red circle", *SMALL, "-o", "t.mp4", "--json")
        assert result.code == 0 and result.lines[-1]["job"]["owner"] == "tcp:127.0.0.1", result
        result = d.remote(None, "load", MODEL, "--json")
        assert result.code == 1 and "PERMISSION_DENIED" in result.out + result.err, result
        assert d.remote("root", "load", MODEL).code == 0
        # a token that is none does not count as no token
        result = d.remote(None, "stats", "--json", token="carol." + "0" * 64)
        assert result.code == 1 and "UNAUTHENTICATED" in result.out + result.err, result
        assert "warn insecure" in d.log()
    for auth, host in (("optional", "0.0.0.0"), ("required", "127.0.0.1")):
        try:
            with Lan(auth=auth, host=host, handshake="5s\n  insecure: true"):
                said = "nothing: it started"
        except AssertionError as e:
            said = str(e)
        assert "ended with 2" in said and "tls.insecure" in said, said


def test_rates():
    with Lan(limits="  rate: 5\n  burst: 10\n") as d, d.dial("alice") as c, d.dial("bob") as other:
        codes = [c.code("Health") for _ in range(30)]
        assert codes[:10] == [0] * 10 and 8 in codes, codes
        assert other.code("Health") == 0
        d.audited(identity="cert:alice", result="RESOURCE_EXHAUSTED")
        c.send("Health")
        reply = c.receive()[4]
        assert reply[1] == [8] and 0 < reply[6][0] < 1_000_000_000, reply
        time.sleep(0.5)
        assert c.code("Health") == 0


# --- reload ---

def test_reload_keeps_connections():
    with Lan() as d, d.dial("alice") as alice, d.dial("bob") as bob, d.dial("root") as root:
        server = alice.sock.getpeercert(binary_form=True)
        bob.send("WatchEvents", wire.message((1, 0), (2, 2_000_000_000)))
        d.make("certs", "revoke", "alice", "--dir", d.certs)
        d.make("certs", "revoke", "server", "--dir", d.certs)
        d.issue("server", "--host", "localhost")
        os.kill(d.process.pid, signal.SIGHUP)
        wait_for("the configuration to be read", lambda: "config_reloaded" in d.log(), 5)
        try:  # the revoked one is closed, whatever it was doing
            wait_for("alice's connection to end", lambda: alice.sock.recv(100) == b"", 5)
        except ConnectionError:
            pass
        d.audited(method="TLS", reason="its certificate was revoked")
        assert bob.receive()[1] == 0
        assert bob.code("Health") == root.code("Health") == 0
        with d.dial("bob") as fresh:
            assert fresh.sock.getpeercert(binary_form=True) != server
        revoked = next(n for n in os.listdir(d.certs) if n.startswith("alice.revoked")
                       and n.endswith(".pem"))[:-4]
        assert "CERTIFICATE_REVOKED" in alert_of(d, revoked)


def test_deadlines_and_caps_are_read_again():
    with Lan() as d, d.dial("alice") as idle, d.dial("bob") as busy:
        path = os.path.join(d.folder, "sluice.yaml")
        with open(path, "a", encoding="utf-8") as f:
            f.write("deadlines:\n  idle: 1s\nlimits:\n  connections_user: 1\n")
        assert "connections" in d.reload().out
        assert "connections" not in d.reload().out  # nothing has changed since
        known = wire.parse(busy.call("WatchEvents", wire.message((1, 0), (2, 0))))[1]
        seq = max(wire.parse(event)[1][0] for event in known)
        busy.send("WatchEvents", wire.message((1, seq), (2, 3_000_000_000)))
        start = time.monotonic()
        time.sleep(0.2)
        assert "too many connections" not in d.log()
        alert_of(d, "bob")  # a second one of bob's
        wait_for("it to be closed", lambda: "too many connections of one identity" in d.log(), 5)
        wait_for("the idle one to be closed", lambda: 'reason="idle"' in d.log(), 5)
        assert idle.sock.recv(100) == b""
        assert busy.receive()[1] == 0  # it was waiting for an answer, which is not idle
        assert time.monotonic() - start > 2.5


def test_the_door_is_counted():
    with Lan(more="http:\n  address: 127.0.0.1:0\n") as d, d.dial("alice") as c:
        assert c.code("Health") == 0
        assert alert_of(d, None) != "" and alert_of(d, "server") != ""
        port = re.findall(r" http address=\S+ port=(\d+)", d.log())[-1]

        def counted(line):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
                return f"\nsluice_{line}\n" in reply.read().decode()

        for line in ('tls_handshakes_total{result="ok"} 1',
                     'tls_handshakes_total{result="certificate"} 2',
                     'tls_alerts_total{direction="sent"} 2', 'connections{state="idle"} 1'):
            wait_for(line, lambda text=line: counted(text), 5)


def test_a_bad_reload_changes_nothing():
    with Lan() as d:
        with open(f"{d.certs}/revoked", "a", encoding="utf-8") as f:
            f.write("this is no fingerprint\n")
        result = d.cli("reload")
        assert result.code != 0 and "line 2" in result.err, result
        assert alert_of(d, "alice") == ""
        shutil.copy(f"{d.certs}/alice.key", f"{d.certs}/server.key")
        assert d.cli("reload").code != 0
        assert alert_of(d, "alice") == ""
        os.kill(d.process.pid, signal.SIGHUP)
        wait_for("a line about it", lambda: "config_refused" in d.log(), 5)
        assert alert_of(d, "alice") == ""


def test_the_audit_log_can_be_moved():
    with Lan() as d:
        d.remote("eve", "jobs")
        os.rename(d.audit_path, d.audit_path + ".1")
        d.reload()
        d.remote("eve", "jobs")
        d.audited(identity="cert:eve", method="ListJobs")
        assert os.path.getsize(d.audit_path + ".1") > 0
        assert os.stat(d.audit_path).st_mode & 0o777 == 0o600


# --- hostile peers ---

def hello_bytes(lan):
    """A good ClientHello."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = lan.context("alice").wrap_bio(into, out, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def connect(lan, host="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", lan.port), timeout=20,
                                    source_address=(host, 0))


def test_silence_ends_in_time_and_holds_nobody_up():
    with Lan(handshake="1s", limits="  connections: 40\n  connections_host: 30\n") as d:
        with d.dial("alice") as c:
            silent = [connect(d, "127.0.0.2") for _ in range(100)]
            half = [connect(d, "127.0.0.3") for _ in range(100)]
            for s in half:
                try:
                    s.sendall(hello_bytes(d)[:50])
                except ConnectionError:
                    pass
            start = time.monotonic()
            for _ in range(20):
                assert c.code("GetMemoryStats") == 0
            assert time.monotonic() - start < 5 * PATIENCE
            # Although no place is left: at the latest when somebody was silent for 250 ms.
            wait_for("a place for another", lambda: alert_of(d, "bob") == "", 2)
            time.sleep(1.5)
            ended = 0
            for s in silent + half:
                s.settimeout(2)
                try:
                    while s.recv(4096):
                        pass
                    ended += 1
                except ConnectionError:
                    ended += 1
                except socket.timeout:
                    pass
                s.close()
            assert ended == 200, ended
            assert c.code("Health") == 0


def test_handshakes_byte_by_byte():
    with Lan(handshake="1s") as d, d.dial("alice") as c:
        s = connect(d)
        start = time.monotonic()
        try:
            for byte in hello_bytes(d):
                s.sendall(bytes([byte]))
                time.sleep(0.05)
            raise AssertionError("it was listened to for ever")
        except ConnectionError:
            pass
        assert 0.8 < time.monotonic() - start < 5 * PATIENCE
        assert c.code("Health") == 0


def test_garbage_at_every_layer():
    with Lan() as d, d.dial("alice") as c:
        rst = struct.pack("ii", 1, 0)
        hello = hello_bytes(d)
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", wire.REQ_HELLO, os.urandom(4000),
                     b"\x16\x03\x01\xff\xff" + b"\x00" * 100, hello[:20] + os.urandom(400), hello):
            for reset in (False, True):
                s = connect(d)
                s.sendall(data)
                if reset:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, rst)
                s.close()
        for data in (os.urandom(100), b"\x00SP\x00\x00\x31\x00\x00",
                     wire.REQ_HELLO + struct.pack(">Q", 1 << 63),
                     wire.REQ_HELLO + struct.pack(">Q", 1 << 30),
                     wire.REQ_HELLO + struct.pack(">Q", (1 << 20) + 1),
                     wire.REQ_HELLO + struct.pack(">Q", 400) + struct.pack(">I", 1) * 100):
            raw = connect(d)
            with d.context("bob").wrap_socket(raw, server_hostname="localhost") as s:
                s.sendall(data)
                try:
                    while s.recv(4096):
                        pass
                except (ConnectionError, ssl.SSLError):
                    pass
        assert c.code("Health") == 0 and d.process.poll() is None


def test_a_reader_that_never_reads():
    with Lan() as d, d.dial("alice") as c:
        job = d.remote("alice", "generate", "x", "--model", MODEL, "-o", "v.y4m", "--json",
                       "--resolution", "64x64", "--frames", "17").lines[-1]["job"]["job_id"]
        with d.dial("alice") as greedy:
            greedy.sock.settimeout(0.5)
            try:
                for _ in range(3000):
                    greedy.send("FetchOutput", wire.message((1, job)))
            except (socket.timeout, OSError):
                pass
            for _ in range(20):
                assert c.code("GetMemoryStats") == 0


def test_the_command_does_not_hang_on_a_silent_server():
    with Lan() as d:
        for say in (b"", b"\x16\x03\x03", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            start = time.monotonic()
            command = subprocess.Popen(
                [SLUICE, "health", "--address", f"tls+tcp://127.0.0.1:{port}", "--ca",
                 f"{d.certs}/ca.pem", "--timeout", "1"], stderr=subprocess.PIPE, text=True)
            peer = listener.accept()[0]
            peer.sendall(say)
            err = command.communicate(timeout=30 * PATIENCE)[1]
            assert command.returncode == (1 if say[:1] == b"H" else 4), (say, err)
            assert time.monotonic() - start < 3 * PATIENCE, err
            peer.close()
            listener.close()


def test_many_clients_at_once():
    load = os.path.join(BUILD, "load")
    with Lan(limits="  in_flight: 40\n") as d:
        cert, key = d.pair("alice")
        done = subprocess.run([load, d.url, f"{d.certs}/ca.pem", cert, key, "localhost", "64", "2"],
                              capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
        assert done.returncode == 0 and " 0 failed" in done.stdout, done
        assert d.cli("health").code == 0
        assert d.stop() == 0, d.log()  # what a sanitizer found ends it otherwise


def test_connections_of_one_address():
    with Lan(limits="  connections_host: 5\n") as d:
        mine = [d.dial("alice") for _ in range(5)]
        try:
            d.dial("bob")
            raise AssertionError("a sixth from one address was let in")
        except (OSError, EOFError):
            pass
        mine.pop().sock.close()
        wait_for("a place", lambda: alert_of(d, "bob") == "", 5)
        assert mine[0].code("Health") == 0


if __name__ == "__main__":
    run(globals())
