"""Whatever happens to a run, in whatever order: it ends once, and mirrors its newest attempt."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.events import AttemptEvent, SessionSuperseded, apply_events
from fastflow_controlplane.agents.model import AgentFacts, Capacity
from fastflow_controlplane.runs.model import AttemptKey, RunView
from fastflow_controlplane.runs.states import LIVE, TERMINAL, Actor, RunState, allowed
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, attempts, runs
from fastflow_controlplane.store.queries.lost_attempts import lose_all
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs, note
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from tests.contract.databases import DATABASES, database
from tests.contract.rows import NOW, Journal, new_run

MAX_PLACEMENTS = 3
# Every statement is a trip to the server there, and what is decided is the same.
EXAMPLES = {"sqlite": 150, "postgresql": 20}
MOVES = [RunState.PREPARING, RunState.RUNNING, RunState.STOPPING, RunState.QUEUED]
ENDS = [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT]

step = st.one_of(
    st.tuples(st.just("assign"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("move"), st.sampled_from(MOVES)),
    st.tuples(st.just("end"), st.sampled_from(ENDS)),
    st.tuples(st.just("gone"), st.none()),
    st.tuples(st.just("seal"), st.none()),
    st.tuples(st.just("repeat"), st.integers(0, 10)),
    st.tuples(st.just("hello"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("old session"), st.sampled_from(ENDS)),
    st.tuples(st.just("lose"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("cancel"), st.none()),
    st.tuples(st.just("older attempt"), st.sampled_from(ENDS)),
)


@dataclass
class Life:
    """One run and two agents, over a connection whose writes are thrown away."""

    connection: Connection
    run_id: str = field(default_factory=new_id)
    journals: list[Journal] = field(default_factory=list)
    sent: list[AttemptEvent] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)

    def begin(self) -> None:
        runs.insert_run(self.connection, new_run(self.run_id), NOW)
        for name in ("a", "b"):
            self.hello(name)

    def view(self) -> RunView:
        return runs.read_run(self.connection, self.run_id)

    def hello(self, name: str) -> None:
        register(self.connection, _facts(name), [], Belonging(), "c", NOW)

    def assign(self, name: str) -> None:
        key = attempts.assign(self.connection, self.run_id, name, f"token {name}", {}, Epochs(0, 1), NOW)
        if key is not None:
            self.journals.append(Journal(key))
            self.owners.append(name)

    def move(self, state: RunState) -> None:
        if self.journals:
            self._report(self.journals[-1].moved(state))

    def end(self, state: RunState) -> None:
        if self.journals:
            self._report(self.journals[-1].ended(state, exit_code=0))

    def gone(self, _: None) -> None:
        if self.journals:
            self._report(self.journals[-1].gone())

    def older_attempt(self, state: RunState) -> None:
        if len(self.journals) > 1:
            self._report(self.journals[0].ended(state), owner=self.owners[0])

    def seal(self, _: None) -> None:
        if self.journals:
            key = self.journals[-1].key
            note(self.connection, key, {"log_sealed": True, "log_bytes": 1})
            attempts.settle(self.connection, key)

    def repeat(self, number: int) -> None:
        if number < len(self.sent):
            event = self.sent[number]
            self._apply(event, self.owners[event.key.attempt - 1], self._epoch(self.owners[event.key.attempt - 1]))

    def old_session(self, state: RunState) -> None:
        if self.journals and self._epoch(self.owners[-1]) > 1:
            event = Journal(self.journals[-1].key).ended(state)
            with pytest.raises(SessionSuperseded):
                self._apply(event, self.owners[-1], 1)

    def lose(self, name: str) -> None:
        lose_all(self.connection, name, "away", Epochs(0, 1), NOW)

    def cancel(self, _: None) -> None:
        runs.cancel(self.connection, self.run_id, NOW, 10_000_000)

    def _report(self, event: AttemptEvent, owner: str = "") -> None:
        owner = owner or self.owners[-1]
        self.sent.append(event)
        self._apply(event, owner, self._epoch(owner))

    def _apply(self, event: AttemptEvent, owner: str, epoch: int) -> None:
        apply_events(self.connection, _facts(owner), [event], Epochs(epoch, 1), MAX_PLACEMENTS, NOW)

    def _epoch(self, name: str) -> int:
        return agents.read_agents(self.connection, agent_id=name)[0].session_epoch


def _facts(name: str) -> AgentFacts:
    return AgentFacts(name, name, "instance", capacity=Capacity(4000, 2**33))


@pytest.fixture(scope="module", params=DATABASES)
def open_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with database(request.param, request, tmp_path_factory.mktemp("life")) as url:
        store = Store(url)
        store.open()
        yield store
        store._write_engine.dispose()


def check(before: RunView, after: RunView, key: AttemptKey | None) -> None:
    """What must hold across every single step."""
    if before.terminal:
        assert after.state is before.state
        assert (after.exit_code, after.reason, after.end_time) == (before.exit_code, before.reason, before.end_time)
    elif before.state is not after.state:
        assert any(allowed(actor, before.state, after.state) for actor in Actor)
    assert [attempt.number for attempt in after.attempts] == list(range(1, after.attempt + 1))
    assert sum(attempt.state in LIVE for attempt in after.attempts) <= 1
    for attempt in after.attempts[:-1]:
        assert attempt.state in TERMINAL
    for old, new in zip(before.attempts, after.attempts, strict=False):
        if old.state in TERMINAL:
            assert new.state is old.state
        assert new.released or not old.released
    if after.attempts and (after.state in LIVE or after.attempts[-1].state in LIVE):
        assert after.state is after.attempts[-1].state
    assert after.terminal == (after.end_time is not None)


def test_a_run_ends_once_and_mirrors_its_newest_attempt(open_store: Store) -> None:
    @settings(max_examples=EXAMPLES[open_store.url.get_backend_name()])
    @given(steps=st.lists(step, max_size=25))
    def it_does(steps: list[tuple[str, Any]]) -> None:
        with open_store._write_engine.connect() as connection:
            transaction = connection.begin()
            life = Life(connection)
            life.begin()
            life.assign("a")
            for name, argument in steps:
                before = life.view()
                getattr(life, name.replace(" ", "_"))(argument)
                check(before, life.view(), life.journals[-1].key)
            transaction.rollback()

    it_does()
