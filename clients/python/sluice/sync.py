"""Client: sluiced without asyncio.

Each call runs in the AsyncClient of an event loop in a thread of the client's
own: one implementation of everything, calls from any thread, and Ctrl-C ends a
call that waits.
"""
from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any, AsyncGenerator, Coroutine, Iterable, Iterator, \
    List, Optional, Type, TypeVar, Union

from google.protobuf.message import Message

from . import sluice_pb2 as pb
from .aio import DEFAULT_TIMEOUT_S, LOAD_TIMEOUT_S, AsyncClient, AsyncJob, Progress
from .errors import Unavailable
from .types import Event, Fetched, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=Message)
T = TypeVar("T")


# At exit, before nng is ended: no thread may be in the middle of a call then.
_open: "weakref.WeakSet[Client]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for client in list(_open):
        client.close()


class Client:
    """A connection to sluiced; any number of threads may use it at once.

        with Client() as client:
            job = client.generate("a cat", model="tiny", width=128)
            for event in job:
                print(event.text)
            print(job.fetch("cat.mp4").sha256)

    The parameters are those of AsyncClient.  After a fork the child makes a client
    of its own.
    """

    def __init__(self, url: Optional[str] = None, *, ca: Optional[str] = None,
                 cert: Optional[str] = None, key: Optional[str] = None,
                 server_name: Optional[str] = None, token: str = "",
                 timeout: float = DEFAULT_TIMEOUT_S):
        self._async = AsyncClient(url, ca=ca, cert=cert, key=key, server_name=server_name,
                                  token=token, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sluice", daemon=True)
        self._thread.start()
        _open.add(self)

    @property
    def url(self) -> str:
        return self._async.url

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls of other threads raise Unavailable."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._async.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1)
        await self._loop.shutdown_asyncgens()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise Unavailable("the client is closed")
        ended = threading.Event()

        async def told() -> T:
            try:
                return await work
            finally:
                ended.set()
        future = asyncio.run_coroutine_threadsafe(told(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():  # interrupted here, it is still under way there
                ended.wait(1)
            raise

    def call(self, method: str, request: Message, reply_type: Type[M],
             timeout: Optional[float] = None) -> M:
        """Any method of api/sluice.proto: call("Health", pb.HealthRequest(), pb.HealthReply)."""
        return self._run(self._async.call(method, request, reply_type, timeout))

    # ---- jobs ----

    def generate(self, prompt: str, **options: "Unpack[Options]") -> "Job":
        """Submits a job and returns at once; see Options for what can be said.

        Raises ResourceExhausted when the job does not fit (`nearest` is the nearest
        that does), InvalidArgument when a value is wrong (`field` says which).
        """
        return Job(self, self._run(self._async.generate(prompt, **options)))

    def submit(self, request: pb.GenerateRequest) -> "Job":
        """generate, from a message; an empty request_id or model is filled in."""
        return Job(self, self._run(self._async.submit(request)))

    def decode(self, job: Union[str, "Job"], *, output: str = "", vae_precision: str = "",
               request_id: str = "") -> "Job":
        """A job that makes the video of a job that was asked for output "latent"."""
        return Job(self, self._run(self._async.decode(_inner(job), output=output,
                                                      vae_precision=vae_precision,
                                                      request_id=request_id)))

    def plan(self, prompt: str = "", **options: "Unpack[Options]") -> pb.PlanJobReply:
        """Would this job fit now?  The plan, to the byte, and the refusal if it would not."""
        return self._run(self._async.plan(prompt, **options))

    def job(self, job_id: str) -> "Job":
        """A job by its id, or by the request_id of an own job."""
        return Job(self, self._run(self._async.job(job_id)))

    def jobs(self, active_only: bool = False, limit: int = 0) -> List["Job"]:
        """Newest first; limit 0: 100."""
        return [Job(self, job) for job in self._run(self._async.jobs(active_only, limit))]

    def cancel(self, job: Union[str, "Job"]) -> "Job":
        """Cancels; returns when the job has stopped.  One that has ended stays as it is."""
        return Job(self, self._run(self._async.cancel(_inner(job))))

    def watch(self, job: Union[str, "Job"], after_seq: int = 0) -> Iterator[Event]:
        """The events of a job behind after_seq, until it has ended."""
        return self._iterate(self._async.watch(_inner(job), after_seq))

    def fetch(self, job: Union[str, "Job"], path: Optional[str] = None,
              progress: Optional[Progress] = None) -> Fetched:
        """Fetches the output of a job that is done.

        It appears at path (None: <job>.<format> in the current folder) only when it
        is whole and its SHA-256 is right; until then it is <path>.part, which a later
        fetch continues.  progress(done_bytes, size_bytes) is called for each chunk, in
        the client's thread.
        """
        return self._run(self._async.fetch(_inner(job), path, progress))

    # ---- the daemon ----

    def load(self, model: str, components: Iterable[str] = (), *, precision: str = "",
             residency: str = "", pin: bool = True, timeout: float = LOAD_TIMEOUT_S) -> pb.Receipt:
        """Loads a model, or components of it ("dit", "vae", ...), and keeps it loaded."""
        return self._run(self._async.load(model, components, precision=precision,
                                          residency=residency, pin=pin, timeout=timeout))

    def unload(self, model: str = "", components: Iterable[str] = (), *, release: str = "",
               now: bool = False, timeout: float = LOAD_TIMEOUT_S) -> pb.Receipt:
        """Gives the memory of a model back ("": of all).  release: "soft" keeps it in
        the host tier, "full" does not, "hard" replaces the worker as well."""
        return self._run(self._async.unload(model, components, release=release, now=now,
                                            timeout=timeout))

    def models(self) -> List[pb.ModelInfo]:
        return self._run(self._async.models())

    def stats(self) -> List[pb.DeviceMemory]:
        """Who holds the memory of each device, to the byte."""
        return self._run(self._async.stats())

    def health(self) -> pb.HealthReply:
        return self._run(self._async.health())

    def info(self) -> pb.GetServerInfoReply:
        """What the daemon is: versions, methods, features, devices, and who you are to it."""
        return self._run(self._async.info())

    # ---- within ----

    def _iterate(self, events: AsyncGenerator[Event, None]) -> Iterator[Event]:
        async def step() -> Optional[Event]:
            async for event in events:
                return event
            return None
        try:
            while True:
                event = self._run(step())
                if event is None:
                    return
                yield event
        finally:
            if not self._loop.is_closed():
                self._run(events.aclose())


class Job:
    """A job of a Client.  `info` is its state as last seen, a sluice.v1.Job;
    watching, waiting and refresh() bring it up to date."""

    def __init__(self, client: Client, job: AsyncJob):
        self._client = client
        self._job = job

    def __repr__(self) -> str:
        return repr(self._job)

    @property
    def info(self) -> pb.Job:
        return self._job.info

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def state(self) -> str:
        """"queued", ..., "denoising", "done", "failed", "cancelled"."""
        return self._job.state

    @property
    def ended(self) -> bool:
        return self._job.ended

    def refresh(self) -> "Job":
        self._client._run(self._job.refresh())
        return self

    def events(self, after_seq: int = 0) -> Iterator[Event]:
        """What happens to the job, from its beginning or behind after_seq, until it has
        ended.  Each event comes once, whatever becomes of the connection."""
        return self._client._iterate(self._job.events(after_seq))

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def wait(self) -> "Job":
        """Until the job is done; raises JobFailed or JobCancelled when it will never be."""
        self._client._run(self._job.wait())
        return self

    def cancel(self) -> "Job":
        """Returns when the job has stopped."""
        self._client._run(self._job.cancel())
        return self

    def fetch(self, path: Optional[str] = None, progress: Optional[Progress] = None) -> Fetched:
        """Waits until the job is done and fetches its output, see Client.fetch."""
        self._client._run(self._job.wait())
        return self._client.fetch(self, path, progress)


def _inner(job: Union[str, Job]) -> Union[str, AsyncJob]:
    return job if isinstance(job, str) else job._job
