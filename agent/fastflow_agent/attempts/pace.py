"""Freezes a program whose output can not be delivered, and lets it go on once it was.

Time it spends frozen counts nothing towards its time limit: the limit is on the program's own work, and an outage of
the control plane must not end a run that was asked to wait for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import structlog

from fastflow_agent.attempts.dossier import Dossier
from fastflow_agent.facts import OutputPaused
from fastflow_agent.records import Paused, Resumed
from fastflow_agent.runtime.base import RuntimeFault

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the log's file is looked at while nobody else does: a fast program fills gigabytes in seconds."""

_BLOCK = 512
"""Unit of st_blocks, inode(7)."""


class Pace:
    """Keeps one released attempt from running away from its log."""

    def __init__(self, dossier: Dossier) -> None:
        self._dossier = dossier
        self._frozen = False
        self.look_at: float | None = None
        """When `keep` is due by the clock alone (monotonic seconds)."""

    async def keep(self, *, stopping: bool) -> None:
        """Freeze or thaw as is due; a program that is to end is thawed. Raises RuntimeUnavailable."""
        dossier = self._dossier
        if not dossier.history.intent.pause_on_backlog:
            return
        dossier.backlog.seen()
        paused = dossier.history.paused is not None
        wanted = not stopping and await self._over()
        if wanted and not self._frozen:
            await self._freeze(paused)
        elif paused and not wanted:
            await self._thaw()

    async def end(self) -> None:
        """The program ended, however: it is frozen no more."""
        if self._dossier.history.paused is not None:
            await self._record_end()

    async def _over(self) -> bool:
        dossier = self._dossier
        self.look_at = None
        if dossier.backlog.over is not None:
            return dossier.backlog.over
        # Taken over from an earlier agent, and the control plane has not named what to mask: nothing is read, so
        # nothing drains. What was delivered has left the disk, so the rest is what the file takes up there.
        if dossier.history.paused is not None:
            return True
        self.look_at = dossier.services.clock.monotonic() + LOOK_SECONDS
        loop = asyncio.get_running_loop()
        kept = await loop.run_in_executor(dossier.services.disk, _bytes_on_disk, dossier.paths.log)
        dossier.backlog.waiting, dossier.backlog.quota = kept, dossier.services.spool_quota
        return kept > dossier.services.spool_quota

    async def _freeze(self, paused: bool) -> None:
        dossier = self._dossier
        if not paused:
            clock, last = dossier.services.clock, dossier.history.pause
            number = last.number + 1 if last else 1
            fact = OutputPaused(number, dossier.backlog.quota, dossier.backlog.waiting, clock.now())
            await dossier.record(Paused(clock.monotonic()), facts=(fact,))
            dossier.backlog.paused = True
        log.warning("program is paused: its output can not be delivered", attempt=str(dossier.key))
        try:
            self._frozen = await dossier.services.runtime.freeze(dossier.slot)
        except RuntimeFault as error:
            log.warning("program can not be paused", attempt=str(dossier.key), error=str(error))
            self._frozen = True  # in name alone: what it writes past the slack is dropped

    async def _thaw(self) -> None:
        dossier = self._dossier
        try:
            await dossier.services.runtime.thaw(dossier.slot)
        except RuntimeFault as error:
            log.warning("program can not be thawed", attempt=str(dossier.key), error=str(error))
        self._frozen = False
        await self._record_end()
        log.info("program goes on", attempt=str(dossier.key))

    async def _record_end(self) -> None:
        dossier = self._dossier
        clock, pause, paused = dossier.services.clock, dossier.history.pause, dossier.history.paused
        assert pause is not None
        assert paused is not None
        now = clock.monotonic()
        cleared = replace(
            pause,
            backlog=max(pause.backlog, dossier.backlog.peak),
            clear_time=max(clock.now(), pause.raise_time),
            seconds=round(max(0.0, now - paused.monotonic), 3),
        )
        await dossier.record(Resumed(now), facts=(cleared,))
        dossier.backlog.paused = False


def _bytes_on_disk(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * _BLOCK
    except OSError:
        return 0
