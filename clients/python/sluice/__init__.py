"""A client of sluice, the network inference server for video diffusion models.

    import sluice

    with sluice.Client() as client:
        job = client.generate("a cat", model="tiny", width=128, height=128)
        for event in job:
            print(event.state, event.text)
        print(job.fetch("cat.mp4").sha256)

AsyncClient is the same for asyncio.  Messages (plans, memory numbers, receipts) are
those of api/sluice.proto, in sluice.sluice_pb2; bytes are bytes, times nanoseconds.
"""
from . import sluice_pb2
from ._channel import default_url
from .aio import AsyncClient, AsyncJob
from .errors import Aborted, AlreadyExists, Cancelled, DataLoss, DeadlineExceeded, \
    FailedPrecondition, Internal, InvalidArgument, JobCancelled, JobFailed, NotFound, OutOfRange, \
    PermissionDenied, ResourceExhausted, SluiceError, Unauthenticated, Unavailable, \
    Unimplemented, Unknown
from .sync import Client, Job
from .types import Event, Fetched, Options

__all__ = [
    "Aborted", "AlreadyExists", "AsyncClient", "AsyncJob", "Cancelled", "Client", "DataLoss",
    "DeadlineExceeded", "Event", "FailedPrecondition", "Fetched", "Internal", "InvalidArgument",
    "Job", "JobCancelled", "JobFailed", "NotFound", "Options", "OutOfRange", "PermissionDenied",
    "ResourceExhausted", "SluiceError", "Unauthenticated", "Unavailable", "Unimplemented",
    "Unknown", "default_url", "sluice_pb2",
]
