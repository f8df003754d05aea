"""What calls raise: one class for each gRPC status code, all of them SluiceError."""
from __future__ import annotations

from typing import Dict, Optional, Type

from . import sluice_pb2 as pb


class SluiceError(Exception):
    """A call that was not answered with OK.

    message         what went wrong, for people
    code, code_name the gRPC status code and its name: 8, "RESOURCE_EXHAUSTED"
    answered        True: the daemon said so; False: it could not be reached or
                    did not answer, and code is what this side makes of it
    refusal         why a request does not fit (RESOURCE_EXHAUSTED), or None
    field           which field is wrong (INVALID_ARGUMENT), or None
    retry_after     seconds after which it makes sense to try again; 0: not said
    """

    code = 2
    code_name = "UNKNOWN"

    def __init__(self, message: str, *, answered: bool = False,
                 refusal: Optional[pb.Refusal] = None,
                 field: Optional[pb.FieldViolation] = None, retry_after: float = 0.0):
        super().__init__(message)
        self.message = message
        self.answered = answered
        self.refusal = refusal
        self.field = field
        self.retry_after = retry_after

    @property
    def nearest(self) -> Optional[pb.NearestRequest]:
        """The nearest request that fits, when the refusal names one."""
        if self.refusal is None or not self.refusal.nearest.exists:
            return None
        return self.refusal.nearest

    @property
    def never(self) -> bool:
        """True: the request can never fit on this device; waiting does not help."""
        return self.refusal is not None and self.refusal.when == pb.Refusal.NEVER


class Cancelled(SluiceError):
    code, code_name = 1, "CANCELLED"


class Unknown(SluiceError):
    """A code that this version does not know; `code` is the daemon's."""


class InvalidArgument(SluiceError):
    code, code_name = 3, "INVALID_ARGUMENT"


class DeadlineExceeded(SluiceError):
    code, code_name = 4, "DEADLINE_EXCEEDED"


class NotFound(SluiceError):
    code, code_name = 5, "NOT_FOUND"


class AlreadyExists(SluiceError):
    """A request_id that belongs to another request."""

    code, code_name = 6, "ALREADY_EXISTS"


class PermissionDenied(SluiceError):
    code, code_name = 7, "PERMISSION_DENIED"


class ResourceExhausted(SluiceError):
    """Does not fit: see refusal, nearest and never."""

    code, code_name = 8, "RESOURCE_EXHAUSTED"


class FailedPrecondition(SluiceError):
    code, code_name = 9, "FAILED_PRECONDITION"


class Aborted(SluiceError):
    code, code_name = 10, "ABORTED"


class OutOfRange(SluiceError):
    code, code_name = 11, "OUT_OF_RANGE"


class Unimplemented(SluiceError):
    code, code_name = 12, "UNIMPLEMENTED"


class Internal(SluiceError):
    code, code_name = 13, "INTERNAL"


class Unavailable(SluiceError):
    """The daemon cannot be reached, or has to be asked again later."""

    code, code_name = 14, "UNAVAILABLE"


class DataLoss(SluiceError):
    """What arrived is not what was sent, or not the protocol."""

    code, code_name = 15, "DATA_LOSS"


class Unauthenticated(SluiceError):
    code, code_name = 16, "UNAUTHENTICATED"


_BY_CODE: Dict[int, Type[SluiceError]] = {
    c.code: c for c in (Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound,
                        AlreadyExists, PermissionDenied, ResourceExhausted, FailedPrecondition,
                        Aborted, OutOfRange, Unimplemented, Internal, Unavailable, DataLoss,
                        Unauthenticated)
}


def class_of_code(code: int) -> Type[SluiceError]:
    return _BY_CODE.get(code, Unknown)


def from_reply(reply: pb.Reply, method: str) -> SluiceError:
    """The exception of a reply whose code is not OK."""
    cls = class_of_code(reply.code)
    error = cls(reply.message or f"{method} ended with {cls.code_name} ({reply.code})",
                answered=True,
                refusal=reply.refusal if reply.HasField("refusal") else None,
                field=reply.field if reply.HasField("field") else None,
                retry_after=reply.retry_after_ns / 1e9)
    error.code = reply.code
    return error


class JobFailed(SluiceError):
    """A job ended and has no output; `job` is its last state, `code` why."""

    def __init__(self, job: pb.Job):
        super().__init__(f"job {job.job_id} failed: {job.message or 'no reason given'}",
                         answered=True)
        self.job = job
        self.code = job.code
        self.code_name = class_of_code(job.code).code_name


class JobCancelled(JobFailed):
    """A job was cancelled."""

    def __init__(self, job: pb.Job):
        super().__init__(job)
        self.message = f"job {job.job_id} was cancelled"
        self.args = (self.message,)
