"""The agent's own words: the values its modules pass to each other.

Nothing here knows of protobuf, Docker or files.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

SlotId = NewType("SlotId", str)
"""A slot: 16 lowercase hexadecimal digits, random, used for one attempt and never again."""

_SLOT_ID = re.compile(r"[0-9a-f]{16}")


def new_slot_id() -> SlotId:
    """Return a slot id nobody has used."""
    return SlotId(secrets.token_hex(8))


def parse_slot_id(text: str) -> SlotId:
    """Return `text` as a slot id; ValueError if it is none."""
    if not _SLOT_ID.fullmatch(text):
        raise ValueError(f"{text!r} is not a slot id: 16 lowercase hexadecimal digits are expected")
    return SlotId(text)


@dataclass(frozen=True, order=True)
class AttemptKey:
    """One placement of a run on this agent, with the token that proves which assignment is meant."""

    run_id: str
    attempt: int
    claim_token: str

    def __str__(self) -> str:
        return f"{self.run_id}/{self.attempt}"

    def __repr__(self) -> str:
        return f"AttemptKey({self})"


@dataclass(frozen=True)
class Limits:
    """Limits of one attempt: CPU in thousandths of a core, memory in bytes; a soft limit of 0 is none."""

    cpu_hard_milli_cores: int
    memory_hard_bytes: int
    cpu_soft_milli_cores: int = 0
    memory_soft_bytes: int = 0


class State(StrEnum):
    """Where an attempt is; the names of the protocol's RunState."""

    ASSIGNED = "ASSIGNED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    QUEUED = "QUEUED"
    """Could not start here: to be placed elsewhere."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


class Reason(StrEnum):
    """What happened in particular; the names of the protocol's Reason, as far as an agent finds them out."""

    NONE = "UNSPECIFIED"
    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    OOM_KILLED = "OOM_KILLED"
    IMAGE = "IMAGE"
    BUNDLE = "BUNDLE"
    ENVIRONMENT = "ENVIRONMENT"
    WRAPPER = "WRAPPER"
    CONTAINER_VANISHED = "CONTAINER_VANISHED"
    HOST_REBOOT = "HOST_REBOOT"
    REJECTED = "REJECTED"
    STATE_LOST = "STATE_LOST"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    TIMEOUT = "TIMEOUT"
    RUNTIME = "RUNTIME"
    DISK_FULL = "DISK_FULL"
    AGENT_DRAINED = "AGENT_DRAINED"


class StopCause(StrEnum):
    """Why an attempt is stopped before its end."""

    CANCEL = "CANCEL"
    SUPERSEDED = "SUPERSEDED"
    DRAIN = "DRAIN"
    """The agent is being emptied, and the deadline for it has passed."""
    TIMEOUT = "TIMEOUT"
    ORPHAN = "ORPHAN"
    """The control plane did not know the attempt for longer than its grace."""

    @property
    def reason(self) -> Reason:
        """What the stop is called where it is told."""
        return {StopCause.TIMEOUT: Reason.TIMEOUT, StopCause.DRAIN: Reason.AGENT_DRAINED}.get(
            self, Reason.CANCEL_REQUESTED
        )
