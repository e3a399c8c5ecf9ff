"""From the release to the end: waits for the end, keeps the time limit, stops what is to be stopped."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import structlog
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.conclusion import conclude
from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, Dossier
from fastflow_agent.attempts.pace import Pace
from fastflow_agent.facts import StateChanged
from fastflow_agent.model import State, StopCause
from fastflow_agent.records import OomSeen, Signalled, Stopping
from fastflow_agent.runtime.base import RuntimeFault, RuntimeUnavailable

log = structlog.get_logger(__name__)

KILL_AGAIN_SECONDS = 5.0
"""A container that outlives SIGKILL (a process in uninterruptible sleep, an engine that forgot it) is killed again."""


class Watch:
    """Watches one released attempt. Times on the monotonic clock are in seconds."""

    def __init__(self, dossier: Dossier) -> None:
        self._dossier = dossier
        self._services = dossier.services
        history = dossier.history
        self._kill_at: float | None = None
        self._killed = False
        self._grace = history.stopping.grace if history.stopping else 0.0
        if history.oom_kills:
            self._kill_at = self._now()
        elif history.stopping and history.signalled:
            self._kill_at = history.signalled.monotonic + history.stopping.grace
        elif history.stopping:
            dossier.signal_in_doubt = True
        self._retry_at: float | None = None
        self._pace = Pace(dossier)

    async def until_end(self) -> None:
        """Return once the attempt's end is judged and journaled."""
        await self._sample()
        runtime, slot = self._services.runtime, self._dossier.slot
        end = asyncio.ensure_future(self._dossier.insistently(lambda: runtime.wait(slot)))
        try:
            while not end.done():
                await self._advance()
                await self._until_news(end)
        finally:
            end.cancel()
            await asyncio.wait([end])
        await self._pace.end()
        await conclude(self._dossier, end.result(), released=True)

    async def _sample(self) -> None:
        group = self._services.runtime.group(self._dossier.slot)
        if group is None:
            # After an agent's start the runtime learns where control groups are with its first answer.
            await self._services.health.probe()
            group = self._services.runtime.group(self._dossier.slot)
        if group is not None:
            history = self._dossier.history
            self._services.sampler.add(
                self._dossier.slot, group, history.intent.limits, list(history.crossings.values())
            )

    async def _advance(self) -> None:
        """Do what is due now."""
        self._retry_at = None
        history = self._dossier.history
        if self._dossier.oom.is_set() and not history.oom_kills:
            await self._dossier.record(OomSeen(self._dossier.oom_kills))
            self._kill_at = self._now()
        if history.stopping is None and (cause := self._cause()):
            await self._begin_stop(cause)
        self._shorten()
        try:
            await self._pace.keep(stopping=history.stopping is not None or self._kill_at is not None)
            await self._signal()
        except RuntimeUnavailable as error:
            self._services.health.engine_refused(error)
            self._retry_at = self._now() + RETRY_INITIAL_SECONDS

    def _cause(self) -> StopCause | None:
        if cause := self._dossier.wishes.stop:
            return cause
        limit = self._time_limit()
        return StopCause.TIMEOUT if limit is not None and self._now() >= limit else None

    async def _begin_stop(self, cause: StopCause) -> None:
        grace = self._dossier.wishes.stop_grace
        if grace is None:
            grace = self._dossier.history.intent.stop_grace
        await self._dossier.record(
            Stopping(cause, self._services.clock.now(), grace), facts=(StateChanged(State.STOPPING, cause.reason),)
        )
        self._grace = grace
        self._dossier.reach(AgentPoint.STOPPING)

    def _shorten(self) -> None:
        """Kill sooner where the control plane has named a shorter grace since. It counts from SIGTERM as well."""
        if self._has_shorter_grace():
            grace = self._dossier.wishes.stop_grace or 0.0
            if self._kill_at is not None:
                self._kill_at -= self._grace - grace
            self._grace = grace

    def _has_shorter_grace(self) -> bool:
        grace = self._dossier.wishes.stop_grace
        stopping = self._dossier.history.stopping is not None and not self._killed
        return stopping and grace is not None and grace < self._grace

    async def _signal(self) -> None:
        stopping = self._dossier.history.stopping
        if stopping is not None and self._kill_at is None:
            if await self._send(signal.SIGTERM):
                self._dossier.reach(AgentPoint.SIGNAL_SENT)
                await self._dossier.record(Signalled(self._now()))
                self._dossier.reach(AgentPoint.SIGNALLED)
            self._kill_at = self._now() + self._grace
        if self._kill_at is not None and self._now() >= self._kill_at:
            await self._send(signal.SIGKILL)
            self._killed = True
            self._kill_at = self._now() + KILL_AGAIN_SECONDS

    async def _send(self, number: signal.Signals) -> bool:
        log.info("signal", attempt=str(self._dossier.key), signal=number.name)
        try:
            return await self._services.runtime.signal(self._dossier.slot, number)
        except RuntimeUnavailable:
            # It may have been delivered all the same.
            self._dossier.signal_in_doubt = True
            raise
        except RuntimeFault as error:
            # Refused once, refused again: what is due next is tried, which is SIGKILL.
            log.warning("signal refused", attempt=str(self._dossier.key), signal=number.name, why=str(error))
            self._dossier.signal_in_doubt = True
            return False

    async def _until_news(self, end: asyncio.Future[Any]) -> None:
        history, wishes, due = self._dossier.history, self._dossier.wishes, self._next_due()
        news: list[asyncio.Future[Any]] = [end]
        if history.stopping is None:
            news.append(asyncio.ensure_future(wishes.until(lambda: wishes.stop)))
        else:
            news.append(asyncio.ensure_future(wishes.until(self._has_shorter_grace)))
        if not history.oom_kills:
            news.append(asyncio.ensure_future(self._dossier.oom.wait()))
        if history.intent.pause_on_backlog:
            news.append(asyncio.ensure_future(self._dossier.backlog.changed()))
        if due is not None:
            news.append(asyncio.ensure_future(self._services.clock.sleep(max(0.0, due - self._now()))))
        try:
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in news[1:]:
                task.cancel()

    def _next_due(self) -> float | None:
        """When `_advance` has something to do by the clock alone."""
        if self._retry_at is not None:
            return self._retry_at
        if self._kill_at is not None:
            return self._kill_at
        dues = [due for due in (self._time_limit(), self._pace.look_at) if due is not None]
        return min(dues, default=None)

    def _time_limit(self) -> float | None:
        history = self._dossier.history
        if not history.intent.timeout or history.releasing is None or history.paused is not None:
            return None
        return history.releasing.monotonic + history.intent.timeout + history.paused_seconds

    def _now(self) -> float:
        return self._services.clock.monotonic()
