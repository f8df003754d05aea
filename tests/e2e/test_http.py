"""The side door of a real daemon: metrics, readiness, TLS, a worker that dies."""
import os
import re
import signal
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request

from harness import PATIENCE, Daemon, run, wait_for

SMALL = ["--width", "64", "--height", "64", "--frames", "5", "--steps", "2"]


class Door(Daemon):
    """A daemon with a side door on a port of the system's choice."""

    def __init__(self, more="", context=None):
        self.context = context
        super().__init__(config="http:\n  address: 127.0.0.1:0\n" + more)

    def get(self, path):
        """(status, text)"""
        port = re.findall(r" http address=\S+ port=(\d+)", self.log())[-1]
        url = f"http{'s' if self.context else ''}://127.0.0.1:{port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10 * PATIENCE, context=self.context) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metrics(self):
        """{'name{labels}': value}"""
        status, text = self.get("/metrics")
        assert status == 200, status
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in text.splitlines() if not line.startswith("#")}


def total(metrics, name):
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


def test_metrics_follow_jobs_and_sum_up():
    with Door() as d:
        assert d.get("/healthz") == (200, "ok\n") and d.get("/readyz") == (200, "ready\n")
        job_id = d.submit(*SMALL)
        d.wait_state(job_id, ["done"])
        refused = d.cli("generate", "a", "--model", "tiny", "--frames", "509", "-r", "720p",
                        "--detach")
        assert refused.code == 3, refused
        m = d.metrics()
        assert m['sluice_jobs_ended_total{state="done"}'] == 1, m
        assert m['sluice_rpc_calls_total{method="Generate",code="OK"}'] == 1, m
        assert m['sluice_rpc_calls_total{method="Generate",code="RESOURCE_EXHAUSTED"}'] == 1, m
        assert m['sluice_refusals_total{reason="never_fits"}'] == 1, m
        assert m['sluice_rpc_seconds_count{method="Generate"}'] == 2, m
        assert m['sluice_component_commands_total{command="load",result="ok"}'] == 3, m
        assert total(m, "sluice_device_memory_bytes") == total(m, "sluice_device_memory_total_bytes")
        assert total(m, "sluice_component_bytes") == \
            next(v for k, v in m.items() if 'line="weights"' in k), m
        memory = d.memory()
        assert total(m, "sluice_device_memory_limit_bytes") == memory["limit_bytes"]
        canary = total(m, "sluice_worker_canary_seconds")
        assert 0 < canary < PATIENCE, canary
        status, page = d.get("/")
        assert status == 200 and "1 done" in page and "circle" not in page, page


def test_readiness_follows_the_worker():
    with Door() as d:
        seen = set()

        def not_ready():
            status, text = d.get("/readyz")
            seen.add(status)
            return status == 503 and "worker is not up" in text

        for _ in range(5):  # a fresh worker is up within a moment
            pid = d.worker_pid()
            os.kill(pid, signal.SIGKILL)
            try:
                wait_for("not to be ready", not_ready, 2 / PATIENCE, 0.001)
                break
            except AssertionError:
                pass
        assert 503 in seen, seen
        wait_for("to be ready again", lambda: d.get("/readyz")[0] == 200)
        assert d.get("/healthz")[0] == 200
        assert total(d.metrics(), "sluice_worker_restarts_total") >= 1


def test_with_a_certificate_it_is_https():
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = os.path.join(folder, "c.pem"), os.path.join(folder, "k.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=side door",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
                        certificate], check=True, capture_output=True, timeout=60)
        context = ssl.create_default_context(cafile=certificate)
        with Door(f"  certificate: {certificate}\n  key: {key}\n", context) as d:
            assert d.get("/readyz") == (200, "ready\n")
            assert total(d.metrics(), "sluice_ready") == 1
            d.context = ssl.create_default_context()  # who does not know the issuer
            try:
                d.get("/readyz")
                raise AssertionError("a stranger's certificate was believed")
            except urllib.error.URLError as e:
                assert isinstance(e.reason, ssl.SSLError), e


def test_wrong_settings_are_told():
    for config, code, words in (
            ("http:\n  key: k.pem\n", 2, ("http", "no address")),
            ("http:\n  address: '0'\n  key: k.pem\n", 2, ("http.key", "go together")),
            ("http:\n  port: 1\n", 2, ("port",)),
            ("http:\n  address: example:1\n", 1, ("example:1",)),
            ("http:\n  address: '0'\n  key: no.pem\n  certificate: no.pem\n", 1, ("no.pem",))):
        with Daemon(config=config, start=False) as d:
            done = subprocess.run(d.command(), capture_output=True, text=True,
                                  timeout=30 * PATIENCE, check=False)
            assert done.returncode == code, (config, done)
            assert all(word in done.stderr for word in words), (config, done)


if __name__ == "__main__":
    run(globals())
