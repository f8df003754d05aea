"""A client written by hand from api/WIRE.md and api/sluice.proto, against sluiced."""
import hashlib
import socket
import struct

from harness import MODEL, Daemon, run, wait_for
from wire import REQ_HELLO, Connection, envelope, field, frame, message, parse

DONE = 8
GENERATE = message((1, "wire-1"), (2, MODEL), (3, "a red circle"), (4, 64), (5, 64), (6, 5),
                   (7, 1), (10, 7), (12, 2))


def test_a_whole_job_by_hand():
    with Daemon() as d, Connection(d.socket) as c:
        health = parse(c.call("Health"))
        assert health[1] == [1] and health[2] == [b"ok"] and health[4] == [1], health
        models = parse(c.call("ListModels"))
        assert [parse(m)[1] for m in models[1]] == [[MODEL.encode()]]

        job = parse(parse(c.call("Generate", GENERATE))[1][0])
        job_id = job[1][0]
        assert job[2] == [b"wire-1"], job
        again = parse(parse(c.call("Generate", GENERATE))[1][0])
        assert again[1] == [job_id]

        seq, states = 0, []
        while not states or states[-1] < DONE:
            reply = parse(c.call("WatchJob", message((1, job_id), (2, seq), (3, 5_000_000_000))))
            for event in map(parse, reply.get(1, [])):
                assert event[1][0] == seq + 1, (seq, event)
                seq = event[1][0]
                states.append(event[3][0])
            job = parse(reply[2][0])
        assert states[-1] == DONE and job[5] == [DONE], (states, job)
        assert states == sorted(states), states
        assert job[15] == job[16], "planned and measured peak differ"

        data, size = b"", None
        while size is None or len(data) < size:
            chunk = parse(c.call("FetchOutput", message((1, job_id), (2, len(data)), (3, 4000))))
            assert len(chunk[1][0]) <= 4000
            data += chunk[1][0]
            size = chunk[3][0]
        assert hashlib.sha256(data).hexdigest().encode() == chunk[4][0] == job[18][0]
        assert size == len(data) == job[17][0]
        assert data.startswith(b"YUV4MPEG2 W64 H64 F16:1")


def test_requests_side_by_side_on_one_connection():
    with Daemon() as d, Connection(d.socket) as c:
        sent = [c.send("Health") for _ in range(5)]
        stacked = c.send("Health", ids=(7, 8, 0x80000009))
        got = [c.receive() for _ in range(6)]
        assert sorted(g[0] for g in got) == sorted(sent + [stacked])
        assert all(g[1] == 0 for g in got), got


def test_slow_bytes():
    with Daemon() as d:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(20)
        s.connect(d.socket)
        for byte in REQ_HELLO + frame(envelope("Health")):
            s.sendall(bytes([byte]))
        got = b""
        while len(got) < 8 + 9 + 4:
            got += s.recv(4096)
        assert got[8:9] == b"\x01" and got[17:21] == b"\x80\x00\x00\x01", got
        s.close()


def closed(d, data, hello=REQ_HELLO):
    """True when the server closes the connection after `data`."""
    with Connection(d.socket, hello=hello) as c:
        try:
            c.sock.sendall(data)
            while c.sock.recv(4096):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        except socket.timeout:
            return False
        return True


def test_what_ends_a_connection():
    with Daemon() as d:
        huge = b"\x01" + struct.pack(">Q", (1 << 20) + 1) + b"x" * 100
        endless = b"\x01" + struct.pack(">Q", 1 << 63)
        deep = frame(envelope("Health"), ids=(1,) * 9 + (0x80000001,))
        no_end = frame(b"", ids=(1, 2))
        assert closed(d, b"GET / HTTP/1.1\r\n\r\n", hello=None)
        assert closed(d, b"\x00SP\x00\x00\x31\x00\x00", hello=None)  # another REP
        assert closed(d, huge)
        assert closed(d, endless)
        assert closed(d, deep)
        assert closed(d, no_end)
        assert closed(d, b"\x02" + frame(envelope("Health"))[1:])
        with Connection(d.socket) as c:  # and nobody else noticed
            c.call("Health")
        assert d.process.poll() is None


def test_bad_requests_are_answered():
    with Daemon() as d, Connection(d.socket) as c:
        def code_of(method, payload=b""):
            c.send(method, payload)
            return c.receive()[1]
        assert code_of("NoSuchMethod") == 12
        assert code_of("GetJob", b"\xff\xff\xff") == 3
        assert code_of("GetJob", message((1, "no-such-job"))) == 5
        assert code_of("Generate", message((2, MODEL), (3, "x"))) == 3  # no request_id
        assert code_of("Generate", message((1, "a/b"), (2, MODEL), (3, "x"))) == 3
        assert code_of("Generate", message((1, "r"), (2, "../tiny"), (3, "x"))) in (3, 5)
        assert code_of("Generate", message((1, "r"), (2, MODEL), (3, b"\xff\xfe"))) == 3
        assert code_of("Generate", message((1, "r"), (2, MODEL), (3, "x"), (8, 77))) == 3
        assert code_of("LoadModel", message((1, MODEL), (2, 99))) == 3
        # an unknown field is ignored; an envelope that is none is answered
        assert code_of("Health", field(99, "later")) == 0
        c.sock.sendall(frame(b"\xff\xff\xff\xff"))
        assert c.receive()[1] == 3


def test_a_bomb_of_empty_messages():
    with Daemon() as d, Connection(d.socket) as c:
        bomb = b"\x0a\x00" * 30000  # PlanJob.request again and again
        c.send("PlanJob", bomb)
        code = c.receive()[1]
        assert code in (3, 8), code
        c.call("Health")


def test_a_silent_client_holds_nobody_up():
    with Daemon() as d:
        silent = []
        for _ in range(30):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.connect(d.socket)
            silent.append(s)
        half = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        half.connect(d.socket)
        half.sendall(REQ_HELLO + frame(envelope("Health"))[:20])
        wait_for("an answer beside silent clients", lambda: d.cli("health").code == 0, 5)
        for s in silent + [half]:
            s.close()


run(globals())
