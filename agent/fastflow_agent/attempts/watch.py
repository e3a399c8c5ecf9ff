"""From the release to the verdict: waits for the end, keeps the time limit, stops what is to be stopped."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, Dossier
from fastflow_agent.attempts.pace import Pace
from fastflow_agent.cgroups.kernellog import oom_victims
from fastflow_agent.cgroups.verdict import Evidence, OutsideSignal, judge, rests_on_oom_flag
from fastflow_agent.facts import Ended, StateChanged
from fastflow_agent.model import State, StopCause
from fastflow_agent.reconcile import rebooted
from fastflow_agent.records import Exited, OomSeen, Signalled, Stopping
from fastflow_agent.runtime.base import Observation, RuntimeUnavailable

log = structlog.get_logger(__name__)

KILL_AGAIN_SECONDS = 5.0
"""A container that outlives SIGKILL (a process in uninterruptible sleep, an engine that forgot it) is killed again."""

CLOCK_SET_SECONDS = 5.0
"""Wall clock and monotonic clock drift apart by less within a day, where the wall clock is only slewed."""

HEEDED_SECONDS = 10.0
"""So long `docker stop` and an engine that is stopped wait themselves before they kill a container."""

_ASKS_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that a program may heed by an end of its own making. `docker stop` and a host's shutdown send the first."""

_ENDED_BY_OUR_SIGNALS = (128 + signal.SIGTERM, 128 + signal.SIGKILL, None)


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
        end = asyncio.ensure_future(self._dossier.patiently(lambda: runtime.wait(slot)))
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


async def conclude(dossier: Dossier, seen: Observation, *, released: bool) -> None:
    """Judge the end of an attempt whose container has ended or is gone, and journal it; the evidence may go then."""
    dossier.reach(AgentPoint.END_SEEN)
    services, history = dossier.services, dossier.history
    group = services.runtime.group(dossier.slot)
    reading = await services.sampler.finish(dossier.slot)
    if reading is None and group is not None:
        # It ended while no agent was there to sample it; the parent group still tells.
        services.sampler.add(dossier.slot, group, history.intent.limits, list(history.crossings.values()))
        reading = await services.sampler.finish(dossier.slot)
    evidence = Evidence(
        observation=seen,
        limits=history.intent.limits,
        released=released,
        reading=reading,
        cgroup=group.version if group is not None else "none",
        stop=_effective_stop(dossier, seen),
        timeout_seconds=history.intent.timeout,
        outside=_outside_signal(dossier, seen),
        rebooted=rebooted(history, services.boot_id),
        shutdown=_ended_in_shutdown(dossier, seen),
        oom_seen=history.oom_kills > 0,
    )
    if evidence.may_be_shutdown and await services.shutting_down():
        evidence = replace(evidence, shutdown=True)
    if evidence.may_be_oom:
        loop = asyncio.get_running_loop()
        victims = await loop.run_in_executor(services.disk, oom_victims, dossier.slot)
        evidence = replace(evidence, victims=victims)
    if rests_on_oom_flag(evidence):
        flag = await dossier.patiently(lambda: services.runtime.oom_flag(dossier.slot))
        seen = replace(seen, oom_flag=flag)
        evidence = replace(evidence, observation=seen)
    verdict = judge(evidence)
    ended = Ended(
        state=verdict.state,
        reason=verdict.reason,
        message=verdict.message,
        exit_code=verdict.exit_code,
        signal=verdict.signal,
        usage=reading.usage if reading else None,
        out_of_memory=verdict.out_of_memory,
    )
    log_bytes = None if evidence.rebooted else await _log_bytes(dossier)
    exited = Exited(seen.state.value, seen.oom_flag, seen.error, seen.exit_code, log_bytes)
    # The end itself, which may have been long before: a run may end while no agent is there.
    await dossier.record(exited, facts=(ended,), time=seen.finished_at)
    dossier.reach(AgentPoint.EXITED)


async def _log_bytes(dossier: Dossier) -> int | None:
    def look() -> int | None:
        try:
            return dossier.paths.log.lstat().st_size
        except OSError:
            return None

    return await asyncio.get_running_loop().run_in_executor(dossier.services.disk, look)


def _effective_stop(dossier: Dossier, seen: Observation) -> StopCause | None:
    """The stop that ended the attempt; None where it had ended before a signal reached it.

    An agent that died between signal and journal does not know. Then an end by one of our signals was ours, and so is
    any within the grace: programs tidy up and say 0. What was cut short must not pass for a success.
    """
    history = dossier.history
    if history.stopping is None or (history.oom_kills and not history.signalled):
        return None
    told = not _clock_was_set(dossier)
    if history.signalled is None and told and seen.finished_at and seen.finished_at < history.stopping.time:
        return None
    ours = history.signalled is not None or seen.exit_code in _ENDED_BY_OUR_SIGNALS
    if dossier.signal_in_doubt and seen.finished_at is not None:
        end_of_grace = history.stopping.time + timedelta(seconds=history.stopping.grace)
        ours |= not told or seen.finished_at <= end_of_grace
    return history.stopping.cause if ours else None


def _outside_signal(dossier: Dossier, seen: Observation) -> OutsideSignal | None:
    """The last signal that somebody else sent to ask the program to end, if it may have ended by it.

    Nobody can look into a program: one that ends within its `stop_grace` of the signal, at least HEEDED_SECONDS, is
    taken to have ended by it, as it would by the agent's; one that goes on for longer has not heeded it. A signal that
    a process of the host sent by itself, past the engine, leaves no trace to be told by.
    """
    history = dossier.history
    ours_from = history.stopping.time if history.stopping else None
    sent = [
        signal
        for signal in seen.signals
        if signal.number in _ASKS_TO_END and (ours_from is None or signal.time < ours_from)
    ]
    if not sent or seen.finished_at is None:
        return None
    after = max(0.0, (seen.finished_at - sent[-1].time).total_seconds())
    heeded = after <= max(history.intent.stop_grace, HEEDED_SECONDS)
    return OutsideSignal(sent[-1].number, after) if heeded else None


def _ended_in_shutdown(dossier: Dossier, seen: Observation) -> bool | None:
    """Whether the attempt ended after the shutdown of its host had begun; None where nobody saw that."""
    history, shutdown = dossier.history, dossier.services.last_shutdown
    if shutdown is None or seen.finished_at is None or not rebooted(history, dossier.services.boot_id):
        return None
    if history.releasing is None or history.releasing.boot_id != shutdown.boot_id:
        return None
    return seen.finished_at >= shutdown.time


def _clock_was_set(dossier: Dossier) -> bool:
    """Whether the time of day was set since the release: then no two of its readings tell what came first."""
    history, clock = dossier.history, dossier.services.clock
    if history.releasing is None or rebooted(history, dossier.services.boot_id):
        return False
    by_wall = (clock.now() - history.releasing.time).total_seconds()
    return abs(by_wall - (clock.monotonic() - history.releasing.monotonic)) > CLOCK_SET_SECONDS
