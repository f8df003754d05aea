"""One nng REQ socket to one daemon: calls, deadlines, retries.

Every call has an nng context of its own, so calls are under way side by side on
one connection.  nng's own resending is off: it would resend in the middle of a
long poll.  Instead a call whose connection breaks is sent again here, on the
connection that nng makes anew, until the call's deadline; all methods are
idempotent.

Used from one event loop.
"""
from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from typing import Awaitable, Callable, Optional, Type, TypeVar
from urllib.parse import urlsplit

import pynng
from google.protobuf.message import DecodeError, Message

from . import sluice_pb2 as pb
from .errors import DataLoss, DeadlineExceeded, InvalidArgument, SluiceError, Unavailable, \
    from_reply

R = TypeVar("R", bound=Message)
T = TypeVar("T")

API_VERSION = 1
SERVICE = "sluice.v1.Inference/"
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = (4 << 20) + (64 << 10)
# Closings without a reply after which the daemon is taken to refuse the request.
MAX_CLOSINGS = 8
FIRST_BACKOFF_S = 0.01
LONGEST_BACKOFF_S = 1.0


def default_url() -> str:
    """Where a daemon of this user listens, as the `sluice` command sees it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        folder = "/run/sluice"
    elif runtime.startswith("/"):
        folder = f"{runtime}/sluice"
    else:
        folder = f"/tmp/sluice-{os.geteuid()}"
    return f"ipc://{folder}/sluice.sock"


def _read(path: str, what: str) -> str:
    try:
        with open(path, encoding="ascii") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f'could not read the {what} "{path}": {e}') from e


def tls_config(url: str, ca: Optional[str], cert: Optional[str], key: Optional[str],
               server_name: Optional[str]) -> Optional[pynng.TLSConfig]:
    """None for an address without TLS.  The daemon's certificate is always checked."""
    if not url.startswith("tls+tcp://"):
        if ca or cert or key or server_name:
            raise ValueError(f'certificates were given, but "{url}" does not use TLS')
        return None
    if not ca:
        raise ValueError(f'"{url}" needs ca, the certificate that the daemon\'s is checked against')
    if bool(cert) != bool(key):
        raise ValueError("cert and key belong together, only one was given")
    try:
        return pynng.TLSConfig(
            pynng.TLSConfig.MODE_CLIENT, auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED,
            server_name=server_name or urlsplit(url).hostname, ca_string=_read(ca, "CA"),
            own_cert_string=_read(cert, "certificate") if cert else None,
            own_key_string=_read(key, "key") if key else None)
    except pynng.NNGException as e:
        raise ValueError(f'could not use ca "{ca}", cert "{cert}", key "{key}": {e}') from e


# nng must not be called once the interpreter has ended it (pynng does so, at exit):
# who forgot to close is closed before.
_open: "weakref.WeakSet[Channel]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for channel in list(_open):
        channel.close()


class Channel:
    def __init__(self, url: str, tls: Optional[pynng.TLSConfig], token: str):
        self.url = url
        self._tls = tls
        self._token = token
        self._socket: Optional[pynng.Req0] = None  # dialled
        self._dialling: Optional[pynng.Req0] = None
        self._connecting: Optional["asyncio.Task[None]"] = None
        self._closed = False
        _open.add(self)

    def close(self) -> None:
        """Calls that are under way end with Unavailable."""
        self._closed = True
        for socket in (self._socket, self._dialling):
            if socket is not None:
                socket.close()

    async def call(self, method: str, request: Message, reply_type: Type[R], timeout: float) -> R:
        """Asks, and asks again while the connection breaks, for timeout seconds."""
        deadline = time.monotonic() + timeout
        envelope = pb.Envelope(method=SERVICE + method, payload=request.SerializeToString(),
                               token=self._token, api_version=API_VERSION)
        if envelope.ByteSize() > MAX_REQUEST_BYTES - 64:  # room for the ids and the time
            raise InvalidArgument(f"{method}: request of {envelope.ByteSize()} bytes, at most "
                                  f"{MAX_REQUEST_BYTES - 64} go out")
        backoff = FIRST_BACKOFF_S
        for closings in range(1, MAX_CLOSINGS + 1):
            body = await self._exchange(method, envelope, deadline)
            if body is not None:
                return _unpack(body, method, reply_type)
            if time.monotonic() + backoff >= deadline or closings == MAX_CLOSINGS:
                break
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_S)
        raise Unavailable(f'"{self.url}" closed the connection {closings} times without an answer '
                          f"to {method}")

    async def _exchange(self, method: str, envelope: pb.Envelope,
                        deadline: float) -> Optional[bytes]:
        """One request and its reply; None when the connection broke between them."""
        try:
            socket = await self._connected(deadline)
            left = deadline - time.monotonic()
            envelope.timeout_ns = max(1, round(left * 1e9))
            with socket.new_context() as context:
                # Waits while there is no connection: nng is making one.
                await self._in_time(context.asend(envelope.SerializeToString()), deadline,
                                    f'{method}: no connection to "{self.url}"', Unavailable)
                body: bytes = await self._in_time(context.arecv(), deadline,
                                                  f'{method}: no answer from "{self.url}"',
                                                  DeadlineExceeded)
                return body
        except (pynng.ConnectionReset, pynng.ConnectionAborted):
            return None
        except pynng.Closed:
            raise Unavailable("the client is closed") from None
        except pynng.NNGException as e:
            raise Unavailable(f'{method}: "{self.url}": {e}') from e

    @staticmethod
    async def _in_time(work: "Awaitable[T]", deadline: float, what: str,
                       error: Type[SluiceError]) -> T:
        left = max(0.0, deadline - time.monotonic())
        try:
            return await asyncio.wait_for(work, left)
        except asyncio.TimeoutError:
            raise error(f"{what} within its time") from None

    async def _connected(self, deadline: float) -> pynng.Req0:
        """The socket, dialled by the first call; afterwards nng reconnects by itself.
        A daemon that was never there is reported at once."""
        if self._closed:
            raise pynng.Closed("closed", pynng.lib.NNG_ECLOSED)
        if self._socket is None:
            if self._connecting is None:
                self._connecting = asyncio.ensure_future(self._dial())
                self._connecting.add_done_callback(self._dialled)
            await self._in_time(asyncio.shield(self._connecting), deadline,
                                f'no connection to "{self.url}"', Unavailable)
        assert self._socket is not None
        return self._socket

    def _dialled(self, task: "asyncio.Task[None]") -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may be left

    async def _dial(self) -> None:
        socket = pynng.Req0(resend_time=-1, recv_max_size=MAX_REPLY_BYTES, reconnect_time_min=20,
                            reconnect_time_max=1000, tls_config=self._tls)
        self._dialling = socket
        try:
            await _in_thread(lambda: socket.dial(self.url, block=True))
        except pynng.Closed:
            raise Unavailable("the client is closed") from None
        except BaseException as e:
            socket.close()
            if isinstance(e, pynng.NNGException):
                raise Unavailable(f'could not connect to "{self.url}": {e}') from e
            raise
        finally:
            self._dialling = None
        self._socket = socket


async def _in_thread(work: Callable[[], object]) -> None:
    """Runs what blocks (name lookup, connect, handshake).  Not in the loop's executor:
    the interpreter waits for that one when it ends, and this may take minutes."""
    loop = asyncio.get_running_loop()
    future: "asyncio.Future[None]" = loop.create_future()

    def tell(error: Optional[BaseException]) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def run() -> None:
        error: Optional[BaseException] = None
        try:
            work()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(tell, error)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            pass
    threading.Thread(target=run, name="sluice-dial", daemon=True).start()
    await future


def _unpack(body: bytes, method: str, reply_type: Type[R]) -> R:
    try:
        reply = pb.Reply.FromString(body)
        if reply.code != 0:
            raise from_reply(reply, method)
        return reply_type.FromString(reply.payload)
    except DecodeError as e:
        raise DataLoss(f"{method}: reply of {len(body)} bytes is no {reply_type.__name__}") from e
