"""Attempts that are on their way to user code when what the control plane said of them holds no more."""

import signal

import pytest
from fastflow_agent.conditions import ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import Ended
from fastflow_agent.model import AttemptKey, State
from fastflow_agent.reconcile import number
from fastflow_agent.runtime.base import SlotState

from tests.unit.agent.world import World


async def preparing(world: World) -> AttemptKey:
    """An attempt that waits for its code, which the control plane knows of."""
    world.bundles.gate.clear()
    key = world.assign()
    await world.until(lambda: State.PREPARING in world.known[key].states)
    return key


async def prepared(world: World) -> None:
    """Lets it come as far as it may."""
    world.bundles.gate.set()
    await world.clock.settle(50)
    (container,) = world.runtime.containers.values()
    assert container.state is SlotState.RUNNING


async def test_no_program_begins_in_quarantine(world: World) -> None:
    await world.start()
    key = await preparing(world)
    world.connected = False
    world.worker.keep_still()
    await prepared(world)
    assert world.runtime.releases == []
    world.connected = True
    world.connect()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert len(world.runtime.starts) == 1


async def test_no_program_begins_that_is_bound_as_the_quarantine_comes(world: World) -> None:
    await world.start()
    key = world.assign()
    world.connected = False
    world.worker.keep_still()
    await world.clock.settle(50)
    assert not world.runtime.containers
    world.connected = True
    world.connect()
    await world.running(key)


async def test_a_stop_that_nothing_was_done_for_yet_kills_nothing_in_quarantine(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    world.stop(key)
    world.connected = False
    world.worker.keep_still()
    await world.clock.settle(50)
    assert container.signals == []
    world.connected = True
    world.connect()
    await world.forgotten(key)
    assert container.signals == [signal.SIGTERM]


async def test_no_program_begins_that_the_control_plane_does_not_know(world: World) -> None:
    await world.start()
    key = await preparing(world)
    known = world.known.pop(key)
    world.connect()
    await prepared(world)
    assert world.runtime.releases == []
    await world.clock.advance(world.grace)
    world.known[key] = known
    world.worker.converge()
    await world.until(lambda: not world.runtime.containers)
    await world.until(lambda: known.ends)
    assert world.ended(key).state is State.CANCELLED
    assert world.runtime.releases == []


async def test_no_program_begins_whose_events_were_turned_down(world: World) -> None:
    await world.start()
    world.bundles.gate.clear()
    key = world.assign()
    await world.clock.settle(50)
    world.worker.acknowledge(number(key), 1, stored=False)
    await prepared(world)
    assert world.runtime.releases == []
    world.stop(key)
    await world.clock.settle(50)
    assert world.runtime.releases == []
    assert not world.runtime.containers
    (ended,) = [event.fact for event in world.attempt(key).unacknowledged if isinstance(event.fact, Ended)]
    assert ended.state is State.CANCELLED


async def test_what_waits_for_its_word_lives_and_its_log_goes_on_where_the_word_says(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"delivered\n")
    world.shipper.logs[key] = b"delivered\n"
    await world.restart()
    word, world.known[key].word = world.known[key].word, Desired(key, Action.WAIT)
    world.connect()
    await world.clock.advance(10 * world.grace)
    world.worker.converge()
    await world.clock.settle()
    assert not world.conditions.holds(ConditionType.ORPHANS)
    assert world.runtime.containers[world.slot(key)].signals == []
    world.write(key, b"since\n")
    world.known[key].word = word
    world.say(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED
    assert world.shipper.logs[key] == b"delivered\nsince\n"


async def test_no_program_begins_that_waits_for_its_word(world: World) -> None:
    await world.start()
    key = await preparing(world)
    word, world.known[key].word = world.known[key].word, Desired(key, Action.WAIT)
    world.connect()
    await prepared(world)
    assert world.runtime.releases == []
    world.known[key].word = word
    world.say(key)
    await world.running(key)


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_log_is_delivered_again_where_the_word_that_was_waited_for_lacks_some_of_it(
    world: World, sealed: bool
) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"output\n")
    if sealed:
        world.connected = False
        world.runtime.end(world.slot(key), 0)
        await world.until(lambda: key in world.shipper.sealed)
    word, world.known[key].word = world.known[key].word, Desired(key, Action.WAIT)
    world.connected = True
    world.connect()
    world.shipper.logs[key] = b""
    world.shipper.sealed.pop(key, None)
    world.known[key].word = word
    world.say(key)
    if not sealed:
        world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"output\n"


@pytest.mark.parametrize("known", [0, 1])
async def test_a_new_stream_says_anew_what_is_known_of_an_attempt(world: World, known: int) -> None:
    await world.start()
    key = await preparing(world)
    del world.known[key].events[known:]
    world.connect()
    await prepared(world)
    assert len(world.runtime.releases) == known
    await world.running(key)


async def test_what_is_being_bound_is_in_the_inventory_so_that_its_end_is_told(world: World) -> None:
    await world.start()
    key = world.assign()
    (report,) = world.worker.reports
    assert (report.key, report.state, report.last_event) == (key, State.ASSIGNED, 0)
    # Ended meanwhile: a control plane tells so, at a new stream, of what is in the inventory alone.
    world.known[key].word = Desired(key, Action.FORGET)
    world.connect()
    await world.until(lambda: not world.worker.reports)
    await world.forgotten(key)
    assert world.runtime.releases == []
