"""What must hold of the rows after every commit. Reads them with SQL of its own and asks no code of the product."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, Row, create_engine, text
from sqlalchemy.pool import StaticPool

Number = tuple[str, int]
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST")
LIVE = ("ASSIGNED", "PREPARING", "RUNNING", "STOPPING")
ORDER = ("QUEUED", *LIVE)
"""How far a run has come that has not ended."""
WISHES = ("RUN", "STOP", "FORGET")
VERDICT = ("state", "reason", "message", "exit_code", "end_time")


@dataclass(frozen=True)
class Event:
    """One row of an attempt's history."""

    sequence: int
    kind: str
    state: str
    exit_code: int | None
    rejection: str
    session_epoch: int

    @property
    def decides(self) -> bool:
        """Whether it ended the attempt."""
        return not self.rejection and (self.kind == "ended" or (self.kind, self.state) == ("state_changed", "QUEUED"))


@dataclass(frozen=True)
class Rows:
    """All rows that matter, at one moment."""

    runs: Mapping[str, Row[Any]] = field(default_factory=dict)
    attempts: Mapping[Number, Row[Any]] = field(default_factory=dict)
    agents: Mapping[str, Row[Any]] = field(default_factory=dict)
    events: Mapping[Number, list[Event]] = field(default_factory=dict)

    def of_run(self, run_id: str) -> list[Row[Any]]:
        """A run's attempts in order."""
        return [attempt for number, attempt in self.attempts.items() if number[0] == run_id]

    def held(self) -> dict[str, tuple[int, int, int]]:
        """Milli-cores, bytes and slots that are taken on each agent: until a container is gone, whatever its end."""
        sums: dict[str, tuple[int, int, int]] = dict.fromkeys(self.agents, (0, 0, 0))
        for attempt in self.attempts.values():
            if not attempt.released and attempt.desired != "FORGET":
                cpu, memory, slots = sums[attempt.agent_id]
                sums[attempt.agent_id] = cpu + attempt.cpu_milli_cores, memory + attempt.memory_bytes, slots + 1
        return sums


def open_rows(url: str) -> Engine:
    """A connection to look through."""
    driver = url.replace("postgresql://", "postgresql+psycopg://")
    return create_engine(driver, poolclass=StaticPool, isolation_level="AUTOCOMMIT")


def read_rows(engine: Engine) -> Rows:
    """Looks."""
    with engine.connect() as connection:
        runs = connection.execute(text("SELECT * FROM runs ORDER BY create_time, id")).all()
        attempts = connection.execute(text("SELECT * FROM attempts ORDER BY run_id, number")).all()
        agents = connection.execute(text("SELECT * FROM agents")).all()
        history = connection.execute(text("SELECT * FROM attempt_events ORDER BY run_id, attempt, sequence")).all()
    events: defaultdict[Number, list[Event]] = defaultdict(list)
    for row in history:
        fact = json.loads(row.fact) if isinstance(row.fact, str) else row.fact
        event = Event(
            row.sequence, row.kind, fact.get("state", ""), fact.get("exit_code"), row.rejection, row.session_epoch
        )
        events[row.run_id, row.attempt].append(event)
    return Rows(
        {row.id: row for row in runs},
        {(row.run_id, row.number): row for row in attempts},
        {row.agent_id: row for row in agents},
        events,
    )


def check(old: Rows, new: Rows) -> None:
    """Nothing impossible happened between two looks."""
    assert old.runs.keys() <= new.runs.keys()
    assert old.attempts.keys() <= new.attempts.keys()
    for run_id, run in new.runs.items():
        own = new.of_run(run_id)
        _check_run(run, own)
        if run_id in old.runs:
            _check_move_of_run(old.runs[run_id], run, own, new.events)
    for number, attempt in new.attempts.items():
        events = new.events.get(number, [])
        _check_attempt(attempt, events)
        before = old.attempts.get(number)
        if before is None:
            _check_placed(attempt, old, new)
        else:
            _check_move_of_attempt(before, attempt)
        _check_history(attempt, old.events.get(number, []), events, old.agents)
        _check_late(before, events[len(old.events.get(number, [])) :])
    _check_capacity(new)
    _check_agents(old, new)


def _check_run(run: Row[Any], own: list[Row[Any]]) -> None:
    """A run by itself: it has all its attempts, at most one of them lives, and it mirrors the newest."""
    assert [attempt.number for attempt in own] == list(range(1, run.attempt + 1))
    live = [attempt for attempt in own if attempt.state in LIVE]
    assert len(live) <= 1, "two attempts of a run live"
    assert (run.end_time is not None) == (run.state in TERMINAL)
    if live or run.state in LIVE:
        assert own[-1].state == run.state
        assert run.cancel_time is None or own[-1].desired == "STOP", "a run that was cancelled goes on"
    lost = [attempt for attempt in own if attempt.state == "LOST"]
    ended = run.state in TERMINAL
    # Each attempt that was lost before the last one was followed by a retry, as its pipeline asked.
    assert len(lost) <= run.retry_attempts + ended
    if run.state == "LOST":
        assert own[-1].state == "LOST"


def _check_move_of_run(old: Row[Any], new: Row[Any], own: list[Row[Any]], events: Mapping[Number, list[Event]]) -> None:
    """A run that ended stays as it is; another goes on, or back to the queue; an attempt more is one more."""
    assert new.version >= old.version
    assert new.attempt - old.attempt in (0, 1)
    assert old.cancel_time is None or new.cancel_time is not None
    lost_since = any(attempt.state == "LOST" for attempt in own[max(old.attempt - 1, 0) :])
    # Its place in the queue is its own until it is lost: then it begins to wait anew.
    assert new.queue_time == old.queue_time or (lost_since and new.queue_time > old.queue_time)
    if old.state in TERMINAL:
        assert [getattr(new, name) for name in VERDICT] == [getattr(old, name) for name in VERDICT]
    elif new.attempt > old.attempt:
        assert old.state == "QUEUED", "an attempt was made of a run that did not wait"
        assert old.cancel_time is None
    elif new.state not in TERMINAL and new.state != "QUEUED":
        assert ORDER.index(new.state) >= ORDER.index(old.state)
    elif new.state == "QUEUED" and old.state in LIVE:
        # Back to the queue: it did not begin, or it is retried.
        assert own[-1].start_time is None or own[-1].state == "LOST", "a run that began waits again"
        assert new.cancel_time is None, "a run that was cancelled waits again"
    if old.state in LIVE and new.state in TERMINAL:
        last = own[-1]
        kinds = {event.kind for event in events.get((last.run_id, last.number), ()) if event.decides}
        if last.state == "LOST" or (kinds == {"ended"} and last.reason != "AGENT_DRAINED"):
            assert [getattr(new, name) for name in VERDICT] == [getattr(last, name) for name in VERDICT]


def _check_attempt(attempt: Row[Any], events: list[Event]) -> None:
    """An attempt is what its history says, and is forgotten only when all of it is known to be over."""
    deciding = [event for event in events if event.decides]
    assert len(deciding) <= 1, "an attempt ended twice"
    began = any(not event.rejection and event.state == "RUNNING" for event in events)
    assert (attempt.start_time is not None) == began
    if attempt.state in LIVE:
        assert not deciding
        assert not attempt.released, "capacity of a program that may live is free"
        assert attempt.desired != "FORGET"
    elif deciding and deciding[0].kind == "ended":
        assert (attempt.state, attempt.exit_code) == (deciding[0].state, deciding[0].exit_code) or (
            # An agent of protocol 1 takes a drain for a cancel.
            (attempt.state, attempt.reason, attempt.stop_cause) == ("CANCELLED", "AGENT_DRAINED", "DRAIN")
        )
    elif deciding:
        assert not began, "an attempt that began was given back"
        assert attempt.state == ("CANCELLED" if attempt.reason == "AGENT_DRAINED" else "FAILED")
    else:
        assert (attempt.state, attempt.reason) in (("LOST", "AGENT_LOST"), ("LOST", "ABANDONED"), ("FAILED", "SECRET"))
    if attempt.desired == "FORGET":
        assert attempt.state in TERMINAL, "an attempt is forgotten that has not ended"
        assert attempt.released
        assert attempt.log_sealed


def _check_move_of_attempt(old: Row[Any], new: Row[Any]) -> None:
    """An attempt never goes back."""
    assert (new.agent_id, new.claim_token) == (old.agent_id, old.claim_token)
    for name in ("known_seq", "session_epoch", "leader_epoch", "revision", "released", "log_sealed"):
        assert getattr(new, name) >= getattr(old, name), name
    assert WISHES.index(new.desired) >= WISHES.index(old.desired)
    if new.desired != old.desired:
        assert new.revision > old.revision
    if old.state in TERMINAL:
        assert [getattr(new, name) for name in VERDICT] == [getattr(old, name) for name in VERDICT]
    elif new.state in LIVE:
        assert ORDER.index(new.state) >= ORDER.index(old.state)


def _check_placed(attempt: Row[Any], old: Rows, new: Rows) -> None:
    """A run goes to an agent that takes runs, and an attempt before it is over."""
    before, after = old.agents.get(attempt.agent_id), new.agents[attempt.agent_id]
    if before is not None:
        assert not (before.draining and after.draining), "an agent that is drained gets a run"
        assert before.remove_time is None or after.remove_time is None, "an agent that was removed gets a run"
    assert attempt.leader_epoch == max(attempt.leader_epoch for attempt in new.attempts.values())


def _check_history(attempt: Row[Any], old: list[Event], new: list[Event], agents: Mapping[str, Row[Any]]) -> None:
    """History is whole and only grows, and no session adds to it once a newer one of its agent began."""
    assert new[: len(old)] == old
    assert [event.sequence for event in new] == list(range(1, len(new) + 1))
    assert attempt.known_seq == len(new)
    for event in new[len(old) :]:
        assert event.session_epoch >= agents[attempt.agent_id].session_epoch, "a former session wrote"


def _check_late(before: Row[Any] | None, told: list[Event]) -> None:
    """What is told of an attempt that had ended is kept as that."""
    if before is not None and before.state in TERMINAL:
        late = [event for event in told if event.kind in ("ended", "state_changed")]
        assert {event.rejection for event in late} <= {"ALREADY_TERMINAL", "STALE_ATTEMPT"}


def _check_capacity(rows: Rows) -> None:
    """Nothing is given twice."""
    for agent_id, (cpu, memory, _) in rows.held().items():
        assert cpu <= rows.agents[agent_id].cpu_milli_cores
        assert memory <= rows.agents[agent_id].memory_bytes


def _check_agents(old: Rows, new: Rows) -> None:
    """Revisions tell every change of what an agent shall do."""
    for agent_id, agent in new.agents.items():
        before = old.agents.get(agent_id)
        own = [attempt for attempt in new.attempts.values() if attempt.agent_id == agent_id]
        told = [attempt.revision for attempt in own]
        assert max(told, default=0) <= agent.revision
        assert len(set(told)) == len(told)
        if before is not None:
            assert agent.revision >= before.revision
            assert agent.session_epoch >= before.session_epoch
            for attempt in own:
                known = old.attempts.get((attempt.run_id, attempt.number))
                if known is None or known.desired != attempt.desired:
                    assert attempt.revision > before.revision
