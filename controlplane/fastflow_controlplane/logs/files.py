"""Logs as plain files: `<folder>/<last two digits of the run>/<run>/<attempt>.log`; each is a `logs.file_log`."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog
from fastflow.durable import sync_folder
from fastflow.finishing import finish
from fastflow.ids import new_id

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.disk import DISK_FULL, full_message, has_room, is_full
from fastflow_controlplane.logs.file_log import FileLog
from fastflow_controlplane.logs.store import Log, LogKey, LogStore, StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
THREADS = 4
"""Threads for writing and as many for reading: a disk gains nothing from more, and a stuck write stops no reader."""
QUIET_CHECKS = 3
"""A problem is over after this many checks in a row without a failure: who could not write tries again each second."""


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
            return await finish(asyncio.get_running_loop().run_in_executor(self._writing, operation))
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
            message = (
                f"the log store can not use {path}: {error.strerror}; what belongs there waits on its worker, and goes "
                "on by itself once it can; see that nothing else is in its place, that this user may write there, and "
                "that the disk works"
            )
            problem = Problem("LOG_STORE_UNAVAILABLE", message)
        if self._problem is None or self._problem.reason != problem.reason:
            log.error("logs can not be stored", why=message)
            self._problem = problem
        return StoreUnavailable(message, reason=problem.reason, metadata={"folder": str(self._folder)})

    async def aclose(self) -> None:
        """See `LogStore.aclose`."""
        await asyncio.to_thread(self._writing.shutdown)
        await asyncio.to_thread(self._reading.shutdown)


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
