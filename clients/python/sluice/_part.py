"""FILE.part: an output on its way to FILE, whole or not at all."""
from __future__ import annotations

import hashlib
import os

try:
    import fcntl
except ImportError:  # Windows: two fetches of one file are not told apart there
    fcntl = None  # type: ignore[assignment]

BLOCK_BYTES = 1 << 20


class Part:
    """Opens or creates PATH.part, alone, and hashes what an earlier fetch left.

    done_bytes  what is in the file; sha256() is over that
    """

    def __init__(self, path: str):
        self.path = path
        self.part_path = path + ".part"
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self.part_path, flags, 0o666), "r+b", buffering=0)
        self._ours = False
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._ours = True
            self._hash = hashlib.sha256()
            self.done_bytes = 0
            while True:
                block = self._file.read(BLOCK_BYTES)
                if not block:
                    break
                self._hash.update(block)
                self.done_bytes += len(block)
        except BlockingIOError as e:
            self.close()
            raise BlockingIOError(
                e.errno, f'"{self.part_path}" is being written by another fetch') from None
        except BaseException:
            self.close()
            raise
        self.resumed_bytes = self.done_bytes

    def start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.done_bytes = self.resumed_bytes = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view):]
        self._hash.update(data)
        self.done_bytes += len(data)

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def publish(self) -> None:
        os.fsync(self._file.fileno())
        os.replace(self.part_path, self.path)
        self._ours = False

    def close(self) -> None:
        """Leaves the .part where it can be continued; an empty one goes."""
        try:
            if self._ours and os.fstat(self._file.fileno()).st_size == 0:
                os.unlink(self.part_path)
        finally:
            self._file.close()
