"""Clients that are older or newer than the daemon, by hand (api/WIRE.md, Versions)."""
import struct

from harness import MODEL, Daemon, run
from wire import Connection, field, frame, message, parse, varint

DONE = 8
GENERATE = message((1, "skew-1"), (2, MODEL), (3, "a red circle"), (4, 64), (5, 64), (6, 5),
                   (7, 1), (10, 7), (12, 2))
# Fields that this version does not know, of each wire type, one with a message in it.
LATER = (field(1000, 7) + field(1001, 0.5) + field(1002, "later")
         + field(1003, message((1, message((2, b"\xff" * 300))), (2, -1)))
         + varint(1004 << 3 | 5) + struct.pack("<f", 1.5))


class Skewed(Connection):
    """around: goes before and behind the fields of each envelope and payload."""

    def __init__(self, path, around=b"", api_version=None):
        super().__init__(path)
        self.around, self.api_version = around, api_version

    def send(self, method, payload=b"", ids=None):
        self.next_id = self.next_id + 1 & 0xFFFFFFFF | 0x80000000
        body = field(1, f"sluice.v1.Inference/{method}")
        if payload or self.around:
            body += field(2, self.around + payload + self.around)
        if self.api_version is not None:
            body += field(6, self.api_version)
        self.sock.sendall(frame(self.around + body + self.around, (self.next_id,)))
        return (self.next_id,)

    def make_video(self):
        """(job id, SHA-256)"""
        job_id = parse(parse(self.call("Generate", GENERATE))[1][0])[1][0]
        seq, state = 0, 0
        while state < DONE:
            reply = parse(self.call("WatchJob", message((1, job_id), (2, seq),
                                                        (3, 5_000_000_000))))
            seq += len(reply.get(1, []))
            state = parse(reply[2][0])[5][0]
        assert state == DONE, state
        output = parse(self.call("FetchOutput", message((1, job_id))))
        return job_id, output[4][0]


def test_older_and_newer_clients_get_the_same():
    with Daemon() as d:
        with Connection(d.socket) as c:
            info = parse(c.call("GetServerInfo"))
        assert info[2] == [1] and info[3] == [1], info
        assert b"Generate" in info[4] and b"ResetDevice" in info[4], info
        assert info[8] == [b"admin"] and parse(info[6][0])[2] == [b"cpu"], info
        with Skewed(d.socket) as old, Skewed(d.socket, LATER, 99) as new:
            first = old.make_video()
            assert first[1], "no SHA-256"
            plans = [c.call("PlanJob", field(1, GENERATE)) for c in (old, new)]
            assert plans[0] == plans[1] != b""
            inner = new.call("PlanJob", field(1, LATER + GENERATE + LATER))
            assert inner == plans[0]
            for method in ("Health", "GetMemoryStats", "ListModels", "ListJobs", "GetBudgetTable",
                           "Doctor", "WatchEvents", "GetServerInfo"):
                assert parse(new.call(method)).keys() >= parse(old.call(method)).keys(), method
            # With another body it is another request, whoever understands it.
            new.send("Generate", GENERATE)
            assert new.receive()[1] == 6
            # Under an id of its own it is a job like any other, and stays one.
            other = message((1, "skew-2")) + GENERATE[GENERATE.index(field(2, MODEL)):]
            ids = {parse(parse(new.call("Generate", other))[1][0])[1][0] for _ in range(2)}
            assert len(ids) == 1 and first[0] not in ids, ids


def test_what_this_version_does_not_know():
    with Daemon() as d, Skewed(d.socket, LATER, 2) as c:
        c.send("MakeCoffee")
        _, code, text, _, _ = c.receive()
        assert code == 12 and "MakeCoffee" in text, (code, text)
        for number, name in ((8, "sampler"), (11, "precision"), (16, "attention")):
            c.send("Generate", GENERATE + field(number, 77))
            _, code, _, _, reply = c.receive()
            assert code == 3 and parse(reply[5][0])[1] == [name.encode()], (name, reply)
        # A known field of another type is none that can be read.
        c.send("GetJob", field(1, 5))
        assert c.receive()[1] in (3, 5)


run(globals())
