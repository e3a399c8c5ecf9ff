"""What UploadLogs does: takes the output of attempts from an agent and acknowledges what is on disk.

Per stream four tasks: one reads messages, one writes their bytes to the store, one makes them durable for many logs at
a time, one answers. Bytes wait for the store in one bounded inbox; behind a store that stalls, reading stops, and
gRPC's flow control stops the agent. Answers are not queued: an attempt's newest one replaces what was not sent yet.

While the database is away all of a stream waits. A log whose own file can not be used waits alone, in a lane of its
own (`logs.hindered`), and its file is tried again and again; what of it there was no room for is asked for again then.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog
from fastflow.service.failpoints import ControlPlanePoint, reach

from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.hindered import Hindered, Lane, Told
from fastflow_controlplane.logs.store import (
    Log,
    LogIsSealed,
    LogKey,
    LogMismatch,
    LogOutOfOrder,
    LogStore,
    StoreUnavailable,
)
from fastflow_controlplane.logs.uploads import Answer, Chunk, PeerGone, Rejection, Seal, Skip, Upload, size
from fastflow_controlplane.runs.model import AttemptKey

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class IngestSettings:
    """How logs are taken in. Bytes and seconds.

    `window` is what an agent may send beyond what is durable: enough to keep a fast network busy while a slow disk
    syncs, little enough to be sent again after a broken connection. `sync_interval` bounds how long a byte waits for
    its acknowledgement, and with it how often a quiet log costs a disk flush; `sync_bytes` is when a busy one need
    not wait. `inbox_bytes` is the memory one stream may hold, and as much again for logs whose files can not be used.
    `retry_interval` is how often such a file, or a database that is away, is tried.
    """

    window: int = 32 * 1024 * 1024
    sync_interval: float = 0.1
    sync_bytes: int = 8 * 1024 * 1024
    inbox_bytes: int = 4 * 1024 * 1024
    retry_interval: float = 1.0


class AttemptLogs(Protocol):
    """What is known of attempts elsewhere."""

    async def admit(self, key: AttemptKey) -> Rejection:
        """Returns UNKNOWN_ATTEMPT, BAD_TOKEN or NONE. An attempt that ended is no reason to refuse its bytes."""

    async def sealed(self, key: AttemptKey, end: int) -> None:
        """Records that the log is complete with `end` bytes, before the agent is told. May be called again."""


class LogIngest:
    """Serves upload streams."""

    def __init__(self, store: LogStore, attempts: AttemptLogs, settings: IngestSettings | None = None) -> None:
        self._store = store
        self._attempts = attempts
        self._settings = settings or IngestSettings()
        self._told = Told()
        self._serving: set[asyncio.Task[Any]] = set()

    async def serve(self, uploads: AsyncIterable[Upload], send: Callable[[Answer], Awaitable[None]]) -> None:
        """Serves one stream until `uploads` ends and all that came is durable and answered, or the peer is gone.

        `send` raises PeerGone once the stream is broken. What was not acknowledged is the agent's to send again.
        """
        stream = _Stream(self._store, self._attempts, self._settings, self._told)
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        try:
            await stream.serve(uploads, send)
        except* PeerGone:
            log.debug("log stream broke")
        finally:
            await stream.aclose()
            self._serving.discard(serving)

    async def aclose(self) -> None:
        """Cancels the streams that a stopped server left, which may have much to write still, and waits for their end.

        The store has to be closed after them.
        """
        for serving in self._serving:
            serving.cancel()
        if self._serving:
            await asyncio.wait(set(self._serving))


@dataclass
class _Attempt:
    """One attempt as this stream knows it; closing `held` lets go of its log.

    `missed` = there was no room for something it sent while its file could not be used: to be asked for once what came
    before is durable. `seal_waits` = its end can not be stored now. `final` is why no more of its bytes are taken, told
    with each answer. `recorded` = its rows say that the log is sealed: only then the agent may hear so, for it says
    nothing more of the log then.
    """

    key: AttemptKey
    log: Log
    held: AsyncExitStack
    awaits_resend: bool = False
    missed: bool = False
    seal_waits: bool = False
    recorded: bool = False
    final: Rejection = Rejection.NONE


class _Stream:
    def __init__(self, store: LogStore, attempts: AttemptLogs, settings: IngestSettings, told: Told) -> None:
        self._store = store
        self._directory = attempts
        self._settings = settings
        self._told = told
        self._attempts: dict[LogKey, _Attempt] = {}
        self._inbox: list[Upload] = []
        self._inbox_bytes = 0
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._dirty: dict[LogKey, _Attempt] = {}
        self._unsynced = 0
        self._wrote = asyncio.Event()
        self._hurry = asyncio.Event()
        self._answers: dict[LogKey, Answer] = {}
        self._answered = asyncio.Event()
        self._hindered = Hindered(settings.inbox_bytes)
        self._aside: asyncio.TaskGroup
        self._resends: asyncio.TaskGroup

    async def serve(self, uploads: AsyncIterable[Upload], send: Callable[[Answer], Awaitable[None]]) -> None:
        """Runs the four tasks; each ends once the one before it ended and left nothing."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(uploads), name="log upload: read")
            writing = tasks.create_task(self._write(reading), name="log upload: write")
            syncing = tasks.create_task(self._sync(writing), name="log upload: sync")
            tasks.create_task(self._answer(syncing, send), name="log upload: answer")

    async def aclose(self) -> None:
        """Lets go of the logs that are not complete."""
        for attempt in list(self._attempts.values()):
            await self._let_go(attempt)

    async def _read(self, uploads: AsyncIterable[Upload]) -> None:
        async for upload in uploads:
            while self._inbox_bytes >= self._settings.inbox_bytes:
                self._room.clear()
                await self._room.wait()
            self._inbox.append(upload)
            self._inbox_bytes += size(upload)
            self._came.set()
        self._came.set()

    async def _write(self, reading: asyncio.Task[None]) -> None:
        async with asyncio.TaskGroup() as self._aside:
            while not (reading.done() and not self._inbox):
                await self._came.wait()
                self._came.clear()
                inbox, self._inbox = self._inbox, []
                per_attempt: dict[AttemptKey, list[Upload]] = {}
                for upload in inbox:
                    per_attempt.setdefault(upload.key, []).append(upload)
                for key, mine in per_attempt.items():
                    if not self._hindered.holds_back(key, mine):
                        await self._take_or_set_aside(Lane(key, mine))
                self._inbox_bytes -= sum(map(size, inbox))
                self._room.set()
        self._wrote.set()

    async def _take_or_set_aside(self, lane: Lane) -> None:
        try:
            await self._take(lane)
        except StoreUnavailable as error:
            self._told.hindered(_name(lane.key), error)
            self._hindered.begin(lane)
            self._aside.create_task(self._take_later(lane))

    async def _take_later(self, lane: Lane) -> None:
        """Takes what waits in a lane once its file can be used."""
        while lane:
            await asyncio.sleep(self._settings.retry_interval)
            try:
                await self._take(lane)
            except StoreUnavailable as error:
                self._told.hindered(_name(lane.key), error)
        self._hindered.end(lane)
        attempt = self._attempts.get(_name(lane.key))
        if attempt is not None and attempt.key == lane.key:
            if lane.missed:
                attempt.awaits_resend = attempt.missed = True
            self._to_sync(attempt)

    async def _take(self, lane: Lane) -> None:
        """Takes what one attempt sent, in its order. Raises StoreUnavailable; what is left in `lane` was not taken."""
        attempt = await self._admitted(lane.key)
        if attempt is None:
            lane.clear()
            return
        if attempt.log.sealed:
            # By a stream that broke, or a process that died, perhaps before it was recorded.
            await self._record(attempt)
        while lane:
            if chunks := lane.chunks():
                await self._append(attempt, chunks)
            else:
                await self._take_one(attempt, lane.first)
            lane.done(len(chunks) or 1)
        if attempt.recorded:
            await self._let_go(attempt)

    async def _take_one(self, attempt: _Attempt, upload: Upload) -> None:
        if isinstance(upload, Skip):
            await self._change(attempt, lambda: attempt.log.skip(upload.offset, upload.end))
        elif isinstance(upload, Seal):
            self._aside.create_task(self._seal(attempt, upload.end))
        elif upload.data:
            self._tell(attempt, Rejection.CORRUPT)
        else:
            # What it is not told of, an agent may count as lost: an earlier stream of it may have brought it just now.
            await attempt.log.sync()
            self._tell(attempt)

    async def _admitted(self, key: AttemptKey) -> _Attempt | None:
        """Returns the attempt with its log open; None after a refusal."""
        name = _name(key)
        attempt = self._attempts.get(name)
        if attempt is not None and attempt.key == key:
            return attempt
        if await self._refused(key):
            return None
        held = AsyncExitStack()
        opened = await held.enter_async_context(self._store.open(name))
        if not opened.end and not opened.sealed and await self._refused(key):
            # Retention removed the log since we asked: it must not begin anew.
            await held.aclose()
            return None
        attempt = self._attempts[name] = _Attempt(key, opened, held)
        return attempt

    async def _refused(self, key: AttemptKey) -> bool:
        rejection = await self._until_available(lambda: self._directory.admit(key))
        if rejection is Rejection.NONE:
            return False
        log.info("log refused", run=key.run_id, attempt=key.attempt, reason=rejection)
        self._told.forget(_name(key))
        self._answers[_name(key)] = Answer(key.run_id, key.attempt, 0, 0, False, rejection)
        self._answered.set()
        return True

    async def _let_go(self, attempt: _Attempt) -> None:
        # A stream lives as long as its agent, and sees more logs than a process may have files open. What still comes
        # for a sealed log opens it again, to be told that it is sealed.
        name = _name(attempt.key)
        if self._attempts.get(name) is attempt:
            del self._attempts[name]
            await attempt.held.aclose()

    async def _append(self, attempt: _Attempt, chunks: Sequence[Chunk]) -> None:
        pieces = [chunk.data for chunk in chunks]
        await self._change(attempt, lambda: attempt.log.append(chunks[0].offset, pieces))

    async def _change(self, attempt: _Attempt, change: Callable[[], Awaitable[None]]) -> None:
        if attempt.final is not Rejection.NONE:
            return
        before = attempt.log.end
        try:
            await change()
        except LogOutOfOrder:
            # Told once: what the agent sent before it heard of it is out of order as well.
            if not attempt.awaits_resend:
                attempt.awaits_resend = True
                self._tell(attempt, Rejection.CORRUPT)
        except LogMismatch as error:
            log.warning("log differs from what is stored", run=attempt.key.run_id, detail=str(error))
            # The agent ends the log at the offset it is told, so that has to be where the stored one ends.
            await attempt.log.sync()
            attempt.final = Rejection.MISMATCH
            self._tell(attempt)
        except LogIsSealed:
            attempt.final = Rejection.ALREADY_SEALED
            await self._record(attempt)
            self._tell(attempt)
        else:
            reach(ControlPlanePoint.LOG_WRITTEN)
            attempt.awaits_resend = False
            self._unsynced += attempt.log.end - before
            self._to_sync(attempt)
            if self._unsynced >= self._settings.sync_bytes:
                self._hurry.set()

    def _to_sync(self, attempt: _Attempt) -> None:
        self._dirty[_name(attempt.key)] = attempt
        self._wrote.set()

    async def _seal(self, attempt: _Attempt, end: int) -> None:
        try:
            await self._seal_file(attempt, end)
        except LogOutOfOrder:
            self._tell(attempt, Rejection.CORRUPT)
        except LogIsSealed:
            await self._record(attempt)
            self._tell(attempt, Rejection.ALREADY_SEALED)
        else:
            reach(ControlPlanePoint.LOG_CLOSED)
            await self._record(attempt)
            reach(ControlPlanePoint.LOG_SEALED)
            self._tell(attempt)
            await self._let_go(attempt)

    async def _seal_file(self, attempt: _Attempt, end: int) -> None:
        while True:
            try:
                await attempt.log.seal(end)
            except StoreUnavailable as error:
                attempt.seal_waits = True
                self._told.hindered(_name(attempt.key), error)
            else:
                attempt.seal_waits = False
                self._told.goes_on(_name(attempt.key))
                return
            await asyncio.sleep(self._settings.retry_interval)

    async def _record(self, attempt: _Attempt) -> None:
        if not attempt.recorded:
            end = attempt.log.end
            await self._until_available(lambda: self._directory.sealed(attempt.key, end))
            attempt.recorded = True

    async def _until_available(self, operation: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await operation()
            except Unavailable as error:
                log.debug(
                    "log waits for the database",
                    detail=str(error),
                    retry_seconds=self._settings.retry_interval,
                )
            await asyncio.sleep(self._settings.retry_interval)

    async def _sync(self, writing: asyncio.Task[None]) -> None:
        async with asyncio.TaskGroup() as self._resends:
            while not (writing.done() and not self._dirty):
                await self._wrote.wait()
                self._wrote.clear()
                if not writing.done():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._settings.sync_interval):
                            await self._hurry.wait()
                self._hurry.clear()
                dirty, self._dirty = self._dirty, {}
                self._unsynced = 0
                await asyncio.gather(*map(self._sync_one, dirty.values()))
        self._answered.set()

    async def _sync_one(self, attempt: _Attempt) -> None:
        try:
            await attempt.log.sync()
        except StoreUnavailable as error:
            self._told.hindered(_name(attempt.key), error)
            attempt.awaits_resend, attempt.missed = True, False
            self._resends.create_task(self._ask_later(attempt))
        else:
            if not attempt.seal_waits and attempt.key not in self._hindered:
                self._told.goes_on(_name(attempt.key))
            reach(ControlPlanePoint.LOG_SYNCED)
            # Of one that was let go all has been told, and its agent may have begun to ask anew.
            if self._attempts.get(_name(attempt.key)) is attempt:
                self._tell(attempt, Rejection.CORRUPT if attempt.missed else Rejection.NONE)
                attempt.missed = False

    async def _ask_later(self, attempt: _Attempt) -> None:
        await asyncio.sleep(self._settings.retry_interval)
        self._tell(attempt, Rejection.CORRUPT)

    def _tell(self, attempt: _Attempt, rejection: Rejection = Rejection.NONE) -> None:
        key, stored = attempt.key, attempt.log
        name = _name(key)
        unsent = self._answers.get(name)
        if attempt.final is not Rejection.NONE:
            rejection = attempt.final
        elif unsent is not None and rejection is Rejection.NONE:
            rejection = unsent.rejection
        self._answers[name] = Answer(
            key.run_id,
            key.attempt,
            durable_offset=stored.durable,
            window_end=stored.durable + self._settings.window,
            sealed=attempt.recorded,
            rejection=rejection,
        )
        self._answered.set()

    async def _answer(self, syncing: asyncio.Task[None], send: Callable[[Answer], Awaitable[None]]) -> None:
        while not (syncing.done() and not self._answers):
            await self._answered.wait()
            self._answered.clear()
            answers, self._answers = self._answers, {}
            for answer in answers.values():
                await send(answer)


def _name(key: AttemptKey) -> LogKey:
    return LogKey(key.run_id, key.attempt)
