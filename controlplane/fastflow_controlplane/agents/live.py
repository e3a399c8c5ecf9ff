"""One agent in memory: what it said last, whether it lives, and how it is shown and offered for placement."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fastflow_controlplane.agents.model import (
    AgentFacts,
    AgentState,
    AgentView,
    Condition,
    DrainView,
    EnvironmentKey,
    EnvironmentReport,
    EnvironmentResult,
    ReportedAttempt,
)
from fastflow_controlplane.agents.wanted import Before
from fastflow_controlplane.runs.model import Usage
from fastflow_controlplane.scheduler.placement import Offer
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.queries.agents import AgentRow, Hold

MAX_RESULTS = 10_000
"""Environments of one agent that are kept in mind; far more than pipelines make, and no agent fills the memory."""


class AgentStream(Protocol):
    """A session as the registry sees it."""

    epoch: int

    def supersede(self) -> None:
        """A newer stream of this agent took over."""

    def cut(self) -> None:
        """The agent is silent: break the stream, so that it dials anew."""

    def desired_changed(self) -> None:
        """Something the agent shall do changed."""

    def preheat_changed(self, before: Before) -> None:
        """Other environments are wanted than `before`, perhaps of this agent."""

    def probe(self) -> None:
        """Ask the agent for a sign of life."""


class Placing(Protocol):
    """What the registry tells the scheduler."""

    def agent_changed(self, offer: Offer) -> None:
        """An agent appeared or changed."""

    def agent_removed(self, agent_id: str) -> None:
        """An agent is no more."""


@dataclass
class LiveAgent:
    """One agent in memory. Moments are monotonic seconds; `offline_since` = when it became OFFLINE.

    `restored` = it is known from the database alone, and has not dialled in yet. `awaited` = nor had it the time to,
    so nobody may count on it being away.
    """

    row: AgentRow
    stream: AgentStream | None = None
    heard: float = 0.0
    broke: float = 0.0
    restored: bool = False
    awaited: bool = False
    last_seen_time: int = 0
    state: AgentState = AgentState.OFFLINE
    offline_since: float | None = None
    duplicate: Condition | None = None
    duplicate_seen: float = 0.0
    conditions: tuple[Condition, ...] = ()
    environments: tuple[str, ...] = ()
    results: dict[EnvironmentKey, EnvironmentResult] = field(default_factory=dict)
    usage: dict[tuple[str, int], Usage] = field(default_factory=dict)
    refusal: str = ""
    reported: tuple[ReportedAttempt, ...] | None = None
    """What it had as it connected, where it is in quarantine; None = not told."""
    applied_revision: int = 0

    @property
    def facts(self) -> AgentFacts:
        """What the agent said of itself."""
        return self.row.facts

    @property
    def why(self) -> str:
        """Why the agent takes no runs; "" = it does."""
        if self.stream is None and self.refusal:
            return f"is refused: {self.refusal}"
        if self.state is AgentState.OFFLINE:
            return "is offline"
        if self.state is AgentState.SUSPECT:
            return "has not been heard of for some seconds" if self.stream else "lost its connection a moment ago"
        if self.row.quarantine_reason:
            return f"is in quarantine: {self.row.quarantine_reason}"
        if self.row.draining:
            return "is draining: it takes no new runs"
        return "; ".join(
            f"{condition.type}: {condition.message}" for condition in self.conditions if condition.blocks_placement
        )

    @property
    def advice(self) -> str:
        """What is told of the agent itself, to somebody who looks after it."""
        if self.state is AgentState.OFFLINE and not self.refusal:
            return "is offline: look whether its host is up, fastflow-agent runs there and the network is well"
        return self.why

    @property
    def shown_state(self) -> AgentState:
        """The state that people see."""
        if self.state is AgentState.ACTIVE and self.row.quarantine_reason:
            return AgentState.QUARANTINED
        if self.state is AgentState.ACTIVE and self.row.draining:
            return AgentState.DRAINING
        return self.state

    def judged(self, now: float, settings: ControlPlaneSettings) -> AgentState:
        """Returns whether it lives at the monotonic moment `now`: ACTIVE, SUSPECT or OFFLINE."""
        if self.stream is None:
            # A host that lost its power is silent for long before its stream is seen to be broken.
            silence = max(settings.offline_after, settings.silent_after * settings.heartbeat_interval)
            offline = (
                self.offline_since is not None
                or now - self.broke >= settings.offline_after
                or now - self.heard >= silence
            )
            return AgentState.OFFLINE if offline else AgentState.SUSPECT
        missed = (now - self.heard) / settings.heartbeat_interval
        if missed >= settings.silent_after:
            return AgentState.OFFLINE
        return AgentState.SUSPECT if missed >= settings.suspect_after else AgentState.ACTIVE

    def note_environments(self, report: EnvironmentReport) -> None:
        """It told how far environments are."""
        known = {**({} if report.full else self.results), **report.results}
        for key in report.gone:
            known.pop(key, None)
        self.results = dict(list(known.items())[-MAX_RESULTS:])

    def offer(self) -> Offer:
        """What it has for runs; what attempts hold of it, placement knows."""
        return Offer(
            agent_id=self.facts.agent_id,
            name=self.facts.name,
            capacity=self.facts.capacity,
            python_versions=self.facts.runtime.python_versions,
            blocked=self.why,
            connected=self.stream is not None,
            offline=(self.state is AgentState.OFFLINE and not self.awaited) or bool(self.row.quarantine_reason),
            draining=self.row.draining,
            environments=frozenset(key for key, result in self.results.items() if result.state == "READY"),
        )

    def view(self, row: AgentRow, hold: Hold, further: tuple[Condition, ...]) -> AgentView:
        """How it is shown: as its `row` says now, with what its attempts hold and `further` conditions."""
        # An agent in quarantine repeats what `message` says already.
        own = [held for held in self.conditions if held.message != row.quarantine_reason]
        return AgentView(
            facts=row.facts,
            state=self.shown_state,
            reserved=hold.reserved,
            conditions=(*own, *further),
            attempts=hold.attempts,
            last_seen_time=max(self.last_seen_time, row.last_seen_time),
            connect_time=row.connect_time,
            session_epoch=row.session_epoch,
            message=self.advice,
            environments=self.environments,
            drain=_drain(row, hold),
        )


def keep_since(reported: Sequence[Condition], known: Sequence[Condition], now: int) -> tuple[Condition, ...]:
    """Returns what was reported; a condition that goes on keeps the moment it was first reported."""
    since = {condition.type: condition.since for condition in known}
    return tuple(replace(condition, since=since.get(condition.type, condition.since or now)) for condition in reported)


def _drain(row: AgentRow, hold: Hold) -> DrainView | None:
    if not row.draining:
        return None
    return DrainView(
        start_time=row.drain_time or row.connect_time,
        deadline_time=row.drain_deadline_time,
        attempts=len(hold.attempts),
        logs=hold.logs,
        quarantined=bool(row.quarantine_reason),
    )
