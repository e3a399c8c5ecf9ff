"""The end of an attempt: what there is of evidence is gathered, judged, and journaled."""

from __future__ import annotations

import asyncio
import signal as signals
from dataclasses import replace
from datetime import timedelta

from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.dossier import Dossier
from fastflow_agent.cgroups.kernellog import oom_victims
from fastflow_agent.cgroups.verdict import ENDED_BY_STOP, Evidence, OutsideSignal, judge, rests_on_oom_flag
from fastflow_agent.facts import Ended
from fastflow_agent.logs.confirmed import durable_length
from fastflow_agent.model import StopCause
from fastflow_agent.reconcile import rebooted
from fastflow_agent.records import Exited
from fastflow_agent.runtime.base import Observation

CLOCK_SET_SECONDS = 5.0
"""Wall clock and monotonic clock drift apart by less within a day, where the wall clock is only slewed."""

HEEDED_SECONDS = 10.0
"""So long `docker stop` and an engine that is stopped wait themselves before they kill a container."""

_ASKS_TO_END = (signals.SIGTERM, signals.SIGINT, signals.SIGQUIT)
"""Signals that a program may heed by an end of its own making. `docker stop` and a host's shutdown send the first."""


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
        withdrawn=dossier.withdrawn,
    )
    if evidence.may_be_shutdown and await services.shutting_down():
        evidence = replace(evidence, shutdown=True)
    if evidence.may_be_oom:
        loop = asyncio.get_running_loop()
        victims = await loop.run_in_executor(services.disk, oom_victims, dossier.slot)
        evidence = replace(evidence, victims=victims)
    if rests_on_oom_flag(evidence):
        flag = await dossier.insistently(lambda: services.runtime.oom_flag(dossier.slot))
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
    log_bytes = dossier.log_bytes if evidence.rebooted else await _log_bytes(dossier)
    exited = Exited(seen.state.value, seen.oom_flag, seen.error, seen.exit_code, log_bytes)
    # The end itself, which may have been long before: a run may end while no agent is there.
    await dossier.record(exited, facts=(ended,), time=seen.finished_at)
    dossier.reach(AgentPoint.EXITED)


async def _log_bytes(dossier: Dossier) -> int | None:
    return await asyncio.get_running_loop().run_in_executor(dossier.services.disk, durable_length, dossier.paths.log)


def _effective_stop(dossier: Dossier, seen: Observation) -> StopCause | None:
    """The stop that ended the attempt; None where it had ended before a signal reached it.

    An agent that died between signal and journal does not know. Then an end by one of our signals was ours, and so is
    any within the grace: programs tidy up and say 0. What was cut short must not pass for a success. An end
    that nobody saw, once a stop was wanted, is taken to be the stop's: what was asked for has come about.
    """
    history = dossier.history
    if history.stopping is None or (history.oom_kills and not history.signalled):
        return None
    told = not _clock_was_set(dossier)
    if history.signalled is None and told and seen.finished_at and seen.finished_at < history.stopping.time:
        return None
    unseen = seen.exit_code is None or seen.end_unseen
    ours = history.signalled is not None or seen.exit_code in ENDED_BY_STOP or unseen
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
        each for each in seen.signals if each.number in _ASKS_TO_END and (ours_from is None or each.time < ours_from)
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
