"""A session whose database fails, whose peer is silent, or who is told too much; no network between."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastflow.agent.v1 import attempts_pb2, gateway_pb2
from fastflow.ids import new_id
from fastflow.v1 import agents_pb2
from fastflow_controlplane.agents import session as session_module
from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs
from fastflow_controlplane.store.queries.cluster import Leadership
from fastflow_controlplane.store.queries.transitions import Epochs
from sqlalchemy import Connection

from tests.contract.rows import new_run

HELLO = gateway_pb2.Hello(
    protocol_min=1,
    protocol_max=1,
    agent_id="id of w",
    agent_name="w",
    capacity=agents_pb2.Capacity(cpu_milli_cores=4000, memory_bytes=2**33),
)


class BrokenStore(Store):
    """A real store whose disk is full as long as a test says so."""

    full = False

    async def write(self, operation: Any, committed: Any = None) -> Any:
        if self.full:
            raise Unavailable("the disk is full", reason="DISK_FULL")
        return await super().write(operation, committed)


class NoSecrets:
    """No secret is set."""

    async def for_run(self, pipeline: str) -> Sequence[Any]:
        return []

    async def values(self, versions: object, pipeline: str) -> Sequence[Any]:
        return []

    def open(self, sealed: bytes) -> bytes:
        return sealed


class Peer:
    """The agent's end of one stream."""

    def __init__(self, sessions: AgentSessions) -> None:
        self._requests: asyncio.Queue[gateway_pb2.ConnectRequest | None] = asyncio.Queue()
        self.answers: asyncio.Queue[gateway_pb2.ConnectResponse] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.served = asyncio.create_task(sessions.serve(self._stream(), self._take))

    async def _stream(self) -> AsyncIterator[gateway_pb2.ConnectRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _take(self, answer: gateway_pb2.ConnectResponse) -> None:
        await self.reads.wait()
        self.answers.put_nowait(answer)

    def say(self, request: gateway_pb2.ConnectRequest | None) -> None:
        self._requests.put_nowait(request)

    async def hears(self) -> gateway_pb2.ConnectResponse:
        return await asyncio.wait_for(self.answers.get(), 5)

    async def greets(self) -> None:
        """Says Hello with an empty inventory, and hears Welcome and the full set."""
        self.say(gateway_pb2.ConnectRequest(hello=HELLO))
        self.say(gateway_pb2.ConnectRequest(inventory=gateway_pb2.InventoryPage(last_page=True)))
        assert (await self.hears()).HasField("welcome")
        assert (await self.hears()).desired.last_page

    def reports(self, key: AttemptKey, states: Iterable[str], first: int = 1) -> None:
        wire_key = attempts_pb2.AttemptKey(run_id=key.run_id, attempt=key.attempt, claim_token=key.claim_token)
        events = [
            attempts_pb2.AttemptEvent(
                key=wire_key, sequence=number, state_changed=attempts_pb2.StateChanged(state=f"RUN_STATE_{state}")
            )
            for number, state in enumerate(states, start=first)
        ]
        self.say(gateway_pb2.ConnectRequest(events=attempts_pb2.AttemptEvents(events=events)))


@dataclass
class World:
    store: BrokenStore
    clock: ManualClock
    registry: AgentRegistry
    sessions: AgentSessions
    parts: SessionParts

    def dial(self) -> Peer:
        return Peer(self.sessions)

    async def live_attempt(self) -> AttemptKey:
        run = new_run(new_id())

        def place(connection: Connection) -> AttemptKey | None:
            runs.insert_run(connection, run, 0)
            return attempts.assign(connection, run.id, "id of w", "token", {}, Epochs(0, 1), 0)

        key: AttemptKey | None = await self.store.write(place)
        assert key is not None
        return key

    async def state(self, key: AttemptKey) -> str:
        return (await self.store.read(lambda connection: runs.read_run(connection, key.run_id))).state


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = BrokenStore(f"sqlite:///{tmp_path}/fastflow.db")
    store.open()
    await store.start()
    clock, changes = ManualClock(), Changes()
    settings = ControlPlaneSettings(data_dir=tmp_path)
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    registry = AgentRegistry(store, clock, settings, scheduler)
    logs = FileLogStore(tmp_path / "logs")
    assignments = Assignments(store, clock, NoSecrets(), logs, changes, scheduler, registry, 1, 10.0)
    parts = SessionParts(
        store, clock, settings, Leadership(new_id(), 1), registry, assignments, scheduler, changes, "test"
    )
    yield World(store, clock, registry, AgentSessions(parts), parts)
    await logs.aclose()
    await store.close()


async def test_events_are_acknowledged_only_once_they_are_stored(world: World) -> None:
    store = world.store
    peer = world.dial()
    await peer.greets()
    key = await world.live_attempt()
    store.full = True
    peer.reports(key, ["PREPARING"])
    peer.reports(key, ["RUNNING"], first=2)
    await world.clock.advance(30)
    assert peer.answers.empty()
    assert await world.state(key) == "ASSIGNED"
    assert not peer.served.done()

    store.full = False
    await world.clock.advance(1.5)
    acks = (await peer.hears()).events_ack.acks
    assert [(ack.sequence, ack.rejection) for ack in acks] == [(2, 0)]
    assert await world.state(key) == "RUNNING"
    peer.say(None)
    await peer.served


async def test_a_database_that_stalls_does_not_make_the_agent_silent(world: World) -> None:
    store = world.store
    peer = world.dial()
    await peer.greets()
    store.full = True
    for number in range(20):
        condition = agents_pb2.Condition(type="Disk", message=str(number))
        peer.say(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(conditions=[condition])))
        await world.clock.advance(5)
        world.registry.check()
    assert (await world.registry.get("w")).state == "ACTIVE"
    assert not peer.served.done()
    peer.say(None)
    await peer.served


async def test_more_events_than_can_wait_end_the_stream_so_that_they_come_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "QUEUED_EVENTS", 3)
    store = world.store
    peer = world.dial()
    await peer.greets()
    key = await world.live_attempt()
    store.full = True
    peer.reports(key, ["PREPARING"] * 4)
    with pytest.raises(Unavailable, match="too many events"):
        await peer.served
    assert world.registry.connected() == frozenset()


async def test_a_stream_without_hello_is_ended(world: World) -> None:
    peer = world.dial()
    await world.clock.advance(11)
    assert (await peer.hears()).rejection.message.startswith("the stream brought no Hello")
    await peer.served


async def test_a_silent_agents_stream_is_cut_though_its_end_reads_nothing(world: World) -> None:
    peer = world.dial()
    await peer.greets()
    peer.reads.clear()
    for _ in range(21):
        await world.clock.advance(1)
        world.registry.check()
    await peer.served
    assert world.registry.connected() == frozenset()


async def test_a_superseded_stream_ends_though_its_end_reads_nothing(world: World) -> None:
    old = world.dial()
    await old.greets()
    old.reads.clear()
    new = world.dial()
    await new.greets()
    await world.clock.advance(6)
    await old.served
    assert world.registry.connected() == {"id of w"}
    new.say(None)
    await new.served


async def test_an_agent_that_can_not_be_registered_is_told_to_come_again(world: World) -> None:
    store = world.store
    store.full = True
    peer = world.dial()
    peer.say(gateway_pb2.ConnectRequest(hello=HELLO))
    with pytest.raises(Unavailable):
        await peer.served
    assert world.registry.connected() == frozenset()


async def test_messages_of_a_later_protocol_are_passed_over(world: World) -> None:
    peer = world.dial()
    await peer.greets()
    peer.say(gateway_pb2.ConnectRequest())
    key = await world.live_attempt()
    peer.reports(key, ["RUNNING"])
    assert (await peer.hears()).events_ack.acks[0].sequence == 1
    assert await world.state(key) == "RUNNING"
    peer.say(None)
    await peer.served


async def test_many_events_are_written_in_portions_that_let_others_in(world: World) -> None:
    peer = world.dial()
    await peer.greets()
    key = await world.live_attempt()
    peer.reports(key, ["PREPARING"] * 250)
    acks = [ack.sequence for _ in range(3) for ack in (await peer.hears()).events_ack.acks]
    assert acks == [100, 200, 250]
    peer.say(None)
    await peer.served


async def test_an_agent_that_hangs_up_while_it_is_registered_is_offline_and_its_epoch_known(world: World) -> None:
    peer = world.dial()
    peer.say(gateway_pb2.ConnectRequest(hello=HELLO))
    await world.store.writer._arrived.wait()
    peer.served.cancel()
    await asyncio.gather(peer.served, return_exceptions=True)
    await world.store.write(lambda connection: None)
    view = await world.registry.get("w")
    assert (view.state, view.session_epoch) == ("SUSPECT", 1)
    assert world.registry.connected() == frozenset()
