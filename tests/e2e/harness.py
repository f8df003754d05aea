"""What the end-to-end tests share: a daemon of their own, the command, waiting.

Every test drives the real programs of one build folder.  Waits are bounded;
only processes that a test started are ended, by their pid.
"""
import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

# usage: test_x.py [--patience=N] BUILD_DIR [test ...]
# patience: a sanitizer build is many times slower, so every limit is multiplied.
ARGS = [a for a in sys.argv[1:] if not a.startswith("--patience=")]
PATIENCE = float(next((a.split("=")[1] for a in sys.argv if a.startswith("--patience=")), "1"))
BUILD = os.path.abspath(ARGS[0] if ARGS else "build")
SLUICE = os.path.join(BUILD, "sluice")
SLUICED = os.path.join(BUILD, "sluiced")
MODEL = "tiny"

# Orphans of a killed daemon come to this process, which reaps them: so "no
# zombie" can be checked whatever the machine's init does.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Skip(Exception):
    """Something this test needs is not there."""


def wait_for(what, condition, limit_s=30.0, step_s=0.02):
    """The first true value of condition(), or an error after limit_s."""
    deadline = time.monotonic() + limit_s * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s * PATIENCE:.1f} s for: {what}")
        time.sleep(step_s)


def process_state(pid):
    """'R', 'S', 'Z', ... or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def children_of(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(name))
    return found


def reap_orphan(pid):
    """True once pid is gone; takes its exit status if it was handed to us."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return process_state(pid) is None


def made_once(folder, make):
    """A folder in the build that make(path) fills, once a build of the command."""
    root = os.path.join(BUILD, folder)
    done = os.path.join(root, "made")
    if os.path.exists(done) and os.path.getmtime(done) > os.path.getmtime(SLUICE):
        return root
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    make(root)
    with open(done, "w", encoding="utf-8"):
        pass
    return root


def synth(arch, path, seed=1):
    subprocess.run([SLUICE, "synth-model", "--arch", arch, "--seed", str(seed), path], check=True,
                   stdout=subprocess.DEVNULL, timeout=120 * PATIENCE)


def shared_model_root():
    """A folder with the tiny model."""
    return made_once("e2e-models", lambda root: synth("tiny-t2v", os.path.join(root, MODEL)))


def png(path, width, height, colour=lambda x, y: (x * 7 % 256, y * 5 % 256, 90), rows=None):
    """An RGB picture; rows: fewer than height makes a file that lies."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + \
            struct.pack(">I", zlib.crc32(kind + data))
    raw = b"".join(b"\0" + b"".join(bytes(colour(x, y)) for x in range(width))
                   for y in range(height if rows is None else rows))
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2,
                                                                    0, 0, 0))
                + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
    return path


class Result:
    def __init__(self, run):
        self.code, self.out, self.err = run.returncode, run.stdout, run.stderr

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


class Daemon:
    """sluiced on the cpu device in a folder of its own, with a worker.

    models: the models' root; None: one with the tiny model.
    config: a configuration file's text; None: none is given."""

    def __init__(self, device="cpu:2GiB", folder=None, start=True, models=None, config=None):
        self.config = config
        self.own_folder = folder is None
        self.folder = folder or tempfile.mkdtemp(prefix="sluice-e2e-")
        self.runtime = os.path.join(self.folder, "run")
        self.outputs = os.path.join(self.folder, "out")
        self.socket = os.path.join(self.runtime, "sluice.sock")
        self.log_path = os.path.join(self.folder, "log")
        self.device = device
        self.models = models or shared_model_root()
        self.process = None
        os.makedirs(self.runtime, mode=0o700, exist_ok=True)
        os.makedirs(self.outputs, exist_ok=True)
        if start:
            try:
                self.start()
            except BaseException:  # there will be no __exit__
                self.__exit__(*sys.exc_info())
                raise

    def command(self):
        command = [SLUICED, "--device", self.device, "--models", self.models, "--outputs",
                   self.outputs, "--runtime", self.runtime]
        if self.config is None:
            return command
        path = os.path.join(self.folder, "sluice.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.config)
        return [*command, "--config", path]

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        wait_for("the daemon to be ready", self.is_ready)

    def is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"sluiced ended with {self.process.returncode}:\n{self.log()}")
        health = self.cli("health", "--json")
        return health.code == 0 and health.json["ready"]

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def cli(self, *args, limit_s=60, cwd=None):
        """Runs the command to its end."""
        return Result(subprocess.run([SLUICE, *args, "--socket", self.socket],
                                     stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                     timeout=limit_s * PATIENCE, check=False,
                                     cwd=cwd or self.folder))

    def cli_start(self, *args):
        """Starts the command and returns the process."""
        return subprocess.Popen([SLUICE, *args, "--socket", self.socket],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, cwd=self.folder)

    def memory(self):
        result = self.cli("stats", "--json")
        assert result.code == 0, result
        return result.json["devices"][0]

    def job(self, job_id):
        result = self.cli("job", job_id, "--json")
        assert result.code == 0, result
        return result.json["job"]

    def submit(self, *args):
        result = self.cli("generate", "a red circle", "--model", MODEL, "--detach", "--json", *args)
        assert result.code == 0, result
        return result.json["job"]["job_id"]

    def wait_state(self, job_id, states, limit_s=60):
        return wait_for(f"job {job_id} to be one of {states}",
                        lambda: (lambda j: j if j["state"] in states else None)(self.job(job_id)),
                        limit_s)

    def worker_pid(self):
        return self.memory()["worker_pid"]

    def stop(self):
        """SIGTERM; its exit code, with every process of it gone."""
        if self.process is None:
            return None
        children = children_of(self.process.pid)
        self.process.terminate()
        try:
            code = self.process.wait(timeout=20 * PATIENCE)
        except subprocess.TimeoutExpired as e:
            raise AssertionError(f"sluiced did not end after SIGTERM:\n{self.log()}") from e
        self.process = None
        for pid in children:
            wait_for(f"worker {pid} to be gone", lambda p=pid: reap_orphan(p), 5)
        return code

    def kill(self):
        """kill -9 of the daemon alone; the worker is not touched."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self.process = None

    def close(self):
        if self.process is not None:
            children = children_of(self.process.pid)
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None
            for pid in children:
                if process_state(pid) is not None:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                    wait_for("the worker to be gone", lambda p=pid: reap_orphan(p), 5)
        if self.own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if exc[0] is not None and exc[0] is not Skip and os.path.exists(self.log_path):
            print(f"--- log of sluiced\n{self.log()[-4000:]}---")
        self.close()


LEDGER = ("context_bytes", "weights_bytes", "activations_bytes", "workspace_bytes",
          "reserved_bytes", "foreign_bytes", "free_bytes", "unexplained_bytes")


def check_sums(memory):
    """total is the sum of its parts, and the parts of theirs."""
    total = sum(memory[name] for name in LEDGER)
    assert total == memory["total_bytes"], f"parts make {total}: {memory}"
    weights = sum(c["measured_bytes"] for c in memory["components"])
    assert weights == memory["weights_bytes"], memory
    activations = sum(j["activation_bytes"] for j in memory["jobs"])
    assert activations == memory["activations_bytes"], memory
    assert memory["unexplained_bytes"] == 0, memory
    mapped = memory["weights_bytes"] + memory["activations_bytes"] + memory["workspace_bytes"]
    assert mapped == memory["arena_mapped_bytes"], memory
    assert memory["arena_mapped_bytes"] <= memory["limit_bytes"], memory


def partials(daemon):
    return [name for name in os.listdir(daemon.outputs) if name.startswith(".partial")]


def run(tests):
    """Runs every test_* of a module; prints and exits as the runner wants."""
    passed = failed = skipped = 0
    wanted = ARGS[1:]
    for name, test in list(tests.items()):
        if not name.startswith("test_") or (wanted and name not in wanted):
            continue
        start = time.monotonic()
        try:
            test()
            passed += 1
            word = "ok"
        except Skip as e:
            skipped += 1
            word = f"SKIPPED ({e})"
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc(file=sys.stdout)
            failed += 1
            word = "FAILED"
        print(f"{word} {name} {time.monotonic() - start:.1f} s", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed or passed + skipped == 0 else 77 if passed == 0 else 0)
