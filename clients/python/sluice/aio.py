"""AsyncClient: sluiced from asyncio."""
from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any, AsyncGenerator, AsyncIterator, Callable, Iterable, List, \
    Optional, Type, TypeVar, Union

from google.protobuf.message import Message

from . import sluice_pb2 as pb
from ._channel import Channel, default_url, tls_config
from ._part import Part
from .errors import DataLoss, InvalidArgument, JobCancelled, JobFailed, OutOfRange
from .types import ENDED, Event, Fetched, Options, components as to_components, enum_value, \
    new_request_id, state_name, to_event, to_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=Message)

DEFAULT_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 1800.0  # reading a 14B checkpoint from a slow disk
WATCH_WAIT_S = 10.0
# The daemon reads no further request of a connection that has 8 under way: long
# polls leave half of them to other calls.  Who finds no place asks now and then.
MAX_LONG_POLLS = 4
SHORT_POLL_S = 0.5
CHUNK_BYTES = 4 << 20
PIECE_BYTES = 768 << 10
IN_REQUEST_BYTES = 512 << 10

Progress = Callable[[int, int], None]


class AsyncClient:
    """A connection to sluiced; any number of calls side by side, in one event loop.

        async with AsyncClient() as client:
            job = await client.generate("a cat", model="tiny", width=128)
            async for event in job:
                print(event.text)
            print((await job.fetch("cat.mp4")).sha256)

    url      where the daemon listens: ipc://PATH or tls+tcp://HOST:PORT; None: the
             local daemon of this user, like the `sluice` command
    ca       PEM file that the daemon's certificate is checked against (TLS)
    cert,    PEM files: the client's own certificate and its key, for a daemon that
    key      wants one
    server_name  what the daemon's certificate is made out to, if not HOST
    token    bearer token, for a daemon that wants one
    timeout  seconds for each answer, connecting and sending again included

    It connects with the first call, and again when the connection breaks; what was
    not answered is sent again within its timeout.  Calls raise SluiceError.
    """

    def __init__(self, url: Optional[str] = None, *, ca: Optional[str] = None,
                 cert: Optional[str] = None, key: Optional[str] = None,
                 server_name: Optional[str] = None, token: str = "",
                 timeout: float = DEFAULT_TIMEOUT_S):
        self.url = url or default_url()
        self.timeout = timeout
        self._channel = Channel(self.url, tls_config(self.url, ca, cert, key, server_name), token)
        self._long_polls = 0

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls that are under way raise Unavailable."""
        self._channel.close()

    async def call(self, method: str, request: Message, reply_type: Type[M],
                   timeout: Optional[float] = None) -> M:
        """Any method of api/sluice.proto: call("Health", pb.HealthRequest(), pb.HealthReply)."""
        return await self._channel.call(method, request, reply_type,
                                        self.timeout if timeout is None else timeout)

    # ---- jobs ----

    async def generate(self, prompt: str, **options: "Unpack[Options]") -> "AsyncJob":
        """Submits a job and returns at once; see Options for what can be said.

        Raises ResourceExhausted when the job does not fit (`nearest` is the nearest
        that does), InvalidArgument when a value is wrong (`field` says which).
        """
        return await self.submit(to_request(prompt, options))

    async def submit(self, request: pb.GenerateRequest) -> "AsyncJob":
        """generate, from a message; an empty request_id or model is filled in."""
        if not request.request_id:
            request.request_id = new_request_id()
        if not request.model:
            request.model = await self._only_model()
        if len(request.image) > IN_REQUEST_BYTES:
            request.image_id = await self.upload(request.image)
            request.image = b""
        reply = await self.call("Generate", request, pb.GenerateReply)
        return AsyncJob(self, reply.job)

    async def upload(self, data: bytes) -> str:
        """Sends what a message cannot hold, in pieces; its id, for `image_id`."""
        sha256 = hashlib.sha256(data).hexdigest()
        at, complete = 0, False
        while not complete:
            request = pb.UploadInputRequest(upload_id=sha256, offset=at, size_bytes=len(data),
                                            sha256=sha256, data=data[at:at + PIECE_BYTES])
            reply = await self.call("UploadInput", request, pb.UploadInputReply)
            complete = reply.complete
            if not complete and reply.received_bytes <= at:
                raise DataLoss("the daemon takes no more of the upload")
            at = reply.received_bytes
        return sha256

    async def decode(self, job: Union[str, "AsyncJob"], *, output: str = "",
                     vae_precision: str = "", request_id: str = "") -> "AsyncJob":
        """A job that makes the video of a job that was asked for output "latent"."""
        request = pb.DecodeLatentRequest(
            request_id=request_id or new_request_id(), job_id=_id_of(job),
            output=enum_value(pb.OutputFormat, output, "output"),
            vae_precision=enum_value(pb.Precision, vae_precision, "vae_precision"))
        return AsyncJob(self, (await self.call("DecodeLatent", request,
                                               pb.DecodeLatentReply)).job)

    async def plan(self, prompt: str = "", **options: "Unpack[Options]") -> pb.PlanJobReply:
        """Would this job fit now?  The plan, to the byte, and the refusal if it would not."""
        request = to_request(prompt, options)
        if not request.model:
            request.model = await self._only_model()
        return await self.call("PlanJob", pb.PlanJobRequest(request=request), pb.PlanJobReply)

    async def job(self, job_id: str) -> "AsyncJob":
        """A job by its id, or by the request_id of an own job."""
        reply = await self.call("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobReply)
        return AsyncJob(self, reply.job)

    async def jobs(self, active_only: bool = False, limit: int = 0) -> List["AsyncJob"]:
        """Newest first; limit 0: 100."""
        request = pb.ListJobsRequest(active_only=active_only, limit=limit)
        reply = await self.call("ListJobs", request, pb.ListJobsReply)
        return [AsyncJob(self, job) for job in reply.jobs]

    async def cancel(self, job: Union[str, "AsyncJob"]) -> "AsyncJob":
        """Cancels; returns when the job has stopped.  One that has ended stays as it is."""
        request = pb.CancelJobRequest(job_id=_id_of(job))
        reply = await self.call("CancelJob", request, pb.CancelJobReply)
        return AsyncJob(self, reply.job)

    async def watch(self, job: Union[str, "AsyncJob"],
                    after_seq: int = 0) -> AsyncGenerator[Event, None]:
        """The events of a job behind after_seq, until it has ended."""
        async for reply in self._watch(_id_of(job), after_seq):
            for event in reply.events:
                yield to_event(event)

    async def fetch(self, job: Union[str, "AsyncJob"], path: Optional[str] = None,
                    progress: Optional[Progress] = None) -> Fetched:
        """Fetches the output of a job that is done.

        It appears at path (None: <job>.<format> in the current folder) only when it
        is whole and its SHA-256 is right; until then it is <path>.part, which a later
        fetch continues.  progress(done_bytes, size_bytes) is called for each chunk.
        """
        job_id = _id_of(job)
        if path is None:
            info = job.info if isinstance(job, AsyncJob) else (await self.job(job)).info
            name = pb.OutputFormat.Name(info.output or pb.MP4).lower()
            path = f"{info.job_id}.{name}"
        part = await asyncio.get_running_loop().run_in_executor(None, Part, os.fspath(path))
        try:
            return await self._fetch(job_id, part, progress)
        finally:
            part.close()

    # ---- the daemon ----

    async def load(self, model: str, components: Iterable[str] = (), *, precision: str = "",
                   residency: str = "", pin: bool = True,
                   timeout: float = LOAD_TIMEOUT_S) -> pb.Receipt:
        """Loads a model, or components of it ("dit", "vae", ...), and keeps it loaded."""
        request = pb.LoadModelRequest(
            model=model, components=to_components(components), no_pin=not pin,
            precision=enum_value(pb.Precision, precision, "precision"),
            residency=enum_value(pb.Residency, residency, "residency"))
        return (await self.call("LoadModel", request, pb.LoadModelReply, timeout)).receipt

    async def unload(self, model: str = "", components: Iterable[str] = (), *, release: str = "",
                     now: bool = False, timeout: float = LOAD_TIMEOUT_S) -> pb.Receipt:
        """Gives the memory of a model back ("": of all).  release: "soft" keeps it in
        the host tier, "full" does not, "hard" replaces the worker as well."""
        request = pb.UnloadModelRequest(
            model=model, components=to_components(components), now=now,
            release=enum_value(pb.Release, release, "release"))
        return (await self.call("UnloadModel", request, pb.UnloadModelReply, timeout)).receipt

    async def models(self) -> List[pb.ModelInfo]:
        return list((await self.call("ListModels", pb.ListModelsRequest(),
                                     pb.ListModelsReply)).models)

    async def stats(self) -> List[pb.DeviceMemory]:
        """Who holds the memory of each device, to the byte."""
        return list((await self.call("GetMemoryStats", pb.GetMemoryStatsRequest(),
                                     pb.GetMemoryStatsReply)).devices)

    async def health(self) -> pb.HealthReply:
        return await self.call("Health", pb.HealthRequest(), pb.HealthReply)

    async def info(self) -> pb.GetServerInfoReply:
        """What the daemon is: versions, methods, features, devices, and who you are to it."""
        return await self.call("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoReply)

    # ---- within ----

    async def _only_model(self) -> str:
        usable = [model.name for model in await self.models() if not model.problem]
        if len(usable) != 1:
            raise InvalidArgument(f"which of {len(usable)} models? model can be: "
                                  f"{', '.join(usable)}" if usable else
                                  "the daemon has no usable model",
                                  field=pb.FieldViolation(field="model"))
        return usable[0]

    async def _watch(self, job_id: str, seq: int) -> AsyncIterator[pb.WatchJobReply]:
        """Replies with events behind seq, each once, until the job has ended."""
        while True:
            began = time.monotonic()
            wait_s = WATCH_WAIT_S if self._long_polls < MAX_LONG_POLLS else 0.0
            self._long_polls += wait_s > 0
            try:
                request = pb.WatchJobRequest(job_id=job_id, after_seq=seq,
                                             wait_ns=round(wait_s * 1e9))
                reply = await self.call("WatchJob", request, pb.WatchJobReply,
                                        wait_s + self.timeout)
            finally:
                self._long_polls -= wait_s > 0
            if reply.events:
                seq = reply.events[-1].seq
            yield reply
            # The last event may not have been among those that fit into the reply.
            if reply.job.state in ENDED and (not reply.events
                                             or reply.events[-1].state == reply.job.state):
                return
            if not reply.events and time.monotonic() - began < SHORT_POLL_S:
                await asyncio.sleep(SHORT_POLL_S)

    async def _fetch(self, job_id: str, part: Part, progress: Optional[Progress]) -> Fetched:
        run = asyncio.get_running_loop().run_in_executor
        while True:
            sha256 = await self._fetch_chunks(job_id, part, progress)
            if part.sha256() == sha256:
                break
            resumed, got = part.resumed_bytes > 0, part.sha256()
            part.start_over()
            # What an earlier fetch left may have belonged to another file.
            if not resumed:
                raise DataLoss(f"output of job {job_id} arrived with SHA-256 {got} instead of "
                               f"{sha256}")
        await run(None, part.publish)
        return Fetched(part.path, part.done_bytes, part.resumed_bytes, sha256)

    async def _fetch_chunks(self, job_id: str, part: Part, progress: Optional[Progress]) -> str:
        """Until the .part has the size of the output; its SHA-256 as the daemon says."""
        run = asyncio.get_running_loop().run_in_executor
        whole = None  # (size, sha256), once known
        while whole is None or part.done_bytes < whole[0]:
            request = pb.FetchOutputRequest(job_id=job_id, offset=part.done_bytes,
                                            max_bytes=CHUNK_BYTES)
            try:
                chunk = await self.call("FetchOutput", request, pb.FetchOutputReply)
            except (OutOfRange, InvalidArgument):
                if part.done_bytes == 0 or whole is not None:
                    raise
                part.start_over()  # what was left is longer than this output
                continue
            if whole is not None and whole != (chunk.size_bytes, chunk.sha256):
                raise DataLoss(f"output of job {job_id} changed while it was fetched")
            whole = (chunk.size_bytes, chunk.sha256)
            count = len(chunk.data)
            if (chunk.offset != part.done_bytes or part.done_bytes + count > whole[0]
                    or (count == 0 and part.done_bytes < whole[0])):
                raise DataLoss(f"chunk of job {job_id} at {part.done_bytes} has {count} bytes at "
                               f"{chunk.offset}, of {whole[0]} in all")
            await run(None, part.write, chunk.data)
            if progress is not None:
                progress(part.done_bytes, whole[0])
        return whole[1]


class AsyncJob:
    """A job of an AsyncClient.  `info` is its state as last seen, a sluice.v1.Job;
    watching, waiting and refresh() bring it up to date."""

    def __init__(self, client: AsyncClient, info: pb.Job):
        self._client = client
        self.info = info

    def __repr__(self) -> str:
        return f"<job {self.id} {self.state}>"

    @property
    def id(self) -> str:
        return self.info.job_id

    @property
    def state(self) -> str:
        """"queued", ..., "denoising", "done", "failed", "cancelled"."""
        return state_name(self.info.state)

    @property
    def ended(self) -> bool:
        return self.info.state in ENDED

    async def refresh(self) -> "AsyncJob":
        self.info = (await self._client.job(self.id)).info
        return self

    async def events(self, after_seq: int = 0) -> AsyncGenerator[Event, None]:
        """What happens to the job, from its beginning or behind after_seq, until it has
        ended.  Each event comes once, whatever becomes of the connection."""
        async for reply in self._client._watch(self.id, after_seq):
            self.info = reply.job
            for event in reply.events:
                yield to_event(event)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events()

    async def wait(self) -> "AsyncJob":
        """Until the job is done; raises JobFailed or JobCancelled when it will never be."""
        async for _ in self.events():
            pass
        if self.info.state == pb.CANCELLED_STATE:
            raise JobCancelled(self.info)
        if self.info.state == pb.FAILED:
            raise JobFailed(self.info)
        return self

    async def cancel(self) -> "AsyncJob":
        """Returns when the job has stopped."""
        self.info = (await self._client.cancel(self)).info
        return self

    async def fetch(self, path: Optional[str] = None,
                    progress: Optional[Progress] = None) -> Fetched:
        """Waits until the job is done and fetches its output, see AsyncClient.fetch."""
        await self.wait()
        return await self._client.fetch(self, path, progress)


def _id_of(job: Union[str, AsyncJob]) -> str:
    return job if isinstance(job, str) else job.id
