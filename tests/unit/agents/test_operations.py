"""Draining, resuming and removing agents."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.model import AgentFacts, AgentState, Capacity
from fastflow_controlplane.agents.operations import AgentOperations
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.wanted import Before
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, attempts, desired, runs
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs

from tests.contract.databases import DATABASES, database
from tests.contract.rows import new_run


class Stream:
    """A session that nobody serves."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.told = 0

    def supersede(self) -> None: ...

    def cut(self) -> None: ...

    def preheat_changed(self, before: Before) -> None: ...

    def desired_changed(self) -> None:
        self.told += 1


@dataclass
class World:
    store: Store
    clock: ManualClock
    registry: AgentRegistry
    operations: AgentOperations
    stream: Stream

    async def connect(self, belonging: Belonging | None = None) -> None:
        facts = AgentFacts("id of w", "w", new_id(), capacity=Capacity(4000, 2**33))
        row = await self.store.write(
            lambda connection: register(connection, facts, [], belonging or Belonging(), "c", self.clock.now())
        )
        self.stream = Stream(row.session_epoch)
        self.registry.attach(row, self.stream)

    def leave(self) -> None:
        self.registry.detach("id of w", self.stream)

    async def place(self) -> AttemptKey:
        run = new_run(new_id())

        def place(connection: Connection) -> AttemptKey | None:
            runs.insert_run(connection, run, 0)
            return attempts.assign(connection, run.id, "id of w", "token", {}, Epochs(0, 1), 0)

        key: AttemptKey | None = await self.store.write(place)
        assert key is not None
        return key

    async def desired(self, key: AttemptKey) -> tuple[str, str]:
        state = await self.store.read(lambda connection: desired.read_since(connection, "id of w", 0))
        (row,) = [row for row in state.rows if row.key == key]
        return row.action, row.stop_cause

    async def cancel(self, key: AttemptKey, grace: int) -> None:
        await self.store.write(lambda connection: runs.cancel(connection, key.run_id, 0, grace * 1_000_000))

    async def grace(self, key: AttemptKey) -> float | None:
        state = await self.store.read(lambda connection: desired.read_all(connection, "id of w", [key]))
        (row,) = [row for row in state.rows if row.key == key]
        return None if row.stop_grace_usec is None else row.stop_grace_usec / 1e6

    async def state(self, key: AttemptKey) -> str:
        return (await self.store.read(lambda connection: runs.read_run(connection, key.run_id))).state


def operations(store: Store, clock: ManualClock, registry: AgentRegistry) -> AgentOperations:
    changes = Changes()
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    return AgentOperations(store, clock, changes, scheduler, registry, leader_epoch=1, stop_grace=10.0)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    store = Store(database_url)
    store.open()
    await store.start()
    clock = ManualClock()
    registry = AgentRegistry(
        store, clock, ControlPlaneSettings(data_dir=tmp_path), Scheduler(clock, Changes(), 5.0, 300.0)
    )
    made = World(store, clock, registry, operations(store, clock, registry), Stream(0))
    await made.connect()
    yield made
    await store.close()


async def test_a_drained_agent_is_told_and_shown_and_takes_no_run_until_it_is_resumed(world: World) -> None:
    key = await world.place()
    view = await world.operations.drain("w")
    assert view.drain is not None
    assert (view.state, view.drain.attempts, view.drain.complete) == (AgentState.DRAINING, 1, False)
    assert world.stream.told == 1
    assert not await world.store.read(lambda connection: agents.takes_runs(connection, "id of w"))
    assert await world.desired(key) == ("RUN", "")
    view = await world.operations.resume("w")
    assert (view.state, view.drain) == (AgentState.ACTIVE, None)
    assert await world.store.read(lambda connection: agents.takes_runs(connection, "id of w"))


async def test_an_empty_agent_is_drained_at_once(world: World) -> None:
    view = await world.operations.drain("w")
    assert view.drain is not None
    assert view.drain.complete


async def test_an_agent_in_quarantine_is_not_called_empty_as_nobody_knows_what_runs_there(world: World) -> None:
    await world.connect(Belonging("c", revision=7))
    view = await world.operations.drain("w")
    assert view.state is AgentState.QUARANTINED
    assert view.drain is not None
    assert (view.drain.attempts, view.drain.complete) == (0, False)


async def test_runs_left_at_the_deadline_are_stopped_once(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", deadline=60.0)
    await world.operations.check()
    await world.clock.advance(59)
    await world.operations.check()
    assert await world.desired(key) == ("RUN", "")
    await world.clock.advance(2)
    await world.operations.check()
    assert await world.desired(key) == ("STOP", "DRAIN")


async def test_a_clock_that_jumps_moves_no_deadline(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", deadline=60.0)
    await world.operations.check()
    world.clock.jump(3600)
    await world.operations.check()
    assert await world.desired(key) == ("RUN", "")


async def test_another_drain_replaces_the_deadline_and_keeps_the_beginning(world: World) -> None:
    key = await world.place()
    first = (await world.operations.drain("w", deadline=60.0)).drain
    await world.clock.advance(30)
    second = (await world.operations.drain("w")).drain
    assert first is not None
    assert second is not None
    assert (second.start_time, second.deadline_time) == (first.start_time, None)
    await world.clock.advance(120)
    await world.operations.check()
    assert await world.desired(key) == ("RUN", "")


async def test_a_deadline_outlives_the_control_plane(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", deadline=60.0)
    await world.clock.advance(61)
    registry = AgentRegistry(
        world.store, world.clock, ControlPlaneSettings(), Scheduler(world.clock, Changes(), 5, 300)
    )
    await registry.restore()
    await operations(world.store, world.clock, registry).check()
    assert await world.desired(key) == ("STOP", "DRAIN")


async def test_a_resume_that_comes_while_a_deadline_is_acted_upon_keeps_the_runs(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", deadline=60.0)
    await world.clock.advance(61)
    # Both wait for the writer, the resume first.
    await asyncio.gather(world.operations.resume("w"), world.operations.check())
    assert await world.desired(key) == ("RUN", "")


async def test_runs_are_stopped_now_where_that_is_asked_for(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", stop=True)
    assert await world.desired(key) == ("STOP", "DRAIN")


async def test_a_drain_that_stops_waits_for_no_longer_grace_and_stays_no_cause_of_a_cancel(world: World) -> None:
    patient, hurried = await world.place(), await world.place()
    await world.cancel(patient, 86_400)
    await world.cancel(hurried, 5)
    told = world.stream.told
    await world.operations.drain("w", stop=True)
    assert [await world.grace(patient), await world.grace(hurried)] == [10.0, 5.0]
    assert await world.desired(patient) == ("STOP", "CANCEL")
    assert world.stream.told > told


async def test_a_deadline_waits_for_no_longer_grace(world: World) -> None:
    key = await world.place()
    await world.operations.drain("w", deadline=60.0)
    await world.operations.check()
    await world.cancel(key, 86_400)
    await world.clock.advance(61)
    await world.operations.check()
    assert await world.grace(key) == 10.0


async def test_a_repeated_request_has_one_effect(world: World) -> None:
    await world.operations.drain("w", request_id="once")
    await world.operations.resume("w")
    assert (await world.operations.drain("w", request_id="once")).drain is None
    with pytest.raises(AlreadyExists):
        await world.operations.drain("w", deadline=5.0, request_id="once")


async def test_what_makes_no_sense_is_refused_with_the_field(world: World) -> None:
    for wrong in ({"deadline": -1.0}, {"deadline": 1e12}, {"deadline": 1.0, "stop": True}):
        with pytest.raises(InvalidArgument) as caught:
            await world.operations.drain("w", **wrong)  # type: ignore[arg-type]
        assert [violation.field for violation in caught.value.violations] == ["deadline"]
    with pytest.raises(NotFound, match='did you mean "w"'):
        await world.operations.drain("ww")


async def test_a_request_id_that_no_database_keeps_whole_is_refused(world: World) -> None:
    with pytest.raises(InvalidArgument, match="at most 255") as caught:
        await world.operations.drain("w", request_id="x" * 256)
    assert [violation.field for violation in caught.value.violations] == ["request_id"]


async def test_an_agent_is_not_removed_while_it_is_connected(world: World) -> None:
    with pytest.raises(FailedPrecondition, match="is connected"):
        await world.operations.remove("w", force=True)


async def test_an_agent_that_connects_while_it_is_removed_stays(world: World) -> None:
    world.leave()
    # Both wait for the writer, the agent first; the registry hears of it only once it is stored.
    _, refusal = await asyncio.gather(world.connect(), world.operations.remove("w"), return_exceptions=True)
    assert isinstance(refusal, FailedPrecondition)
    assert "is connected" in refusal.message
    assert (await world.registry.get("w")).state is AgentState.ACTIVE


async def test_an_agent_is_not_removed_while_something_is_to_come_from_it(world: World) -> None:
    key = await world.place()
    world.leave()
    with pytest.raises(FailedPrecondition, match=key.run_id[-8:]):
        await world.operations.remove("w")
    assert await world.operations.remove("w", force=True, request_id="once") == [key.run_id]
    assert await world.state(key) == "LOST"
    assert await world.desired(key) == ("STOP", "SUPERSEDED")
    with pytest.raises(NotFound):
        await world.registry.get("w")
    assert (await world.registry.list()).agents == ()
    assert await world.operations.remove("w", force=True, request_id="once") == []


async def test_a_removed_agent_that_connects_again_is_a_member_as_before(world: World) -> None:
    await world.operations.drain("w")
    world.leave()
    assert await world.operations.remove("w") == []
    await world.connect()
    assert await world.registry.get("w")
    assert (await world.registry.get("w")).drain is None
