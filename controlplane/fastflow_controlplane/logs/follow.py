"""What ReadLog does: sends a log from an offset, and goes on as it grows.

A follower owns nothing but its offset, and reads the store at its own pace: a slow one lags and costs nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from fastflow.pipelines.sizes import format_size

from fastflow_controlplane.clock import MICROSECONDS
from fastflow_controlplane.errors import DataLoss, NotFound
from fastflow_controlplane.logs.store import Log, LogKey, LogStore
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptView, LogLoss, RunView
from fastflow_controlplane.runs.states import RunState


@dataclass(frozen=True)
class FollowSettings:
    """How logs are sent. Bytes and seconds.

    `piece_bytes` is the most one message holds: measured, this size costs both sides least for each byte.
    `recheck` is how often a follower looks without having been told of a change, which reaches what another process
    stored. `patience` is how long a follower waits for the rest of a log after its run ended, when nothing comes.
    """

    piece_bytes: int = 256 * 1024
    recheck: float = 2.0
    patience: float = 30.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a log; fields of ReadLogResponse. `next_offset` is where to resume."""

    attempt: int
    offset: int
    data: bytes
    next_offset: int
    sealed: bool
    losses: tuple[LogLoss, ...]


class LogFollower:
    """Reads logs for clients. `look` returns a run as it is now and raises NotFound."""

    def __init__(
        self,
        store: LogStore,
        look: Callable[[str], Awaitable[RunView]],
        changes: Changes,
        settings: FollowSettings | None = None,
    ) -> None:
        self._store = store
        self._look = look
        self._changes = changes
        self._settings = settings or FollowSettings()

    async def read(
        self, run_id: str, *, attempt: int = 0, offset: int = 0, tail_lines: int = 0, follow: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Sends the log of a run from `offset` on, or its last `tail_lines` lines; the last piece holds no data.

        `attempt` 0 is the newest one; a follower without a number goes on with each later attempt. It ends once the
        log is sealed and no attempt can follow. A log that is never sealed, because its agent is lost or stays silent
        after the end of the run, ends it too: `sealed` of the last piece is then false.

        Bytes that were lost are not sent: the next piece's `offset` is then higher than `next_offset` of the one
        before. Raises NotFound for a run or attempt that does not exist, and for a log that retention removed. Who
        began to read before that gets all of it. Raises DataLoss for a log that should be there and is not.
        """
        watch = _Watch(run_id, self._look, self._changes, self._settings.recheck)
        try:
            view = await watch.look()
            if attempt > view.attempt:
                raise NotFound(
                    f"run {run_id} has no attempt {attempt}; it has {view.attempt}", reason="ATTEMPT_NOT_FOUND"
                )
            number = attempt or view.attempt
            while not number and follow and not view.terminal:
                view = await watch.change()
                number = view.attempt
            if not number:
                yield Piece(0, 0, b"", 0, view.terminal, ())
                return
            while True:
                reading = _Reading(number, offset, tail_lines, follow, self._settings, self._store)
                async with self._store.open(LogKey(run_id, number)) as opened:
                    # Asked once it is open: a log that is still kept now will be read to its end.
                    _check_there(run_id, _attempt(await watch.look_again(), number), opened)
                    async with aclosing(reading.pieces(opened, watch)) as pieces:
                        async for piece in pieces:
                            yield piece
                view = await watch.look()
                while follow and not attempt and view.attempt == number and not view.terminal:
                    view = await watch.change()
                if not follow or attempt or view.attempt == number:
                    yield Piece(number, reading.offset, b"", reading.offset, reading.sealed, _losses(view, number))
                    return
                number, offset, tail_lines = number + 1, 0, 0
        finally:
            await watch.aclose()


class _Watch:
    """A run that is looked at again once it changed, not whenever its log grew."""

    def __init__(
        self, run_id: str, look: Callable[[str], Awaitable[RunView]], changes: Changes, recheck: float
    ) -> None:
        self.woken = asyncio.Event()
        self._run_id = run_id
        self._look = look
        self._changes = changes
        self._recheck = recheck
        self._stale = True
        self._view: RunView | None = None
        self._listening = asyncio.create_task(self._listen(changes.count), name=f"follow {run_id}")

    async def _listen(self, seen: int) -> None:
        while True:
            seen = await self._changes.wait(self._run_id, seen)
            self._stale = True
            self.woken.set()

    async def look(self) -> RunView:
        """Returns the run as it is now; one that was removed since it ended, as it was."""
        if self._stale:
            self._stale = False
            try:
                self._view = await self._look(self._run_id)
            except NotFound:
                if self._view is None or not self._view.terminal:
                    raise
        assert self._view is not None
        return self._view

    async def look_anew(self) -> RunView:
        """Returns the run as `look` does, whatever was seen before."""
        self._stale = True
        return await self.look()

    async def look_again(self) -> RunView:
        """Returns the run as it is now, whatever was seen before. Raises NotFound also where it was removed."""
        self._view = await self._look(self._run_id)
        return self._view

    async def change(self) -> RunView:
        """Waits until the run or whatever else sets `woken` changed, `recheck` seconds at most; returns the run."""
        try:
            async with asyncio.timeout(self._recheck):
                await self.woken.wait()
        except TimeoutError:
            self._stale = True
        self.woken.clear()
        return await self.look()

    async def aclose(self) -> None:
        """Ends the listening."""
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening


class _Reading:
    """Reading the log of one attempt up to where no more is to come.

    `offset` is where it stands, `sealed` whether the log is complete with what was read, and its losses with what was
    told.
    """

    def __init__(
        self, number: int, offset: int, tail_lines: int, follow: bool, settings: FollowSettings, store: LogStore
    ) -> None:
        self.offset = offset
        self.sealed = False
        self._number = number
        self._tail_lines = tail_lines
        self._follow = follow
        self._settings = settings
        self._store = store
        self._told: tuple[LogLoss, ...] = ()

    async def pieces(self, opened: Log, watch: _Watch) -> AsyncGenerator[Piece, None]:
        """Yields all there is and, when following, all that comes."""
        unlisten = opened.listen(watch.woken.set)
        moved = asyncio.get_running_loop().time()
        try:
            if self._tail_lines:
                self.offset = await tail_offset(opened, self._tail_lines)
            view = await watch.look()
            while True:
                # Looked at before the end: what was sealed then can not have grown since.
                sealed = opened.sealed
                start, stop = opened.extent(self.offset)
                data = await opened.read(start, min(self._settings.piece_bytes, stop - start))
                losses = _losses(view, self._number)
                if data or losses != self._told:
                    self.offset, self._told = start + len(data), losses
                    moved = asyncio.get_running_loop().time()
                    yield Piece(self._number, start, data, self.offset, False, losses)
                    if data:
                        continue
                self.offset = start
                if sealed and not self.sealed:
                    # What it lacks was recorded before it was sealed, but perhaps after the run was looked at.
                    view, self.sealed = await watch.look_anew(), True
                    continue
                if self._store.problem is not None:
                    # The bytes wait on the worker for as long as nothing can be stored.
                    moved = asyncio.get_running_loop().time()
                silent = asyncio.get_running_loop().time() - moved
                if sealed or not self._follow or self._is_over(view, silent):
                    return
                view = await watch.change()
        finally:
            unlisten()

    def _is_over(self, view: RunView, silent: float) -> bool:
        """Whether no more bytes are to be waited for, though the log is not sealed."""
        superseded = view.terminal or view.attempt > self._number
        lost = _attempt(view, self._number).state is RunState.LOST
        return superseded and (lost or silent >= self._settings.patience)


async def tail_offset(opened: Log, lines: int, block: int = 64 * 1024) -> int:
    """Returns where the last `lines` lines begin; a last line without its newline counts."""
    begins = [0, *(gap.end for gap in opened.gaps)]
    ends = [*(gap.offset for gap in opened.gaps), opened.end]
    last = opened.end - 1
    missing = lines
    for begin, end in zip(reversed(begins), reversed(ends), strict=True):
        while end > begin:
            start = max(begin, end - block)
            data = await opened.read(start, end - start)
            position = len(data)
            while (position := data.rfind(b"\n", 0, position)) >= 0:
                # The newline at the very end closes the last line and begins none.
                missing -= start + position != last
                if not missing:
                    return start + position + 1
            end = start
    return 0


def _check_there(run_id: str, attempt: AttemptView, opened: Log) -> None:
    if attempt.log_remove_time is not None:
        raise _removed(run_id, attempt, attempt.log_remove_time)
    if attempt.log_sealed and attempt.log_bytes and not opened.end:
        raise DataLoss(
            f"the log of run {run_id}, attempt {attempt.number}, is not in the data folder, though it was stored with "
            f"{format_size(attempt.log_bytes)}: was the database restored without the logs?",
            reason="LOG_MISSING",
            metadata={"run": run_id, "attempt": str(attempt.number)},
        )


def _removed(run_id: str, attempt: AttemptView, time: int) -> NotFound:
    removed = f"{datetime.fromtimestamp(time // MICROSECONDS, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return NotFound(
        f"the log of run {run_id}, attempt {attempt.number}, was removed by retention on {removed} "
        f"(setting {attempt.log_removed_by}); it had {format_size(attempt.log_bytes)}",
        reason="LOG_REMOVED",
        metadata={
            "run": run_id,
            "attempt": str(attempt.number),
            "setting": attempt.log_removed_by,
            "time": removed,
        },
    )


def _attempt(view: RunView, number: int) -> AttemptView:
    return next(each for each in view.attempts if each.number == number)


def _losses(view: RunView, number: int) -> tuple[LogLoss, ...]:
    return _attempt(view, number).log_losses
