"""Facts that agents report of attempts, and what each of them does to the rows.

A batch is one operation of the writer; acknowledgements leave after its commit. Per attempt the numbers run from 1
without gaps: a repeat is acknowledged and changes nothing, a gap asks for what is missing. A fact that comes too late
for the attempt's state is kept as history and answered by a rejection, which settles it as well.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastflow_controlplane.agents.model import AgentFacts
from fastflow_controlplane.runs.model import (
    AttemptKey,
    LogLoss,
    OutOfMemory,
    Provenance,
    SoftLimitWarning,
    Usage,
    WaitingRun,
)
from fastflow_controlplane.runs.states import LIVE, TERMINAL, Actor, Reason, RunState, sources
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.queries import attempts, events, runs
from fastflow_controlplane.store.queries.agents import is_current
from fastflow_controlplane.store.queries.attempts import AttemptRow, Ending
from fastflow_controlplane.store.queries.events import HistoryEntry
from fastflow_controlplane.store.queries.transitions import Epochs, note

STALE_ATTEMPT = "STALE_ATTEMPT"
BAD_TOKEN = "BAD_TOKEN"
ALREADY_TERMINAL = "ALREADY_TERMINAL"
UNKNOWN_ATTEMPT = "UNKNOWN_ATTEMPT"
GAP = "GAP"
DRAINED = "the agent is drained"
"""What is told of an attempt that an agent of protocol 1 gave up for a drain."""
BACKWARDS = "BACKWARDS"
"""Kept in the history alone: a move that the table of states forbids. The agent gets a plain acknowledgement."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The attempt moved on to PREPARING, RUNNING or STOPPING; QUEUED = it could not start."""

    state: RunState
    reason: Reason
    message: str
    slot: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt ended."""

    state: RunState
    reason: Reason
    message: str
    exit_code: int | None
    signal: int | None
    usage: Usage | None
    out_of_memory: OutOfMemory | None


@dataclass(frozen=True, slots=True)
class SoftLimitCrossed:
    """A soft limit was crossed, up or down; both share the number of the crossing."""

    crossing: int
    warning: SoftLimitWarning


@dataclass(frozen=True, slots=True)
class LogLossFound:
    """Output was lost on the worker."""

    loss: LogLoss


@dataclass(frozen=True, slots=True)
class ContainerGone:
    """The container is gone, its capacity is free."""


@dataclass(frozen=True, slots=True)
class ProvenanceKnown:
    """What exactly runs."""

    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Unrecognized:
    """A fact of a newer protocol: numbered, acknowledged, not understood."""


Fact = StateChanged | Ended | SoftLimitCrossed | LogLossFound | ContainerGone | ProvenanceKnown | Unrecognized

KINDS: Mapping[type[Fact], str] = {
    StateChanged: "state_changed",
    Ended: "ended",
    SoftLimitCrossed: "soft_limit_crossed",
    LogLossFound: "log_loss_found",
    ContainerGone: "container_gone",
    ProvenanceKnown: "provenance_known",
    Unrecognized: "unrecognized",
}
"""Names of the facts in `AttemptEvent`."""


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """One fact with its number within the attempt. `time` is the agent's clock: a label, microseconds UTC."""

    key: AttemptKey
    sequence: int
    time: int
    fact: Fact


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """All events of the attempt up to `sequence` are settled; `rejection` is a name of EventRejection or ""."""

    run_id: str
    attempt: int
    sequence: int
    rejection: str = ""


@dataclass(slots=True)
class Effects:
    """What a batch did, for those who act on it after the commit."""

    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    changed_runs: set[str] = field(default_factory=set)
    released: list[AttemptKey] = field(default_factory=list)
    waiting_again: list[WaitingRun] = field(default_factory=list)
    desired_changed: bool = False


class SessionSuperseded(Exception):
    """A newer session of the same agent took over: this one may write nothing any more."""


def apply_events(
    connection: Connection,
    agent: AgentFacts,
    batch: Iterable[AttemptEvent],
    epochs: Epochs,
    max_placements: int,
    now: int,
) -> Effects:
    """Applies a batch of one agent's session. Raises SessionSuperseded."""
    if not is_current(connection, agent.agent_id, epochs.session, now):
        raise SessionSuperseded
    grouped: defaultdict[AttemptKey, list[AttemptEvent]] = defaultdict(list)
    for event in batch:
        grouped[event.key].append(event)
    effects = Effects()
    for key, of_attempt in grouped.items():
        row = attempts.read_attempt(connection, key.run_id, key.attempt)
        refusal = _refusal(row, key, agent.agent_id)
        if row is None or refusal:
            last = max(event.sequence for event in of_attempt)
            effects.acknowledgements.append(Acknowledgement(key.run_id, key.attempt, last, refusal))
        else:
            _AttemptWrites(connection, row, agent, epochs, max_placements, now, effects).apply(of_attempt)
    return effects


def _refusal(row: AttemptRow | None, key: AttemptKey, agent_id: str) -> str:
    if row is None:
        return UNKNOWN_ATTEMPT
    if row.key != key or row.agent_id != agent_id:
        return BAD_TOKEN
    return ""


class _AttemptWrites:
    """Applies the events of one attempt, in order."""

    def __init__(
        self,
        connection: Connection,
        row: AttemptRow,
        agent: AgentFacts,
        epochs: Epochs,
        max_placements: int,
        now: int,
        effects: Effects,
    ) -> None:
        self._connection = connection
        self._row = row
        self._agent = agent
        self._epochs = epochs
        self._max_placements = max_placements
        self._now = now
        self._effects = effects
        self._acknowledged = -1
        self._history: list[HistoryEntry] = []
        self._noted: dict[str, Any] = {}

    def apply(self, of_attempt: Sequence[AttemptEvent]) -> None:
        key = self._row.key
        first = known = self._row.known_seq
        gap = False
        for event in sorted(of_attempt, key=lambda event: event.sequence):
            if event.sequence <= known:
                continue
            if event.sequence > known + 1:
                gap = True
                break
            rejection = self._apply(event)
            known = event.sequence
            self._keep(event, rejection)
            if rejection and rejection != BACKWARDS:
                self._acknowledge(known, rejection)
        if known > self._row.known_seq:
            self._noted["known_seq"] = known
        if self._noted:
            note(self._connection, key, self._noted)
            attempts.touch_run(self._connection, key.run_id)
        if known > first:
            events.add_to_history(self._connection, key, self._history, self._epochs.session, self._now)
            self._effects.changed_runs.add(key.run_id)
        if self._row.state in TERMINAL and self._row.released:
            self._effects.desired_changed |= bool(attempts.settle(self._connection, key))
        if gap:
            self._acknowledge(known, GAP)
        elif self._acknowledged < known:
            self._acknowledge(known, "")

    def _apply(self, event: AttemptEvent) -> str:
        connection, key = self._connection, self._row.key
        match event.fact:
            case StateChanged() | Ended() as fact:
                return self._move(fact, event.sequence, self._label(event.time))
            case SoftLimitCrossed(crossing, warning):
                events.put_warning(connection, key, crossing, warning)
            case LogLossFound(loss):
                events.add_agent_loss(connection, key, event.sequence, loss)
            case ContainerGone() if not self._row.released:
                self._noted["released"] = True
                self._row = replace(self._row, released=True)
                self._effects.released.append(key)
            case ProvenanceKnown(provenance):
                self._noted["provenance"] = attempts.provenance_column(provenance)
            case _:
                pass
        return ""

    def _move(self, fact: StateChanged | Ended, sequence: int, time: int) -> str:
        if self._row.state in TERMINAL:
            return ALREADY_TERMINAL if self._row.newest else STALE_ATTEMPT
        fact = self._name_drain(fact)
        state = fact.state
        if isinstance(fact, Ended):
            moved = fact.state in TERMINAL and self._end(fact, sequence, time)
        elif fact.state is RunState.QUEUED:
            moved, state = self._give_back(fact, sequence, time), attempts.state_given_back(fact.reason)
        else:
            moved = fact.state in LIVE and self._advance(fact, sequence, time)
        if not moved:
            return BACKWARDS
        self._row = replace(self._row, state=state, known_seq=sequence)
        return ""

    def _name_drain(self, fact: StateChanged | Ended) -> StateChanged | Ended:
        """An agent of protocol 1 knows no drain: it takes one for a cancel, and ends what had not begun.

        Which it was tells the row, not the session: an agent that was upgraded since may send what it noted before.
        """
        if not self._row.drained or fact.reason is not Reason.CANCEL_REQUESTED:
            return fact
        if isinstance(fact, StateChanged):
            return replace(fact, reason=Reason.AGENT_DRAINED)
        if self._row.state in sources(Actor.AGENT, RunState.QUEUED):
            return StateChanged(RunState.QUEUED, Reason.AGENT_DRAINED, DRAINED, slot="")
        return replace(fact, reason=Reason.AGENT_DRAINED, message=f"stopped: {DRAINED}, and the time for that was over")

    def _advance(self, fact: StateChanged, sequence: int, time: int) -> bool:
        return attempts.advance(
            self._connection,
            self._row.key,
            fact.state,
            fact.reason,
            fact.message,
            fact.slot,
            sequence,
            self._epochs,
            time,
        )

    def _end(self, fact: Ended, sequence: int, time: int) -> bool:
        ending = Ending(
            fact.state,
            fact.reason,
            fact.message,
            time,
            exit_code=fact.exit_code,
            signal=fact.signal,
            usage=fact.usage,
            out_of_memory=fact.out_of_memory,
        )
        known = {"known_seq": sequence}
        return attempts.end(self._connection, self._row.key, Actor.AGENT, ending, self._epochs, known)

    def _give_back(self, fact: StateChanged, sequence: int, time: int) -> bool:
        """The attempt could not start: its run waits again, unless it was cancelled or has failed too often."""
        key, reason = self._row.key, fact.reason or Reason.REJECTED
        failed = self._row.failed_placements + 1
        why = f'agent "{self._agent.name}" could not start it: {fact.message}'
        if reason in attempts.NO_FAILURE:
            failed, why = 0, f'agent "{self._agent.name}" gave it back before it began: {fact.message}'
        end = None
        if self._row.cancelled:
            end = Ending(RunState.CANCELLED, Reason.CANCEL_REQUESTED, "cancelled before it started", time)
        elif failed >= self._max_placements:
            end = Ending(RunState.FAILED, reason, f"could not be started on {failed} placements; last: {why}", time)
        if not attempts.give_back(self._connection, key, reason, why, end, sequence, self._epochs, time):
            return False
        if end is None:
            self._effects.waiting_again.extend(runs.read_waiting(self._connection, key.run_id))
        return True

    def _label(self, time: int) -> int:
        """The agent's clock may be wrong: nothing happened before what happened before it, or in the future.

        What can not be is replaced by when it was heard of. Our own clock may be wrong, too.
        """
        floor = max(self._row.assign_time, self._row.start_time or 0)
        return max(floor, time if floor <= time <= self._now else self._now)

    def _keep(self, event: AttemptEvent, rejection: str) -> None:
        entry = HistoryEntry(event.sequence, KINDS[type(event.fact)], asdict(event.fact), rejection, event.time)
        self._history.append(entry)

    def _acknowledge(self, sequence: int, rejection: str) -> None:
        self._acknowledged = sequence
        self._effects.acknowledgements.append(
            Acknowledgement(self._row.key.run_id, self._row.key.attempt, sequence, rejection)
        )
