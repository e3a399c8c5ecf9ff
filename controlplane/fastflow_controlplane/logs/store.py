"""What keeps the output of attempts: the interface every log store fulfils.

A log is a sequence of bytes that grows at its end and nowhere else. The offset of a byte is its only name: the worker's
spool, the wire, the store and every follower use the same one. A byte that was lost on the worker leaves a *gap*, so
that the offsets behind it stay true.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import Unavailable


@dataclass(frozen=True, slots=True, order=True)
class LogKey:
    """Names the log of one attempt. `run_id` is a whole run id."""

    run_id: str
    attempt: int


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Bytes from `offset` up to `end`, not included, that were lost before they reached the store."""

    offset: int
    end: int


class LogOutOfOrder(Exception):
    """Bytes were offered beyond the end of the log, or an end was named that is not the log's."""


class LogMismatch(Exception):
    """Bytes were offered again and differ from those stored at the same offset."""


class LogIsSealed(Exception):
    """The log has ended; nothing may follow."""


class StoreUnavailable(Unavailable):
    """The store can not take more at present, for example because its disk is full; the message names it.

    Nothing acknowledged is lost. The same call may succeed later.
    """


class Log(ABC):
    """One log, open. All holders of a log in one process share the object, and so see each other's bytes at once."""

    end: int
    """Offset behind the last byte taken. Readers may read up to here."""
    durable: int
    """Offset up to which everything survives a power failure."""
    sealed: bool
    """True once `end` is final."""
    gaps: Sequence[Gap]
    """In ascending order; none touches another."""

    @abstractmethod
    async def append(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Takes `pieces`, which follow each other from `offset` on.

        What lies below `end` must equal what is stored and is not written again. On return the bytes can be read; they
        are durable after the next `sync`. Raises LogOutOfOrder, LogMismatch, LogIsSealed or StoreUnavailable; after
        the last of these a part may have been taken, and the same call may be made again.
        """

    @abstractmethod
    async def skip(self, offset: int, end: int) -> None:
        """Notes that the bytes from `offset` up to `end` will never come. Durable on return.

        What lies below the log's end is ignored. Raises as `append` does.
        """

    @abstractmethod
    async def sync(self) -> int:
        """Makes all bytes taken before the call durable, and returns `durable`. Concurrent calls share the work.

        Raises StoreUnavailable; `end` then went back to `durable`, and what lay between has to be offered again.
        """

    @abstractmethod
    async def seal(self, end: int) -> None:
        """Makes everything durable and ends the log at `end`, durably. Sealing twice at the same end is no error.

        Raises LogOutOfOrder if the log ends elsewhere, LogIsSealed if it was sealed elsewhere, or StoreUnavailable.
        """

    @abstractmethod
    async def read(self, offset: int, max_bytes: int) -> bytes:
        """Returns up to `max_bytes` stored bytes from `offset` on, none beyond the end of their `extent`."""

    def extent(self, offset: int) -> tuple[int, int]:
        """Returns the first range of stored bytes at or after `offset`: its first offset and the one behind its last.

        Both are equal where nothing is stored yet.
        """
        for gap in self.gaps:
            if offset < gap.offset:
                return offset, gap.offset
            offset = max(offset, gap.end)
        return offset, max(offset, self.end)

    @abstractmethod
    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` on the event loop whenever the log grew or was sealed; returns how to end that."""


class LogStore(ABC):
    """All logs."""

    @abstractmethod
    def open(self, key: LogKey) -> AbstractAsyncContextManager[Log]:
        """Opens the log of an attempt, which may hold nothing yet; opening alone stores nothing.

        Everything the log holds is durable on entry, so that its `end` may be acknowledged. Raises StoreUnavailable.
        """

    @abstractmethod
    async def remove(self, run_id: str, attempt: int = 0) -> None:
        """Removes the sealed log of an attempt, 0 = those of all attempts of the run; durable on return.

        Who has it open reads it to its end all the same. Where there is none nothing happens. Raises StoreUnavailable.
        """

    @abstractmethod
    def set_aside(self, key: LogKey) -> bool:
        """Makes way for the log of a new attempt; returns whether another's was stored under its name.

        So it is where the database was restored from an older copy, and the logs were not. Blocks. Raises
        StoreUnavailable.
        """

    @property
    @abstractmethod
    def problem(self) -> Problem | None:
        """Why the store can not take more; None while it can."""

    @abstractmethod
    async def recheck(self) -> None:
        """Where there is a problem, finds out whether it still holds."""

    @abstractmethod
    async def aclose(self) -> None:
        """Lets go of files and threads."""
