"""Logs as plain files: `<folder>/<last two digits of the run>/<run>/<attempt>.log`, the bytes and nothing else.

The end of a log is the size of its file. What a size can not tell stands beside it in `<attempt>.marks`, one line each:
`gap OFFSET END` for bytes that never came (a hole in the file), `sealed END` once nothing follows.

A file system may lose what was not yet acknowledged. That it does not invent bytes at the end of a file after a power
failure is taken from it: ext4 in its default mode, XFS and Btrfs raise the size only behind the data.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog
from fastflow.durable import sync_folder
from fastflow.ids import new_id

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.disk import DISK_FULL, full_message, has_room, is_full
from fastflow_controlplane.logs.marks import Marks, make_folders
from fastflow_controlplane.logs.store import (
    Gap,
    Log,
    LogIsSealed,
    LogKey,
    LogMismatch,
    LogOutOfOrder,
    LogStore,
    StoreUnavailable,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
THREADS = 4
"""Threads for writing and as many for reading: a disk gains nothing from more, and a stuck write stops no reader."""
QUIET_CHECKS = 3
"""A problem is over after this many checks in a row without a failure: who could not write tries again each second."""
MAX_PIECES_PER_WRITE = 512
"""Buffers in one system call; the kernel's bound (IOV_MAX) is 1024."""


def log_file(folder: Path, run_id: str, attempt: int) -> Path:
    """Returns where the log of an attempt is, or would be."""
    # The id becomes part of a path: nothing but a run id may pass.
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is not a run id")
    return folder / run_id[-2:] / run_id / f"{attempt}.log"


class FileLogStore(LogStore):
    """All logs under one folder. Use from one event loop, and by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs: dict[LogKey, FileLog] = {}
        self._holders: dict[LogKey, int] = {}
        self._writing = ThreadPoolExecutor(THREADS, "log-write")
        self._reading = ThreadPoolExecutor(THREADS, "log-read")
        self._problem: Problem | None = None
        self._quiet_checks = 0

    @asynccontextmanager
    async def open(self, key: LogKey) -> AsyncIterator[Log]:
        """See `LogStore.open`."""
        opened = self._logs.get(key)
        if opened is None:
            opened = self._logs[key] = FileLog(self._path(key), self._writing, self._reading, self._refuse)
        self._holders[key] = self._holders.get(key, 0) + 1
        try:
            await opened.load()
            yield opened
        finally:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key], self._logs[key]
                opened.let_go()

    async def remove(self, run_id: str, attempt: int = 0) -> None:
        """See `LogStore.remove`."""
        folder = self._run_folder(run_id)
        numbers = [attempt] if attempt else await self._in_thread(lambda: _numbers(folder), folder)
        for number in numbers:
            # Open, so that whoever opens it meanwhile shares what was there, whole and sealed.
            async with self.open(LogKey(run_id, number)) as opened:
                assert isinstance(opened, FileLog)
                await opened.remove()
        await self._in_thread(lambda: _remove_rest(folder, aside=not attempt), folder)

    async def _in_thread(self, operation: Callable[[], T], path: Path) -> T:
        try:
            return await _finish(asyncio.get_running_loop().run_in_executor(self._writing, operation))
        except OSError as error:
            raise self._refuse(error, path) from error

    def set_aside(self, key: LogKey) -> bool:
        """See `LogStore.set_aside`."""
        path = self._path(key)
        try:
            found = [part for part in (path, path.with_suffix(".marks")) if part.exists()]
            for part in found:
                part.rename(part.with_name(f"{part.name}.{new_id()}"))  # a name that `_numbers` passes over
        except OSError as error:
            raise self._refuse(error, path) from error
        return bool(found)

    def _path(self, key: LogKey) -> Path:
        return log_file(self._folder, key.run_id, key.attempt)

    def _run_folder(self, run_id: str) -> Path:
        return log_file(self._folder, run_id, 0).parent

    @property
    def problem(self) -> Problem | None:
        """See `LogStore.problem`. It outlives a log that is closed, and the writes that just fit."""
        return self._problem

    async def recheck(self) -> None:
        """See `LogStore.recheck`."""
        if self._problem is None:
            return
        self._quiet_checks += 1
        room = await asyncio.get_running_loop().run_in_executor(self._writing, has_room, self._folder)
        if room and self._quiet_checks >= QUIET_CHECKS:
            log.info("logs can be stored again")
            self._problem = None

    def _refuse(self, error: OSError, path: Path) -> StoreUnavailable:
        """Notes what holds up a log, once in our own log, and returns what its caller is told."""
        self._quiet_checks = 0
        if is_full(error):
            message = full_message(self._folder, "the output of runs waits on the workers")
            problem = Problem(DISK_FULL, message)
        else:
            message = f"the log store can not use {path}: {error.strerror}; logs wait on the workers"
            problem = Problem("LOG_STORE_UNAVAILABLE", message)
        if self._problem is None or self._problem.reason != problem.reason:
            log.error("logs can not be stored", why=message)
            self._problem = problem
        return StoreUnavailable(message, reason=problem.reason, metadata={"folder": str(self._folder)})

    async def aclose(self) -> None:
        """See `LogStore.aclose`."""
        await asyncio.to_thread(self._writing.shutdown)
        await asyncio.to_thread(self._reading.shutdown)


class FileLog(Log):
    """One log in one file, made with its first byte."""

    def __init__(
        self,
        path: Path,
        writing: ThreadPoolExecutor,
        reading: ThreadPoolExecutor,
        refuse: Callable[[OSError, Path], StoreUnavailable],
    ) -> None:
        self.end = 0
        self.durable = 0
        self.sealed = False
        self.gaps: list[Gap] = []
        self._path = path
        self._marks = Marks(path.with_suffix(".marks"))
        self._file: _File | None = None
        self._writing = writing
        self._reading = reading
        self._refuse = refuse
        self._loaded = False
        self._doubtful = False
        self._changing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._listeners: dict[object, Callable[[], None]] = {}

    async def load(self) -> None:
        """Finds out what is stored, once. Raises StoreUnavailable."""
        async with self._changing:
            if not self._loaded:
                await self._change(self._load)
                self._loaded = True

    def let_go(self) -> None:
        """Closes the file, once no thread uses it."""
        self._file = None

    async def append(self, offset: int, pieces: Sequence[bytes]) -> None:
        """See `Log.append`."""
        async with self._changing:
            try:
                await self._change(lambda: self._append(offset, pieces))
            finally:
                self._notify()

    async def skip(self, offset: int, end: int) -> None:
        """See `Log.skip`."""
        # Of two syncs at once the kernel tells only one that bytes were lost.
        async with self._syncing, self._changing:
            await self._change(lambda: self._skip(offset, end))
            self._notify()

    async def sync(self) -> int:
        """See `Log.sync`."""
        goal = self.end
        async with self._syncing:
            if self.durable < goal:
                try:
                    await self._change(self._sync)
                finally:
                    await self._settle()
        return self.durable

    async def _settle(self) -> None:
        if self._doubtful:
            async with self._changing:
                await self._change(self._go_back)
                self._notify()

    async def seal(self, end: int) -> None:
        """See `Log.seal`."""
        if not self.sealed:
            await self.sync()
        async with self._changing:
            if self.sealed and end != self.end:
                raise LogIsSealed(f"the log ended at {self.end}, not at {end}")
            if end != self.end or self.durable < end:
                raise LogOutOfOrder(f"the log ends at {self.end}, not at {end}")
            if not self.sealed:
                await self._change(lambda: self._marks.add(f"sealed {end}"))
                self.sealed = True
                self._notify()

    async def remove(self) -> None:
        """Unlinks the files. Holders read on from the descriptor; the next to open finds nothing."""
        async with self._changing:
            await self._change(self._remove)

    async def read(self, offset: int, max_bytes: int) -> bytes:
        """See `Log.read`."""
        start, stop = self.extent(offset)
        file = self._file
        if file is None or start != offset or start == stop:
            return b""
        count = min(max_bytes, stop - start)
        return await asyncio.get_running_loop().run_in_executor(self._reading, lambda: file.read(offset, count))

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `Log.listen`."""
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def _notify(self) -> None:
        for listener in tuple(self._listeners.values()):
            listener()

    async def _change(self, operation: Callable[[], T]) -> T:
        try:
            return await _finish(asyncio.get_running_loop().run_in_executor(self._writing, operation))
        except OSError as error:
            raise self._refuse(error, self._path) from error

    # The rest runs in a thread of the writing pool, one call at a time but for _sync.

    def _load(self) -> None:
        marks = self._marks.load()
        try:
            self._file = _File(self._path)
        except FileNotFoundError:
            size = 0
        else:
            size = self._file.size()
        for offset, end in sorted(marks.gaps):
            # One beyond the size stood before bytes that a power failure took; it will be offered again.
            if offset <= size:
                self._add_gap(Gap(offset, end))
                size = max(size, end)
        if self._file and size > self._file.size():
            self._file.resize(size)
        if self._file and marks.sealed is None:
            # A process that died may have left bytes in the page cache alone.
            self._file.sync()
        self.end = self.durable = size
        self.sealed = marks.sealed is not None
        if marks.sealed is not None and marks.sealed != size:
            log.error("a sealed log has changed", file=str(self._path), sealed=marks.sealed, size=size)

    def _append(self, offset: int, pieces: Sequence[bytes]) -> None:
        self._go_back()
        if self.sealed:
            raise LogIsSealed(f"the log ended at {self.end}")
        if offset > self.end:
            raise LogOutOfOrder(f"the log ends at {self.end}; bytes were offered at {offset}")
        fresh: list[memoryview] = []
        for piece in pieces:
            known = min(len(piece), max(0, self.end - offset))
            if known and self._writable().read(offset, known) != piece[:known]:
                raise LogMismatch(f"bytes from offset {offset} on differ from those stored")
            if known < len(piece):
                fresh.append(memoryview(piece)[known:])
            offset += len(piece)
        for first in range(0, len(fresh), MAX_PIECES_PER_WRITE):
            self._write(fresh[first : first + MAX_PIECES_PER_WRITE])

    def _write(self, pieces: list[memoryview]) -> None:
        file = self._writable()
        while pieces:
            written = file.write(self.end, pieces)
            self.end += written
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if written:
                pieces[0] = pieces[0][written:]

    def _skip(self, offset: int, end: int) -> None:
        self._go_back()
        if self.sealed:
            raise LogIsSealed(f"the log ended at {self.end}")
        if offset > self.end:
            raise LogOutOfOrder(f"the log ends at {self.end}; a gap was named at {offset}")
        if end <= self.end:
            return
        file = self._writable()
        gap = Gap(self.end, end)
        # What stands before a gap has to be as durable as the gap: its offset is found again only behind it.
        self._sync()
        self._marks.add(f"gap {gap.offset} {gap.end}")
        file.resize(end)
        self._flush(file)
        self._add_gap(gap)
        self.end = self.durable = end

    def _add_gap(self, gap: Gap) -> None:
        if self.gaps and gap.offset <= self.gaps[-1].end:
            last = self.gaps.pop()
            gap = Gap(last.offset, max(last.end, gap.end))
        self.gaps.append(gap)

    def _sync(self) -> None:
        goal = self.end
        if self._file is not None and not self._doubtful:
            self._flush(self._file)
            self.durable = max(self.durable, goal)

    def _flush(self, file: "_File") -> None:
        try:
            file.sync()
        except OSError:
            self._doubtful = True
            raise

    def _go_back(self) -> None:
        # After a failed sync the kernel may have dropped the pages, though reading still shows them (the trap known
        # as fsyncgate): what is not durable has to come again.
        if self._doubtful and self._file is not None:
            self._file.resize(self.durable)
            self.end = self.durable
            self._doubtful = False

    def _remove(self) -> None:
        if not self._path.parent.is_dir():
            return
        self._path.unlink(missing_ok=True)
        self._marks.remove()
        sync_folder(self._path.parent)

    def _writable(self) -> "_File":
        if self._file is None:
            make_folders(self._path.parent)
            file = _File(self._path, create=True)
            sync_folder(self._path.parent)
            # Only now: a name that is not durable yet is made so by the next try.
            self._file = file
        return self._file


def _numbers(folder: Path) -> list[int]:
    """Returns the attempts of which there are files."""
    names = {file.stem for file in folder.iterdir()} if folder.is_dir() else set()
    return sorted(int(name) for name in names if name.isdecimal())


def _remove_rest(folder: Path, *, aside: bool) -> None:
    """Removes an empty folder; with `aside` also what was set aside in it."""
    for file in folder.iterdir() if aside and folder.is_dir() else ():
        file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        sync_folder(folder.parent)


class _File:
    """A descriptor that is closed when its last user lets go, also one in a thread whose caller was cancelled."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        self._descriptor = os.open(path, flags, 0o640)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, offset)

    def write(self, offset: int, pieces: Sequence[memoryview]) -> int:
        return os.pwritev(self._descriptor, pieces, offset)

    def resize(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)


async def _finish(work: asyncio.Future[T]) -> T:
    """Waits for work in a thread even when cancelled: the lock around it must not be given up before it ended."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
    finally:
        # An exception that knows this frame, which knows the exception, would keep the file open until collected.
        del work
