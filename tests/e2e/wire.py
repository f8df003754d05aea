"""The wire format of api/WIRE.md and as much of protobuf as it takes, by hand.

Nothing here comes from a library or from generated code: it is a second
reading of the documents.
"""
import os
import socket
import struct

REQ_HELLO = b"\x00SP\x00\x00\x30\x00\x00"
REP_HELLO = b"\x00SP\x00\x00\x31\x00\x00"


def varint(n):
    out = bytearray()
    n &= (1 << 64) - 1
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """One field: int as varint, float as a double, str and bytes by length."""
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def read_varint(data, at):
    n = shift = 0
    while True:
        byte = data[at]
        at += 1
        n |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return n, at


def parse(data):
    """{field number: [values]}; lengths stay bytes."""
    fields, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 1:
            value, at = struct.unpack("<d", data[at:at + 8])[0], at + 8
        elif kind == 2:
            length, at = read_varint(data, at)
            assert at + length <= len(data), "a field ends behind its message"
            value, at = data[at:at + length], at + length
        elif kind == 5:
            value, at = data[at:at + 4], at + 4
        else:
            raise AssertionError(f"wire type {kind}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def envelope(method, payload=b"", timeout_ns=10_000_000_000):
    return message((1, f"sluice.v1.Inference/{method}"), (2, payload), (3, timeout_ns), (6, 1))


def frame(body, ids=(0x80000001,)):
    body = b"".join(struct.pack(">I", i) for i in ids) + body
    return b"\x01" + struct.pack(">Q", len(body)) + body


class Connection:
    """A REQ socket, nothing more."""

    def __init__(self, path, hello=REQ_HELLO, limit_s=20):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(limit_s)
        self.sock.connect(path)
        if hello is not None:
            self.sock.sendall(hello)
            got = self.read(8)
            assert got == REP_HELLO, got
        self.next_id = struct.unpack(">I", os.urandom(4))[0] | 0x80000000

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def read(self, n):
        out = b""
        while len(out) < n:
            piece = self.sock.recv(n - len(out))
            if not piece:
                raise EOFError(f"closed after {len(out)} of {n} bytes")
            out += piece
        return out

    def read_frame(self):
        head = self.read(9)
        assert head[0] == 1, head
        return self.read(struct.unpack(">Q", head[1:])[0])

    def send(self, method, payload=b"", ids=None):
        self.next_id = self.next_id + 1 & 0xFFFFFFFF | 0x80000000
        ids = ids or (self.next_id,)
        self.sock.sendall(frame(envelope(method, payload), ids))
        return ids

    def receive(self):
        """(ids, code, message, payload, the whole reply's fields)."""
        body, ids = self.read_frame(), []
        while True:
            ids.append(struct.unpack(">I", body[:4])[0])
            body = body[4:]
            if ids[-1] & 0x80000000:
                break
        reply = parse(body)
        code = reply.get(1, [0])[0]
        return tuple(ids), code, reply.get(2, [b""])[0].decode(), reply.get(3, [b""])[0], reply

    def call(self, method, payload=b""):
        """The payload of a good reply; anything else is an error."""
        ids = self.send(method, payload)
        got, code, text, payload, _ = self.receive()
        assert got == ids, (got, ids)
        assert code == 0, (method, code, text)
        return payload
