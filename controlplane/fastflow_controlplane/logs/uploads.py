"""What agents send of the logs of their attempts, and what they are answered, as plain values; see `logs.ingest`."""

from dataclasses import dataclass
from enum import StrEnum

from fastflow_controlplane.runs.model import AttemptKey

OVERHEAD_BYTES = 512
"""What an upload costs in memory beside its bytes, about: its key, its numbers, its place in a list."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of output from `offset` on. Without data it asks where the log stands."""

    key: AttemptKey
    offset: int
    data: bytes
    crc32c: int


@dataclass(frozen=True, slots=True)
class Skip:
    """Bytes from `offset` up to `end` were lost on the worker."""

    key: AttemptKey
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Seal:
    """The log ends at `end`."""

    key: AttemptKey
    end: int


Upload = Chunk | Skip | Seal


class Rejection(StrEnum):
    """Why something was not taken; the names of the protocol's LogRejection."""

    NONE = "UNSPECIFIED"
    UNKNOWN_ATTEMPT = "UNKNOWN_ATTEMPT"
    BAD_TOKEN = "BAD_TOKEN"
    MISMATCH = "MISMATCH"
    ALREADY_SEALED = "ALREADY_SEALED"
    CORRUPT = "CORRUPT"
    """Damaged, or not what follows what is stored: to be sent again from the durable offset."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the log of an attempt stands; fields of UploadLogsResponse."""

    run_id: str
    attempt: int
    durable_offset: int
    window_end: int
    sealed: bool
    rejection: Rejection


class PeerGone(Exception):
    """An answer can not be sent any more: the stream is broken."""


def size(upload: Upload) -> int:
    """Bytes of memory that an upload takes while it waits, about: many may be of a line each."""
    return OVERHEAD_BYTES + (len(upload.data) if isinstance(upload, Chunk) else 0)
