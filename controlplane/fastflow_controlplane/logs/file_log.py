"""One log in one plain file: the bytes and nothing else.

The end of a log is the size of its file. What a size can not tell stands beside it in `<attempt>.marks`, one line each:
`gap OFFSET END` for bytes that never came (a hole in the file), `sealed END` once nothing follows.

A file system may lose what was not yet acknowledged. That it does not invent bytes at the end of a file after a power
failure is taken from it: ext4 in its default mode, XFS and Btrfs raise the size only behind the data.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from fastflow.durable import sync_folder
from fastflow.finishing import finish

from fastflow_controlplane.logs.marks import Marks, make_folders
from fastflow_controlplane.logs.store import (
    Gap,
    Log,
    LogIsSealed,
    LogMismatch,
    LogOutOfOrder,
    StoreUnavailable,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_PIECES_PER_WRITE = 512
"""Buffers in one system call; the kernel's bound (IOV_MAX) is 1024."""


class FileLog(Log):
    """One log in one file, made with its first byte.

    `writing` and `reading` are the threads that it may use. `refuse` turns what its disk says into the caller's error.
    """

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
            return await finish(asyncio.get_running_loop().run_in_executor(self._writing, operation))
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
