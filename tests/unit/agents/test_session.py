"""A session whose database fails, whose peer is silent, or who is told too much; no network between."""

import asyncio
from pathlib import Path

import pytest
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.ids import new_id
from fastflow.v1 import agents_pb2, runs_pb2
from fastflow_controlplane.agents import session as session_module
from fastflow_controlplane.agents.acceptance import Acceptance
from fastflow_controlplane.agents.model import UnknownAttempt
from fastflow_controlplane.agents.unreported import STRAY_STOP_SECONDS
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.store.queries import runs
from fastflow_controlplane.store.queries.lost_attempts import lose_all
from fastflow_controlplane.store.queries.transitions import Epochs

from tests.unit.agents.streams import HELLO, World


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


async def test_a_stop_that_can_not_be_delivered_holds_up_nothing_and_is_delivered_later(
    world: World, tmp_path: Path
) -> None:
    peer = world.dial()
    await peer.greets()
    key = await world.live_attempt()
    peer.reports(key, ["RUNNING"])
    assert (await peer.hears()).events_ack.acks
    in_the_way = tmp_path / "logs"
    in_the_way.touch()
    await world.store.write(lambda connection: runs.cancel(connection, key.run_id, 0, 0))
    later = await world.live_attempt()
    world.registry.desired_changed("id of w")
    page = (await peer.hears()).desired
    assert [attempt.key.run_id for attempt in page.attempts] == [later.run_id]
    in_the_way.unlink()
    await world.clock.advance(6)
    missing = (await peer.hears()).desired
    (stopped,) = missing.attempts
    assert (stopped.key.run_id, stopped.action) == (key.run_id, desired_pb2.DESIRED_ACTION_STOP)
    assert (missing.previous_revision, missing.revision) == (page.revision, page.revision)
    peer.say(None)
    await peer.served


async def test_what_an_agent_did_not_deliver_is_a_recorded_loss_also_where_the_first_try_to_say_so_failed(
    world: World,
) -> None:
    peer = world.dial()
    await peer.greets()
    key = await world.live_attempt()
    peer.reports(key, ["RUNNING"])
    assert (await peer.hears()).events_ack.acks
    peer.say(None)
    await peer.served
    async with world.logs.open(LogKey(key.run_id, key.attempt)) as log:
        await log.append(0, [b"delivered"])
    await world.store.write(lambda connection: lose_all(connection, "id of w", "away", Epochs(0, 1), 0))

    nothing: frozenset[AttemptKey] = frozenset()
    world.store.full = True
    with pytest.raises(Unavailable):
        await world.parts.assignments.all("id of w", nothing, 1)
    world.store.full = False
    for _ in range(2):
        await world.parts.assignments.all("id of w", nothing, 1)
    (attempt,) = (await world.store.read(lambda connection: runs.read_run(connection, key.run_id))).attempts
    assert (attempt.log_sealed, attempt.log_bytes) == (True, 9)
    assert [(loss.kind, loss.offset) for loss in attempt.log_losses] == [("DISK", 9)]


async def test_an_agent_of_the_first_protocol_is_told_at_once_to_forget_what_is_taken_for_gone(world: World) -> None:
    first = world.dial()
    await first.greets()
    key = await world.live_attempt()
    first.say(None)
    await first.served
    await world.store.write(lambda connection: lose_all(connection, "id of w", "away", Epochs(0, 1), 0))

    again = world.dial()
    await again.greets()
    await world.clock.advance(world.parts.settings.orphan_grace + STRAY_STOP_SECONDS)
    assert again.answers.empty()
    await world.unreported.check()
    (told,) = (await again.hears()).desired.attempts
    assert (told.key.run_id, told.action) == (key.run_id, desired_pb2.DESIRED_ACTION_FORGET)
    again.say(None)
    await again.served


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


@pytest.mark.parametrize(("protocol", "losses"), [(1, 1), (2, 0)])
async def test_an_attempt_that_was_lost_before_its_agent_had_it_lost_no_output(
    world: World, protocol: int, losses: int
) -> None:
    await world.dial().greets()
    key = await world.live_attempt()
    await world.store.write(lambda connection: lose_all(connection, "id of w", "away", Epochs(0, 1), 0))
    await world.parts.assignments.all("id of w", [], protocol)
    run = await world.store.read(lambda connection: runs.read_run(connection, key.run_id))
    (attempt,) = run.attempts
    assert (attempt.released, attempt.log_sealed, len(attempt.log_losses)) == (False, True, losses)


async def test_what_an_agent_in_quarantine_has_is_shown_until_it_is_accepted(world: World) -> None:
    cluster_id = world.parts.leadership.cluster_id
    acceptance = Acceptance(world.store, world.clock, world.registry, cluster_id)
    peer = world.dial()
    key = attempts_pb2.AttemptKey(run_id=new_id(), attempt=1, claim_token="token")
    newer = gateway_pb2.InventoryAttempt(key=key, state=runs_pb2.RUN_STATE_RUNNING, pipeline="etl")
    await peer.comes_with_more(cluster_id, [newer])
    await world.clock.advance(1)
    shown = (await world.registry.get("w")).unknown_attempts
    assert shown == (UnknownAttempt(key.run_id, 1, "etl", RunState.RUNNING, None),)
    # A list has no room for it.
    (listed,) = (await world.registry.list()).agents
    assert listed.unknown_attempts is None
    # Nobody else knows, so it is told also while the agent is away.
    peer.say(None)
    await peer.served
    assert (await world.registry.get("w")).unknown_attempts == shown
    assert (await acceptance.accept("w")).unknown_attempts is None


async def test_an_agent_in_quarantine_that_did_not_tell_what_it_has_is_not_said_to_have_nothing(world: World) -> None:
    peer = world.dial()
    await peer.comes_with_more(world.parts.leadership.cluster_id, [])
    assert (await world.registry.get("w")).unknown_attempts == ()
    peer.say(None)
    await peer.served
    await world.registry.restore()
    assert (await world.registry.get("w")).unknown_attempts is None
