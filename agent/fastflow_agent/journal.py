"""The journal of one attempt: an append-only file, on disk before anything that rests on it is done.

Each line is the CRC-32C of the rest (8 hexadecimal digits), a blank, and one record as JSON. A line that does not match
its sum ends the journal: it and what follows are a write that never finished, and are cut off at opening.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path

import google_crc32c
import structlog
from fastflow.durable import sync_folder

from fastflow_agent.clock import Clock
from fastflow_agent.facts import Event, Fact
from fastflow_agent.records import Acked, History, Intent, Noted, SequenceRaised, Step, decode, encode

log = structlog.get_logger(__name__)

RESERVED_BYTES = 64 * 1024
"""Taken from the disk when the journal is made, so that an attempt can still say how it ended once the disk is full."""

_SUM_DIGITS = 8


class UnknownRecord(Exception):
    """A journal holds a whole record that this version does not understand."""


class JournalClosed(Exception):
    """A record came for a journal that was closed: its attempt is being deleted."""


class Journal:
    """The records of one attempt, on disk and as `history`.

    A record is in `history` only after it is on disk. Appends are written in the order they were asked for.
    """

    def __init__(self, file: _File | None, history: History, executor: Executor, clock: Clock) -> None:
        self.history = history
        self._file = file
        self._executor = executor
        self._clock = clock
        self._order = asyncio.Lock()
        self._closed = False
        self._acked = history.acked
        self._known = 0

    @classmethod
    async def create(
        cls, path: Path, intent: Intent, executor: Executor, clock: Clock, *, facts: Sequence[Fact] = ()
    ) -> Journal:
        """Begin a journal with `intent` and `facts` at `path`; its folder is made too. OSError if the disk refuses."""
        first = _numbered(facts, 1, clock.now())
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(executor, _File.create, path, [encode(intent), *map(encode, first)])
        history = History(intent)
        for record in first:
            history.apply(record)
        return cls(file, history, executor, clock)

    @classmethod
    async def open(cls, path: Path, executor: Executor, clock: Clock) -> Journal | None:
        """Read the journal at `path` and cut its torn end; None if not even its first record is whole.

        Raises UnknownRecord where a whole record is not understood: then nothing is cut.
        """
        loop = asyncio.get_running_loop()
        file, records = await loop.run_in_executor(executor, _File.open, path)
        history = History.of(records)
        if history is None:
            file.close()
            return None
        return cls(file, history, executor, clock)

    @classmethod
    def volatile(cls, intent: Intent, executor: Executor, clock: Clock) -> Journal:
        """A journal without a file, for what a repetition after a restart would say in the same words."""
        return cls(None, History(intent), executor, clock)

    async def append(self, *steps: Step, facts: Sequence[Fact] = (), time: datetime | None = None) -> None:
        """Write steps and facts with one sync, and return when they are on disk; facts get the next numbers.

        `time` (UTC) is when the facts came about; None = now.

        Not cut short by cancellation: the caller is cancelled after the write. OSError if the disk refuses,
        JournalClosed after `close`: then nothing of it is in the journal.
        """
        writing = asyncio.ensure_future(self._append(steps, facts, time or self._clock.now()))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            if writing.done() and not writing.cancelled() and (error := writing.exception()):
                log.warning("journal not written", path=str(self.history.intent.slot), error=str(error))
            raise

    def acknowledge(self, sequence: int) -> None:
        """Drop events up to `sequence`. Written with the next append: a lost one only means sending again.

        If the control plane has more events than the journal, numbers go on above them.
        """
        self._known = max(self._known, sequence)
        self.history.apply(Acked(min(sequence, self.history.last_event)))

    async def close(self) -> None:
        """Close the file, after what is being written; the journal takes nothing more. No effect the second time."""
        async with self._order:
            # The number of the file goes to another one: nothing may be done with it again.
            file, self._file = self._file, None
            self._closed = True
            if file is not None:
                file.close()

    async def _append(self, steps: Sequence[Step], facts: Sequence[Fact], time: datetime) -> None:
        async with self._order:
            if self._closed:
                raise JournalClosed(str(self.history.intent.slot))
            acked = self.history.acked
            records: list[Step | Noted] = [Acked(acked)] if acked > self._acked else []
            last = self.history.last_event
            if self._known > last:
                last = self._known
                records.append(SequenceRaised(last))
            records += steps
            records += _numbered(facts, last + 1, time)
            if self._file is not None:
                loop = asyncio.get_running_loop()
                lines = [encode(record) for record in records]
                await loop.run_in_executor(self._executor, self._file.append, lines)
            self._acked = max(self._acked, acked)
            for record in records:
                self.history.apply(record)


def _numbered(facts: Sequence[Fact], first: int, time: datetime) -> list[Noted]:
    return [Noted(Event(first + index, time, fact)) for index, fact in enumerate(facts)]


class _File:
    """The bytes of a journal; every method blocks."""

    def __init__(self, descriptor: int, end: int) -> None:
        self._descriptor = descriptor
        self._end = end
        self._reserved = 0

    @classmethod
    def create(cls, path: Path, lines: Sequence[bytes]) -> _File:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = cls(os.open(path, flags, 0o600), 0)
        try:
            file._reserve()
            file.append(lines)
            sync_folder(path.parent)
            sync_folder(path.parent.parent)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            raise
        return file

    @classmethod
    def open(cls, path: Path) -> tuple[_File, list[Step | Noted]]:
        file = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), 0)
        with os.fdopen(os.dup(file._descriptor), "rb") as reader:
            content = reader.read()
        records = []
        for record, end in _whole_records(content):
            records.append(record)
            file._end = end
        if content[file._end :].strip(b"\0"):
            # Not only overwritten later: the rest of an unfinished write may hold a whole line of its own.
            os.ftruncate(file._descriptor, file._end)
        with contextlib.suppress(OSError):
            file._reserve()
        os.fsync(file._descriptor)
        return file, records

    def append(self, lines: Sequence[bytes]) -> None:
        data = b"".join(b"%08x %b\n" % (google_crc32c.value(line), line) for line in lines)
        if self._end + len(data) > self._reserved - RESERVED_BYTES // 2:
            with contextlib.suppress(OSError):
                self._reserve()
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._end + written)
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            self._reserved = self._end
            raise
        self._end += len(data)

    def close(self) -> None:
        os.close(self._descriptor)

    def _reserve(self) -> None:
        os.posix_fallocate(self._descriptor, self._end, RESERVED_BYTES)
        self._reserved = self._end + RESERVED_BYTES


def _whole_records(content: bytes) -> Iterator[tuple[Step | Noted, int]]:
    """The records up to the first line that is not whole, each with the offset of its end."""
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        total, _, text = content[start:end].partition(b" ")
        try:
            if len(total) != _SUM_DIGITS or int(total, 16) != google_crc32c.value(text):
                return
        except ValueError:
            return
        try:
            record = decode(text)
        except ValueError as error:
            raise UnknownRecord(f"record not understood, perhaps of a newer version: {text[:200]!r}") from error
        yield record, end + 1
        start = end + 1
