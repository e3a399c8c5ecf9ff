"""Agents, reaper, scheduler, callers and a crashing control plane in any order: what must never happen does not.

`MODEL_EXAMPLES` and `MODEL_STEPS` in the environment go deeper than the few seconds of `make test`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from fastflow_controlplane.runs.states import LIVE, TERMINAL, Reason, RunState
from fastflow_controlplane.store.connections import make_engine, parse_url
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import agents, attempt_events, attempts, runs
from fastflow_controlplane.store.queries.agents import read_holds
from fastflow_controlplane.store.queries.attempts import read_held
from fastflow_controlplane.store.queries.runs import cancel, fail_waiting
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Engine, Row, select

from tests.contract.rows import NOW, Journal
from tests.contract.state_model import GRACE_USEC, Host, Local, World

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "25"))
STEPS = int(os.environ.get("MODEL_STEPS", "40"))

pytestmark = pytest.mark.timeout(60 + EXAMPLES * STEPS / 10)

ORDER = [RunState.QUEUED, *LIVE]
"""How far a run has come that has not ended."""
ENDS = [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT]

pick = st.integers(0, 1_000)
commits = st.sampled_from([True, True, True, True, False])
"""Whether an operation is committed before the control plane dies."""


def of(choices: Sequence[T], picked: int) -> T:
    """One of the choices; the newest are picked more often, since little is left to happen to the others."""
    return choices[-1 - picked % min(len(choices), 3 if picked % 2 else len(choices))]


_folder = TemporaryDirectory(prefix="fastflow-model-")


@cache
def engine() -> Engine:
    """To a database that no example leaves anything in."""
    url = f"sqlite:///{_folder.name}/fastflow.db"
    store = Store(url)
    store.open()
    asyncio.run(store.close())
    return make_engine(parse_url(url), "model", writing=True, size=1)


Rows = dict[tuple[str, int], Row[Any]]


class States(RuleBasedStateMachine):
    """Everybody who moves a run, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = engine().connect()
        self.transaction = self.connection.begin()
        self.world = World(self.connection)
        self.runs: dict[str, Row[Any]] = {}
        self.attempts: Rows = {}
        self.revisions: dict[str, int] = {}

    def teardown(self) -> None:
        try:
            self.everything_comes_to_its_end()
        finally:
            self.transaction.rollback()
            self.connection.close()

    # Callers

    @initialize(number=st.integers(0, 5), host=st.integers(0, 1))
    def begin(self, number: int, host: int) -> None:
        """Something to work on, else most steps would find nothing."""
        self.world.request(f"request {number}")
        self.world.place(self.world.runs[0], self.world.hosts[host], self.world.leader)
        self.world.delta(self.world.hosts[host])

    @rule(number=st.integers(0, 5), commits=commits)
    def request(self, number: int, commits: bool) -> None:
        self.world.request(f"request {number}", commits=commits)

    @precondition(lambda self: self.world.runs)
    @rule(picked=pick)
    def rerun(self, picked: int) -> None:
        self.world.rerun(of(self.world.runs, picked))

    @precondition(lambda self: self.world.runs)
    @rule(picked=pick, commits=commits)
    def cancel(self, picked: int, commits: bool) -> None:
        run_id = of(self.world.runs, picked)
        self.world.write(lambda connection: cancel(connection, run_id, NOW, GRACE_USEC), commits=commits)

    # The control plane by itself

    @precondition(lambda self: self.world.runs)
    @rule(picked=pick, host=st.integers(0, 1), commits=commits, stale=st.integers(0, 9))
    def place(self, picked: int, host: int, commits: bool, stale: int) -> None:
        leader = self.world.leader - (stale == 0)
        self.world.place(of(self.world.runs, picked), self.world.hosts[host], leader, commits=commits)

    @precondition(lambda self: self.world.runs)
    @rule(picked=pick)
    def expire(self, picked: int) -> None:
        run_id = of(self.world.runs, picked)
        reason = Reason.QUEUE_DEADLINE
        failed = self.world.write(lambda connection: fail_waiting(connection, run_id, reason, "waited", NOW))
        assert failed == (self.runs[run_id].state == RunState.QUEUED)

    @precondition(lambda self: set(self.world.keys) - self.world.told)
    @rule(picked=pick)
    def give_back_untold(self, picked: int) -> None:
        untold = [key for key in self.world.keys if key not in self.world.told]
        self.world.give_back_untold(of(untold, picked))

    @rule(host=st.integers(0, 1), commits=commits)
    def lose(self, host: int, commits: bool) -> None:
        self.world.lose(self.world.hosts[host], self.world.leader, commits=commits)

    @rule(host=st.integers(0, 1))
    def lose_by_a_former_control_plane(self, host: int) -> None:
        self.world.lose(self.world.hosts[host], self.world.leader - 1)
        for name, row in self._read_attempts().items():
            if row.leader_epoch == self.world.leader:
                assert row == self.attempts[name]

    @rule()
    def crash(self) -> None:
        self.world.crash()

    # Agents

    @rule(host=st.integers(0, 1), late=st.booleans())
    def hello(self, host: int, late: bool) -> None:
        """A new stream, perhaps with the last words of the one before still on their way."""
        self.world.hello(self.world.hosts[host])
        said = [message for message in self.world.wire if message.host is self.world.hosts[host]]
        if late and said:
            self.world.deliver(said[-1])

    @rule(host=st.integers(0, 1))
    def delta(self, host: int) -> None:
        if self.world.hosts[host].connected:
            self.world.delta(self.world.hosts[host])

    @rule(host=st.integers(0, 1), chance=st.integers(0, 4))
    def wipe(self, host: int, chance: int) -> None:
        if not chance:
            self.world.wipe(self.world.hosts[host])

    @precondition(lambda self: self._here())
    @rule(
        picked=pick, state=st.sampled_from([RunState.PREPARING, RunState.RUNNING, RunState.RUNNING, RunState.STOPPING])
    )
    def move(self, picked: int, state: RunState) -> None:
        _, local = of(self._here(), picked)
        further = not local.ended and ORDER.index(state) > ORDER.index(local.state)
        if further and (state is not RunState.STOPPING or local.stop):
            local.move(state)

    @precondition(lambda self: self._here())
    @rule(picked=pick, steps=st.integers(1, 4), heard=st.booleans(), skipped=st.sampled_from([0, 0, 0, 1]))
    def go_on(self, picked: int, steps: int, heard: bool, skipped: int) -> None:
        """All goes well for some steps, so that more is seen than beginnings; the control plane may hear it later."""
        host, local = of(self._here(), picked)
        for _ in range(steps):
            if local.state in (RunState.ASSIGNED, RunState.PREPARING):
                local.move(ORDER[ORDER.index(local.state) + 1])
            elif not local.ended:
                local.end(RunState.CANCELLED if local.stop else RunState.SUCCEEDED)
            else:
                self.world.goes(host, local)
        if heard and host.connected:
            self.world.send(host, local, skipped, answered=True)
            self.world.delta(host)

    @precondition(lambda self: self._here())
    @rule(picked=pick, state=st.sampled_from(ENDS))
    def end(self, picked: int, state: RunState) -> None:
        _, local = of(self._here(), picked)
        if not local.ended:
            local.end(state)

    @precondition(lambda self: self._here())
    @rule(picked=pick)
    def could_not_start(self, picked: int) -> None:
        _, local = of(self._here(), picked)
        if local.state in (RunState.ASSIGNED, RunState.PREPARING):
            local.move(RunState.QUEUED)

    @precondition(lambda self: self._here())
    @rule(picked=pick)
    def remove_container(self, picked: int) -> None:
        self.world.goes(*of(self._here(), picked))

    @rule(host=st.integers(0, 1))
    def remove_strays(self, host: int) -> None:
        self.world.remove_strays(self.world.hosts[host])

    @precondition(lambda self: self._here())
    @rule(picked=pick)
    def seal(self, picked: int) -> None:
        _, local = of(self._here(), picked)
        if local.ended and not local.sealed:
            self.world.seal(local)

    @precondition(lambda self: self._here())
    @rule(picked=pick, skipped=st.sampled_from([0, 0, 1]), answered=st.booleans(), commits=commits)
    def send(self, picked: int, skipped: int, answered: bool, commits: bool) -> None:
        host, local = of(self._here(), picked)
        if host.connected:
            self.world.send(host, local, skipped, answered=answered, commits=commits)

    @precondition(lambda self: self.world.wire)
    @rule(picked=pick)
    def late_message(self, picked: int) -> None:
        self.world.deliver(of(self.world.wire, picked))

    @precondition(lambda self: self.world.keys)
    @rule(picked=pick, host=st.integers(0, 1), state=st.sampled_from(ENDS))
    def forged_message(self, picked: int, host: int, state: RunState) -> None:
        key = replace(of(self.world.keys, picked), claim_token="another's")
        self.world.forge(Journal(key).ended(state), self.world.hosts[host])

    # What holds after every step

    @invariant()
    def all_is_well(self) -> None:
        self._check_rows()
        self._check_history()
        self._check_capacity()

    def _check_rows(self) -> None:
        """Nothing impossible happened since the last look."""
        now_runs = {row.id: row for row in self.connection.execute(select(runs))}
        now_attempts = self._read_attempts()
        for run_id, row in now_runs.items():
            own = [attempt for (of_run, _), attempt in now_attempts.items() if of_run == run_id]
            check_run(row, own)
            if run_id in self.runs:
                check_move(self.runs[run_id], row)
        for name, row in now_attempts.items():
            check_attempt(self.attempts.get(name), row)
        self._check_revisions(now_attempts)
        self.runs, self.attempts = now_runs, now_attempts

    def _check_history(self) -> None:
        """An attempt ends once, in an unbroken history."""
        ends: Counter[tuple[str, int]] = Counter()
        last: Counter[tuple[str, int]] = Counter()
        history = select(attempt_events).order_by(attempt_events.c.sequence)
        for event in self.connection.execute(history):
            name = event.run_id, event.attempt
            ends[name] += event.kind == "ended" and not event.rejection
            last[name] += 1
            assert event.sequence == last[name]
        assert max(ends.values(), default=0) <= 1
        for name, row in self.attempts.items():
            assert row.known_seq == last[name]

    def _check_capacity(self) -> None:
        """It is held by what is not gone, whether its host knows of it or not."""
        held = read_held(self.connection)
        assert {(hold.run_id, hold.attempt) for hold in held} == self.world.held
        assert {(key.run_id, key.attempt) for host in self.world.hosts for key in host.strays} <= self.world.held
        holds = read_holds(self.connection, [host.name for host in self.world.hosts])
        assert sum(hold.reserved.cpu_milli_cores for hold in holds.values()) == 1000 * len(self.world.held)

    def everything_comes_to_its_end(self) -> None:
        """Once nothing fails any more, nobody waits for anything and nothing is held."""
        for run_id in self.world.runs:
            self.world.write(lambda connection, run_id=run_id: cancel(connection, run_id, NOW, GRACE_USEC))
        self.world.heal()
        for run_id in self.world.runs:
            self.world.write(lambda connection, run_id=run_id: cancel(connection, run_id, NOW, GRACE_USEC))
        self.all_is_well()
        assert {row.state for row in self.runs.values()} <= TERMINAL
        assert {row.desired for row in self.attempts.values()} <= {"FORGET"}
        assert not self.world.held
        assert not any(host.attempts for host in self.world.hosts)

    def _here(self) -> list[tuple[Host, Local]]:
        return [(host, local) for host in self.world.hosts for local in host.attempts.values()]

    def _read_attempts(self) -> Rows:
        rows = self.connection.execute(select(attempts).order_by(attempts.c.run_id, attempts.c.number))
        return {(row.run_id, row.number): row for row in rows}

    def _check_revisions(self, now: Rows) -> None:
        for row in self.connection.execute(select(agents.c.agent_id, agents.c.revision)):
            before = self.revisions.get(row.agent_id, 0)
            assert row.revision >= before
            self.revisions[row.agent_id] = row.revision
            own = [attempt for attempt in now.values() if attempt.agent_id == row.agent_id]
            told = [attempt.revision for attempt in own]
            assert max(told, default=0) <= row.revision
            assert len(set(told)) == len(told)
            for attempt in own:
                old = self.attempts.get((attempt.run_id, attempt.number))
                if old is None or old.desired != attempt.desired:
                    assert attempt.revision > before


def check_run(run: Row[Any], own: list[Row[Any]]) -> None:
    """A run by itself: it has all its attempts, at most one of them lives, and it mirrors the newest."""
    assert [attempt.number for attempt in own] == list(range(1, run.attempt + 1))
    live = [attempt for attempt in own if attempt.state in LIVE]
    assert len(live) <= 1
    assert (run.end_time is not None) == (run.state in TERMINAL)
    if live or run.state in LIVE:
        assert own[-1].state == run.state


def check_move(old: Row[Any], new: Row[Any]) -> None:
    """A terminal run stays as it is; a live one goes on, or back to the queue; an attempt more is one more."""
    assert new.version >= old.version
    assert new.attempt - old.attempt in (0, 1)
    if old.state in TERMINAL:
        assert (new.state, new.reason, new.exit_code, new.end_time) == (
            old.state,
            old.reason,
            old.exit_code,
            old.end_time,
        )
    elif new.attempt > old.attempt:
        assert (old.state, new.state) == (RunState.QUEUED, RunState.ASSIGNED)
    elif new.state not in TERMINAL and new.state != RunState.QUEUED:
        assert ORDER.index(new.state) >= ORDER.index(old.state)


def check_attempt(old: Row[Any] | None, new: Row[Any]) -> None:
    """An attempt never goes back, and is forgotten only when all of it is known to be over."""
    if new.desired == "FORGET":
        assert new.state in TERMINAL
        assert new.released
        assert new.log_sealed
    if old is None:
        return
    assert (new.agent_id, new.claim_token) == (old.agent_id, old.claim_token)
    for name in ("known_seq", "session_epoch", "leader_epoch", "revision", "released", "log_sealed"):
        assert getattr(new, name) >= getattr(old, name), name
    wishes = ["RUN", "STOP", "FORGET"]
    assert wishes.index(new.desired) >= wishes.index(old.desired)
    if old.state in TERMINAL:
        assert (new.state, new.reason, new.end_time) == (old.state, old.reason, old.end_time)
    elif new.state in LIVE:
        assert ORDER.index(new.state) >= ORDER.index(old.state)


TestStates = States.TestCase
TestStates.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
