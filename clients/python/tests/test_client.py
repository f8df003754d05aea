"""The Python client against the daemon of this build, and against made-up ones.

usage: test_client.py [--patience=N] BUILD_DIR [test ...]   (see CMakeLists.txt)
"""
import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, os.path.join(HERE, "..", "..", "..", "tests", "e2e"))

from harness import MODEL, PATIENCE, Daemon, run, wait_for  # noqa: E402
from test_tls import Lan  # noqa: E402
from fakes import FakeDaemon, Line, make_certificates  # noqa: E402

import pynng  # noqa: E402
import sluice  # noqa: E402
from sluice import sluice_pb2 as pb  # noqa: E402

SMALL = {"model": MODEL, "width": 64, "height": 64, "frames": 5, "steps": 2}
LONG = {"model": MODEL, "width": 512, "height": 512, "frames": 81}
BIG = {"model": MODEL, "width": 128, "height": 128, "frames": 17}


def url_of(daemon):
    return "ipc://" + daemon.socket


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def raises(kind, work):
    try:
        work()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was not raised")


def check_story(events, state="done"):
    """A job's events from the beginning to its end, each once."""
    assert [e.seq for e in events] == list(range(1, len(events) + 1)), events
    assert events[-1].state == state, events


def test_from_load_to_fetch_and_unload():
    with Daemon() as d, sluice.Client(url_of(d)) as client:
        health = client.health()
        assert health.ready and health.api_version == 1, health
        info = client.info()
        assert info.api_version == 1 and info.role == "admin", info
        assert "Generate" in info.methods and "upload_input" in info.features, info
        assert [m.name for m in client.models()] == [MODEL]
        receipt = client.load(MODEL)
        assert receipt.residue_bytes == 0 and len(receipt.components) == 3, receipt
        plan = client.plan("a red circle", **SMALL)
        assert plan.admitted_now and not plan.HasField("refusal"), plan

        job = client.generate("a red circle", **SMALL, seed=3, precision="bf16")
        events = list(job)
        check_story(events)
        assert "step 2 of 2" in [e.text for e in events], events
        assert job.state == "done" and job.ended
        assert job.info.planned_peak_bytes == job.info.measured_peak_bytes == plan.plan.peak_bytes
        path = os.path.join(d.folder, "a.mp4")
        seen = []
        got = job.fetch(path, progress=lambda done, size: seen.append((done, size)))
        assert got.sha256 == sha256(path) == job.info.output_sha256
        assert got.size_bytes == os.path.getsize(path) and got.resumed_bytes == 0
        assert seen[-1] == (got.size_bytes, got.size_bytes)
        assert not os.path.exists(path + ".part")

        same = client.generate("a red circle", **SMALL, seed=3).wait()
        assert same.info.output_sha256 == job.info.output_sha256
        assert [j.id for j in client.jobs()] == [same.id, job.id]
        assert client.jobs(active_only=True) == []
        assert client.job(job.info.request_id).id == job.id

        latent = client.generate("a red circle", **SMALL, seed=3, output="latent").wait()
        video = client.decode(latent, output="mp4").wait()
        assert video.info.output_sha256 == job.info.output_sha256

        memory = client.stats()[0]
        assert memory.unexplained_bytes == 0 and memory.weights_bytes > 0
        receipt = client.unload(MODEL)
        assert receipt.residue_bytes == 0
        assert client.stats()[0].weights_bytes == 0


def test_fetch_continues_and_starts_over():
    with Daemon() as d, sluice.Client(url_of(d)) as client:
        job = client.generate("x", **SMALL, output="y4m").wait()
        path = os.path.join(d.folder, "b.y4m")
        job.fetch(path)
        with open(path, "rb") as f:
            whole = f.read()
        for left, resumed in ((whole[:1000], 1000), (whole, len(whole)), (b"x" * 1000, 0),
                              (whole + b"x", 0)):
            with open(path + ".part", "wb") as f:
                f.write(left)
            got = job.fetch(path)
            assert got.resumed_bytes == resumed, (got, len(left))
            assert sha256(path) == got.sha256 == job.info.output_sha256

        running = client.generate("x", **LONG)
        error = raises(sluice.FailedPrecondition,
                       lambda: client.fetch(running, os.path.join(d.folder, "c.mp4")))
        assert error.answered and error.code_name == "FAILED_PRECONDITION"
        assert not [n for n in os.listdir(d.folder) if n.startswith("c.mp4")]
        running.cancel()
        raises(sluice.NotFound, lambda: client.fetch("no-such-job"))


def test_two_jobs_side_by_side():
    async def main(url, folder):
        async with sluice.AsyncClient(url) as client:
            jobs = [await client.generate("a cat", **SMALL, seed=i) for i in (1, 2)]

            async def follow(job):
                events = [event async for event in job]
                got = await job.fetch(os.path.join(folder, job.id))
                return events, got

            async def ask(running):
                longest = 0.0
                while not running.done():
                    began = time.monotonic()
                    await client.stats()
                    longest = max(longest, time.monotonic() - began)
                    await asyncio.sleep(0.02)
                return longest
            both = asyncio.gather(*(follow(job) for job in jobs))
            longest = await ask(both)
            assert longest < 2 * PATIENCE, f"a call waited {longest:.2f} s behind long polls"
            for job, (events, got) in zip(jobs, await both):
                check_story(events)
                assert sha256(got.path) == got.sha256 == job.info.output_sha256
            assert len({job.info.output_sha256 for job in jobs}) == 2
    with Daemon() as d:
        asyncio.run(main(url_of(d), d.folder))


def test_many_watchers_leave_room():
    async def main(url):
        async with sluice.AsyncClient(url) as client:
            running = await client.generate("x", **LONG)
            watchers = [asyncio.ensure_future(running.wait()) for _ in range(20)]
            await asyncio.sleep(1)  # they are waiting
            began = time.monotonic()
            await client.health()
            took = time.monotonic() - began
            assert took < 1 * PATIENCE, f"health waited {took:.2f} s"
            await running.cancel()
            ends = await asyncio.gather(*watchers, return_exceptions=True)
            assert all(isinstance(e, sluice.JobCancelled) for e in ends), ends
    with Daemon() as d:
        asyncio.run(main(url_of(d)))


def test_cancel():
    with Daemon() as d, sluice.Client(url_of(d)) as client:
        job = client.generate("x", **LONG)
        for event in job:
            if event.state == "denoising":
                break
        began = time.monotonic()
        job.cancel()
        took = time.monotonic() - began
        assert took < 2 * PATIENCE, f"cancel took {took:.2f} s"
        assert job.state == "cancelled" and job.ended
        check_story(list(client.watch(job.id)), "cancelled")
        error = raises(sluice.JobCancelled, job.wait)
        assert error.job.job_id == job.id and error.code_name == "CANCELLED", error
        # An AsyncClient's task that is cancelled gives its call up, not the job.
        asyncio.run(given_up(url_of(d)))


async def given_up(url):
    async with sluice.AsyncClient(url) as client:
        job = await client.generate("x", **LONG)
        waiting = asyncio.ensure_future(job.wait())
        await asyncio.sleep(0.3)
        began = time.monotonic()
        waiting.cancel()
        try:
            await waiting
            raise AssertionError("the task was not cancelled")
        except asyncio.CancelledError:
            pass
        assert time.monotonic() - began < 1 * PATIENCE
        assert not (await job.refresh()).ended
        await job.cancel()


def test_what_is_refused_says_what_fits():
    with Daemon() as d, sluice.Client(url_of(d)) as client:
        small = client.plan("", **SMALL).plan.peak_bytes
        big = client.plan("", **BIG).plan.peak_bytes
        for name, value, nearest in (("width", 100, "96"), ("frames", 18, "17"),
                                     ("steps", 9, "4")):
            error = raises(sluice.InvalidArgument,
                           lambda: client.generate("x", **{**SMALL, name: value}))
            assert error.answered and error.field.field == name, error.field
            assert error.field.nearest == nearest, error.field
        raises(sluice.NotFound, lambda: client.generate("x", model="no-such-model"))
        raises(ValueError, lambda: client.generate("x", **SMALL, precision="f64"))
        raises(TypeError, lambda: client.generate("x", **SMALL, no_such_option=1))
        first = client.generate("x", **SMALL, request_id="mine.1")
        assert client.generate("x", **SMALL, request_id="mine.1").id == first.id
        raises(sluice.AlreadyExists, lambda: client.generate("y", **SMALL, request_id="mine.1"))
    limit = (small + big) // 2 // (2 << 20) * (2 << 20)
    with Daemon(device=f"cpu:{limit}") as d, sluice.Client(url_of(d)) as client:
        assert client.plan("x", **BIG).refusal.when == pb.Refusal.NEVER
        error = raises(sluice.ResourceExhausted, lambda: client.generate("x", **BIG))
        assert error.never and error.refusal.need_bytes > error.refusal.have_bytes > 0, error
        nearest = error.nearest
        # The one model there is does not have to be named.
        client.generate("x", width=nearest.width, height=nearest.height, frames=nearest.frames,
                        steps=1).wait()


def test_the_daemon_restarts():
    with Daemon(start=False) as d:
        nobody = sluice.Client(url_of(d))
        began = time.monotonic()
        error = raises(sluice.Unavailable, nobody.health)
        assert not error.answered and time.monotonic() - began < 1 * PATIENCE
        d.start()
        assert nobody.health().ready, "a client does not find a daemon that has come"
        nobody.close()
        raises(sluice.Unavailable, nobody.health)

        with sluice.Client(url_of(d), timeout=20 * PATIENCE) as client:
            client.generate("x", **SMALL).wait()
            d.stop()
            answers = []
            asking = threading.Thread(target=lambda: answers.append(client.health()))
            asking.start()
            time.sleep(0.3)
            assert not answers
            d.start()
            asking.join()
            assert answers and answers[0].api_version == 1
            path = os.path.join(d.folder, "a.mp4")
            assert client.generate("x", **SMALL).fetch(path).sha256 == sha256(path)


def test_a_watch_goes_on_when_the_daemon_restarts():
    with Daemon() as d, sluice.Client(url_of(d), timeout=20 * PATIENCE) as client:
        job = client.generate("x", **LONG)
        events = []
        watching = threading.Thread(target=lambda: events.extend(job))
        watching.start()
        d.wait_state(job.id, ["denoising"])
        d.stop()
        d.start()
        again = client.job(job.id)
        wait_for("the job to run again", lambda: again.refresh().state == "denoising")
        again.cancel()
        watching.join()
        check_story(events, "cancelled")
        assert [e.state for e in events].count("queued") == 2, events
        assert job.state == "cancelled", job


def test_the_connection_breaks():
    with Daemon() as d, Line(os.path.join(d.folder, "line"), d.socket) as line, \
            sluice.Client("ipc://" + line.path) as client:
        lost = line.swallow_the_next_answer()
        assert client.health().ready and lost.is_set()
        # The job exists, its client was not told, and asks again.
        lost = line.swallow_the_next_answer()
        job = client.generate("x", **{**SMALL, "width": 128, "height": 128, "frames": 33})
        assert lost.is_set() and [j.id for j in client.jobs()] == [job.id]
        events = []
        for event in job:
            events.append(event)
            if len(events) % 3 == 0:
                line.cut()
        check_story(events)
        before = line.connections
        lost = line.swallow_the_next_answer()
        path = os.path.join(d.folder, "a.mp4")
        got = client.fetch(job, path)
        assert got.sha256 == sha256(path) == job.info.output_sha256
        assert lost.is_set() and before > 3 and line.connections > before


def output_answers(data, sha, chunk_bytes=1000):
    def answer(envelope):
        request = pb.FetchOutputRequest.FromString(envelope.payload)
        return pb.FetchOutputReply(data=data[request.offset:request.offset + chunk_bytes],
                                   offset=request.offset, size_bytes=len(data), sha256=sha)
    return answer


def test_a_file_that_is_not_right_does_not_appear():
    data = os.urandom(4500)
    right = hashlib.sha256(data).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        url, path = f"ipc://{folder}/s", os.path.join(folder, "a.mp4")

        def shifted(envelope):
            reply = output_answers(data, right)(envelope)
            reply.offset += 1
            return reply

        def endless(envelope):
            reply = output_answers(data, right)(envelope)
            reply.data = b""
            return reply

        def changing(envelope):
            reply = output_answers(data, right)(envelope)
            reply.size_bytes += reply.offset
            return reply
        for answer in (output_answers(data, "0" * 64), shifted, endless, changing):
            with FakeDaemon(url, answer), sluice.Client(url) as client:
                raises(sluice.DataLoss, lambda: client.fetch("j", path))
            assert not os.path.exists(path)
        assert os.path.getsize(path + ".part") > 0  # of `changing`, all right so far
        with FakeDaemon(url, output_answers(data, right)) as fake, sluice.Client(url) as client:
            got = client.fetch("j", path)
            assert got.resumed_bytes > 0 and got.sha256 == sha256(path) == right
            assert len(fake.seen) == -(-(4500 - got.resumed_bytes) // 1000), len(fake.seen)
            with open(path + ".part", "wb") as held:
                import fcntl
                fcntl.flock(held, fcntl.LOCK_EX)
                raises(BlockingIOError, lambda: client.fetch("j", path))


def test_deadlines_and_garbage():
    with tempfile.TemporaryDirectory() as folder:
        url = f"ipc://{folder}/s"
        answers = {"silent": None, "garbage": b"\xff\xff\xff", "long": b"x" * (5 << 20),
                   "later": pb.Reply(code=14, message="later", retry_after_ns=2_000_000_000),
                   "newer": pb.Reply(code=99, message="newer")}
        with FakeDaemon(url, lambda e: answers[e.trace_id or mode]), \
                sluice.Client(url, timeout=1) as client:
            mode = "silent"
            began = time.monotonic()
            error = raises(sluice.DeadlineExceeded, client.health)
            assert not error.answered and 0.9 < time.monotonic() - began < 2 * PATIENCE
            mode = "garbage"
            raises(sluice.DataLoss, client.health)
            mode = "later"
            error = raises(sluice.Unavailable, client.health)
            assert error.answered and error.retry_after == 2.0 and str(error) == "later"
            mode = "newer"
            error = raises(sluice.Unknown, client.health)
            assert error.code == 99, error.code
            mode = "long"  # longer than a reply may be: nng drops the connection
            raises(sluice.Unavailable, client.health)
            raises(sluice.InvalidArgument, lambda: client.generate("x" * (2 << 20), model="m"))


def test_tls():
    def answer(envelope):
        return pb.HealthReply(status=f"{envelope.method} {envelope.token}")
    with tempfile.TemporaryDirectory() as folder:
        files = make_certificates(folder)

        def read(name):
            with open(files[name], encoding="ascii") as f:
                return f.read()
        tls = pynng.TLSConfig(pynng.TLSConfig.MODE_SERVER,
                              auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED,
                              ca_string=read("ca.pem"), own_cert_string=read("server.pem"),
                              own_key_string=read("server.key"))
        port = free_port()
        url = f"tls+tcp://127.0.0.1:{port}"
        own = {"cert": files["client.pem"], "key": files["client.key"]}
        with FakeDaemon(url, answer, tls):
            with sluice.Client(url, ca=files["ca.pem"], server_name="localhost", token="t0ken",
                               **own) as client:
                assert client.health().status == "sluice.v1.Inference/Health t0ken"
            for wrong in ({"ca": files["other.pem"], "server_name": "localhost", **own},
                          {"ca": files["ca.pem"], "server_name": "elsewhere", **own},
                          {"ca": files["ca.pem"], "server_name": "localhost"}):
                with sluice.Client(url, timeout=3, **wrong) as client:
                    raises(sluice.Unavailable, client.health)
        for url_, wrong in ((url, {}), (url, {"ca": files["ca.pem"], "cert": files["client.pem"]}),
                            (url, {"ca": os.path.join(folder, "none.pem")}),
                            (url, {"ca": files["client.key"]}),
                            ("ipc:///tmp/s", {"ca": files["ca.pem"]})):
            raises(ValueError, lambda: sluice.Client(url_, **wrong))


def lan_client(lan, who, kind=sluice.Client, **more):
    cert, key = lan.pair(who)
    return kind(lan.url, ca=f"{lan.certs}/ca.pem", server_name="localhost", cert=cert, key=key,
                **more)


def test_the_daemon_on_the_network():
    with Lan(limits="  rate: 40\n  burst: 60\n") as d:
        with lan_client(d, "root") as admin, lan_client(d, "alice") as alice, \
                lan_client(d, "bob") as bob, lan_client(d, "eve") as eve:
            admin.load(MODEL)
            job = alice.generate("a red circle", **SMALL, request_id="once")
            check_story(list(job))
            path = os.path.join(d.folder, "a.mp4")
            assert job.fetch(path).sha256 == sha256(path) and job.info.owner == "cert:alice"
            for work in (lambda: alice.load(MODEL), lambda: eve.generate("x", **SMALL)):
                assert not raises(sluice.PermissionDenied, work).never
            raises(sluice.NotFound, lambda: bob.job(job.id))
            raises(sluice.NotFound, lambda: bob.fetch(job.id, f"{d.folder}/b.mp4"))
            raises(sluice.AlreadyExists,
                   lambda: alice.generate("a blue circle", **SMALL, request_id="once"))
            wrong = raises(sluice.InvalidArgument, lambda: alice.generate("x", model=MODEL, width=7))
            assert wrong.field.field == "width", wrong.field
            assert alice.info().role == "user" and len(eve.stats()) == 1
            busy = raises(sluice.ResourceExhausted, lambda: [bob.info() for _ in range(200)])
            assert busy.retry_after > 0 and not busy.never, busy
        with lan_client(d, "alice", token="nobody." + "0" * 64) as client:
            raises(sluice.Unauthenticated, client.stats)


def test_the_daemon_on_the_network_from_asyncio():
    async def work(d):
        async with lan_client(d, "alice", sluice.AsyncClient) as client:
            events = [[], []]

            async def make(i):
                job = await client.generate(f"circle {i}", **SMALL)
                async for event in job:
                    events[i].append(event)
                path = os.path.join(d.folder, f"{i}.mp4")
                assert (await job.fetch(path)).sha256 == sha256(path)
            await asyncio.gather(make(0), make(1))
            for story in events:
                check_story(story)
            try:
                await client.load(MODEL)
                raise AssertionError("a user loaded a model")
            except sluice.PermissionDenied:
                pass
    with Lan() as d:
        asyncio.run(work(d))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_host_that_does_not_speak():
    """It accepts the connection and says nothing: no call and no end waits for it."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as s:
        make_certificates(folder)
        url = f"tls+tcp://127.0.0.1:{s.getsockname()[1]}"
        for end in ("", "client.close()"):
            script = (f"import sluice\nclient = sluice.Client({url!r}, timeout=0.5, "
                      f"ca={folder + '/ca.pem'!r})\ntry:\n  client.health()\n"
                      f"except sluice.Unavailable as e:\n  print(e)\n{end}\n")
            began = time.monotonic()
            got = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                                 timeout=30 * PATIENCE, check=False)
            assert got.returncode == 0 and "within its time" in got.stdout, got
            assert got.stderr == "", got
            assert time.monotonic() - began < 5 * PATIENCE


def test_many_threads_on_one_client():
    with Daemon() as d, sluice.Client(url_of(d)) as client:
        def ask(i):
            job = client.generate("x", **SMALL, seed=i % 2)
            answers.append((i % 2, list(job)[-1].state, job.info.output_sha256))
        answers = []
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8 and {state for _, state, _ in answers} == {"done"}, answers
        assert len({(seed, sha) for seed, _, sha in answers}) == 2, answers


def test_programs_end():
    """Without close(), and by Ctrl-C in the middle of a wait."""
    begin = "import sluice, sys\nclient = sluice.Client(sys.argv[1])\n"
    with Daemon() as d:
        got = subprocess.run([sys.executable, "-c", begin + "print(client.health().ready)",
                              url_of(d)], capture_output=True, text=True, timeout=20 * PATIENCE,
                             check=False)
        assert (got.returncode, got.stdout, got.stderr) == (0, "True\n", ""), got
        waiting = subprocess.Popen(
            [sys.executable, "-u", "-c", begin + f"job = client.generate('x', **{LONG!r})\n"
             "print(job.id)\ntry:\n  for event in job: pass\nexcept KeyboardInterrupt:\n"
             "  print(job.cancel().state)\nclient.close()\n", url_of(d)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        job_id = waiting.stdout.readline().strip()
        d.wait_state(job_id, ["denoising"])
        time.sleep(0.3)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=20 * PATIENCE)
        assert (waiting.returncode, out, err) == (0, "cancelled\n", ""), (out, err)
        wait_for("the job to have stopped", lambda: d.job(job_id)["state"] == "cancelled")


def test_the_default_address():
    """The rule of the sluice command: /run for root, else the user's runtime folder."""
    script = "import sluice; print(sluice.default_url())"
    expect = "/run/sluice" if os.geteuid() == 0 else "/x/y/sluice"
    env = {**os.environ, "XDG_RUNTIME_DIR": "/x/y"}
    got = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True,
                         check=True, timeout=20 * PATIENCE)
    assert got.stdout.strip() == f"ipc://{expect}/sluice.sock", got
    if os.geteuid() == 0:
        user = "import os; os.setuid(1234); "
        for runtime, folder in (("/x/y", "/x/y/sluice"), ("x", "/tmp/sluice-1234"),
                                ("", "/tmp/sluice-1234")):
            got = subprocess.run([sys.executable, "-c", "import sluice; " + user +
                                  "print(sluice.default_url())"],
                                 env={**env, "XDG_RUNTIME_DIR": runtime}, capture_output=True,
                                 text=True, check=True, timeout=20 * PATIENCE)
            assert got.stdout.strip() == f"ipc://{folder}/sluice.sock", got


run(globals())
