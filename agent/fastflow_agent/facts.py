"""Durable facts about an attempt: journaled here, numbered from 1, sent until the control plane has stored them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.model import Reason, State


@dataclass(frozen=True)
class StateChanged:
    """The attempt moved on to a state that is not its end, or (QUEUED) goes back to be placed elsewhere."""

    state: State
    reason: Reason = Reason.NONE
    message: str = ""
    slot: str = ""
    fact: Literal["state_changed"] = "state_changed"


@dataclass(frozen=True)
class OutOfMemory:
    """The verdict on the memory limit: bytes, the process the kernel chose, and what the verdict rests on."""

    limit_bytes: int
    peak_bytes: int | None = None
    process: str = "unknown"
    evidence: str = ""


@dataclass(frozen=True)
class Ended:
    """The attempt ended; said once."""

    state: State
    reason: Reason = Reason.NONE
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage | None = None
    out_of_memory: OutOfMemory | None = None
    fact: Literal["ended"] = "ended"


@dataclass(frozen=True)
class SoftLimitCrossed:
    """Usage rose above a soft limit, or fell below it again: both share the number `crossing`, from 1.

    `limit` and `peak` are bytes for MEMORY and milli-cores for CPU.
    """

    crossing: int
    kind: Literal["MEMORY", "CPU"]
    limit: int
    peak: int
    raise_time: datetime
    clear_time: datetime | None = None
    seconds_above: float = 0.0
    fact: Literal["soft_limit_crossed"] = "soft_limit_crossed"


@dataclass(frozen=True)
class OutputPaused:
    """The program is frozen since its output can not be delivered, or (`clear_time`) goes on again.

    Both share the number, from 1. `backlog` are the bytes that wait, `quota` those that may; `seconds` it was frozen.
    """

    number: int
    quota: int
    backlog: int
    raise_time: datetime
    clear_time: datetime | None = None
    seconds: float = 0.0
    fact: Literal["output_paused"] = "output_paused"


@dataclass(frozen=True)
class LogLossFound:
    """Output that will not arrive: from `offset` on, `bytes` long where that is known."""

    kind: Literal["TRUNCATED", "DROPPED", "TAMPERED", "DISK"]
    offset: int
    time: datetime
    bytes: int | None = None
    message: str = ""
    fact: Literal["log_loss_found"] = "log_loss_found"


@dataclass(frozen=True)
class ContainerGone:
    """Container and processes are gone; what they held is free."""

    fact: Literal["container_gone"] = "container_gone"


@dataclass(frozen=True)
class ProvenanceKnown:
    """What the attempt runs on. `packages` as `uvcache.origins.told` tells them; secrets by version, never by value."""

    image: str = ""
    image_digest: str = ""
    uv_version: str = ""
    python_version: str = ""
    packages: tuple[str, ...] = ()
    secret_versions: dict[str, int] = field(default_factory=dict)
    fact: Literal["provenance_known"] = "provenance_known"


Fact = StateChanged | Ended | SoftLimitCrossed | OutputPaused | LogLossFound | ContainerGone | ProvenanceKnown


@dataclass(frozen=True)
class Event:
    """A fact with its number within the attempt (from 1, without gaps) and the time it was found (UTC)."""

    sequence: int
    time: datetime
    fact: Fact
