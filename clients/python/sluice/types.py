"""Plain values of the client's interface, and enums under their names.

Enum values are written in lower case, as the `sluice` command does: "bf16",
"text_encoder", "done", "cancelled".
"""
from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import Any, Iterable, List, Mapping, TypedDict, Union

from . import sluice_pb2 as pb

ENDED = (pb.DONE, pb.FAILED, pb.CANCELLED_STATE)


class Options(TypedDict, total=False):
    """What generate and plan take beside the prompt; what is left out is the
    model's or the daemon's default.  Any other field of GenerateRequest may be
    given under its name, too."""

    model: str        # may be left out when the daemon has exactly one usable model
    width: int
    height: int
    frames: int
    steps: int        # 1 to 4; with "unipc" 1 to 200
    sampler: str      # "sde", "ode", "unipc"
    sigma_max: float  # "sde", "ode"
    shift: float      # "unipc"
    guidance: float   # "unipc": away from the negative prompt; 1 is none
    guidance_low: float    # of the low-noise expert of two
    negative_prompt: str   # "unipc"; Wan's own when left out
    boundary: float   # two experts: where the second takes over
    attention: str    # "dense", "sla", "sagesla"
    topk: float       # "sla", "sagesla": of the key blocks
    image: Union[bytes, "os.PathLike[str]", str]  # the first frame, its bytes or its file
    sizing: str       # "fixed", "adaptive"
    vae_precision: str     # "f32", "bf16"
    dialect: str      # "turbo", "official"
    layer_norm: str   # "exact", "turbo-compat"
    seed: int         # the same request with the same seed gives the same bytes
    precision: str    # "bf16", "f32", "int8", "fp8"
    output: str       # "mp4", "y4m", "png", "latent"
    priority: int     # 1 (last) to 9 (first)
    deadline: float   # seconds from now by which the job has to be done
    streaming: str    # "auto", "off", "on"
    request_id: str   # makes the request safe to repeat; made up when left out


@dataclass(frozen=True)
class Event:
    """One step of a job's way."""

    seq: int          # 1, 2, 3, ... of the job
    time_ns: int      # wall clock, since 1970
    state: str        # "queued", ..., "denoising", "done"
    step: int
    step_count: int
    position: int     # in the queue, from 1; 0: not queued
    text: str         # for people: "step 2 of 4"


@dataclass(frozen=True)
class Fetched:
    """A file that fetch has written, whole and checked."""

    path: str
    size_bytes: int
    resumed_bytes: int  # taken over from an earlier, interrupted fetch
    sha256: str


def state_name(state: int) -> str:
    """"denoising"; the number of a state that this version does not know."""
    try:
        name = pb.JobState.Name(state)
    except ValueError:
        return str(state)
    return "cancelled" if state == pb.CANCELLED_STATE else name.lower()


def to_event(event: pb.JobEvent) -> Event:
    return Event(event.seq, event.time_ns, state_name(event.state), event.step, event.step_count,
                 event.position, event.text)


def enum_value(enum: Any, name: str, what: str) -> Any:
    """The value of an enum by its name in lower case; "" is the default."""
    if not name:
        return 0
    try:
        return enum.Value(name.upper().replace("-", "_"))
    except ValueError:
        known = ", ".join(key.lower() for key in enum.keys()[1:])
        raise ValueError(f'{what} is "{name}", it can be: {known}') from None


def components(names: Iterable[str]) -> List[Any]:
    return [enum_value(pb.Component, name, "component") for name in names]


_ENUMS = {"sampler": pb.Sampler, "precision": pb.Precision, "output": pb.OutputFormat,
          "streaming": pb.Streaming, "attention": pb.Attention, "sizing": pb.Sizing,
          "vae_precision": pb.Precision, "dialect": pb.Dialect, "layer_norm": pb.LayerNorm}


def to_request(prompt: str, options: Mapping[str, Any]) -> pb.GenerateRequest:
    request = pb.GenerateRequest(prompt=prompt)
    known = pb.GenerateRequest.DESCRIPTOR.fields_by_name
    for name, value in options.items():
        if name == "deadline":
            request.deadline_ns = round(value * 1e9)
        elif name in _ENUMS and isinstance(value, str):
            setattr(request, name, enum_value(_ENUMS[name], value, name))
        elif name == "image" and not isinstance(value, bytes):
            with open(value, "rb") as file:
                request.image = file.read()
        elif name in known:
            setattr(request, name, value)
        else:
            raise TypeError(f"there is no option {name!r}")
    return request


def new_request_id() -> str:
    return uuid.uuid4().hex
