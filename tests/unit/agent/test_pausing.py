"""Programs that are frozen while their output can neither be delivered nor kept."""

import signal

import pytest
from fastflow_agent.facts import OutputPaused
from fastflow_agent.logs.shipper import fair_level
from fastflow_agent.model import AttemptKey, Reason, State

from tests.unit.agent.doubles import Container
from tests.unit.agent.world import World

QUOTA = 1000


async def begun(world: World, **changes: object) -> tuple[AttemptKey, Container]:
    """A run that asked to be paused, with its container."""
    await world.start()
    key = world.assign(pause_on_backlog=True, **changes)
    await world.running(key)
    return key, world.runtime.containers[world.slot(key)]


async def waits(world: World, key: AttemptKey, count: int) -> None:
    """The shipper says that so many bytes wait."""
    world.shipper.on_backlog[key](count, QUOTA)
    await world.clock.settle()


def pauses(world: World, key: AttemptKey) -> list[OutputPaused]:
    """What was told of pauses."""
    world.pump()
    return [fact for fact in world.known[key].facts if isinstance(fact, OutputPaused)]


async def test_a_program_is_frozen_past_the_quota_and_goes_on_once_its_output_has_drained(world: World) -> None:
    key, container = await begun(world)
    await waits(world, key, QUOTA)
    assert not container.frozen
    await waits(world, key, QUOTA + 1)
    assert container.frozen
    await world.clock.advance(60.0)
    await waits(world, key, QUOTA // 2)
    assert container.frozen
    await waits(world, key, QUOTA // 4)
    assert not container.frozen
    begin, end = pauses(world, key)
    assert (begin.number, begin.quota, begin.backlog, begin.clear_time) == (1, QUOTA, QUOTA + 1, None)
    assert (end.number, end.backlog, end.seconds) == (1, QUOTA + 1, 60.0)
    await waits(world, key, 2 * QUOTA)
    assert container.frozen
    assert pauses(world, key)[-1].number == 2


async def test_the_time_limit_stands_still_while_a_program_is_frozen(world: World) -> None:
    key, container = await begun(world, timeout=30.0)
    await world.clock.advance(20.0)
    await waits(world, key, QUOTA + 1)
    await world.clock.advance(3600.0)
    assert container.signals == []
    await waits(world, key, 0)
    await world.clock.advance(9.0)
    assert container.signals == []
    await world.clock.advance(2.0)
    await world.forgotten(key)
    assert world.ended(key).state is State.TIMED_OUT


async def test_a_stop_thaws_a_frozen_program_and_it_is_frozen_no_more(world: World) -> None:
    key, container = await begun(world)
    container.ignores.add(signal.SIGTERM)
    await waits(world, key, QUOTA + 1)
    world.stop(key)
    await world.until(lambda: container.signals)
    assert not container.frozen
    await waits(world, key, 5 * QUOTA)
    assert not container.frozen
    await world.forgotten(key, passing=1.0)
    assert container.signals == [signal.SIGTERM, signal.SIGKILL]
    ended = world.ended(key)
    assert (ended.state, ended.reason) == (State.CANCELLED, Reason.CANCEL_REQUESTED)
    assert pauses(world, key)[-1].clear_time


async def test_a_frozen_program_that_somebody_kills_ends_with_its_pause(world: World) -> None:
    key, _ = await begun(world)
    await waits(world, key, QUOTA + 1)
    world.runtime.end(world.slot(key), 137)
    await world.forgotten(key)
    assert world.ended(key).exit_code == 137
    assert [pause.clear_time is None for pause in pauses(world, key)] == [True, False]


async def test_a_restarted_agent_keeps_a_program_frozen_until_it_knows_that_its_output_drained(world: World) -> None:
    key, container = await begun(world, timeout=30.0)
    await waits(world, key, QUOTA + 1)
    await world.kill()
    container.frozen = False  # as if the agent had died between its journal and the freezing
    world.connected = False
    await world.start(connect=False)
    await world.until(lambda: container.frozen)
    await world.clock.advance(3600.0)
    assert container.frozen
    world.connected = True
    world.connect()
    await world.until(lambda: key in world.shipper.spools)
    await waits(world, key, QUOTA)
    assert container.frozen
    await waits(world, key, 0)
    assert not container.frozen
    await world.clock.advance(29.0)
    assert container.signals == []
    await world.clock.advance(2.0)
    await world.forgotten(key)
    assert world.ended(key).state is State.TIMED_OUT


async def test_an_engine_that_is_away_freezes_later(world: World) -> None:
    key, container = await begun(world)
    world.runtime.unavailable = True
    await waits(world, key, QUOTA + 1)
    assert not container.frozen
    world.runtime.unavailable = False
    await world.until(lambda: container.frozen, passing=0.5)


async def test_a_freeze_that_failed_makes_no_later_cancel_out_of_an_end(world: World) -> None:
    key, container = await begun(world)
    world.runtime.unavailable = True
    await waits(world, key, QUOTA + 1)
    # It is stopped, and ends by itself, while the engine can not be reached: no signal was ever sent.
    world.stop(key)
    await world.clock.advance(1.0)
    container.finished_at = world.clock.now()
    world.runtime.end(world.slot(key), 0)
    world.runtime.unavailable = False
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED


async def test_a_run_that_did_not_ask_for_it_is_never_frozen(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await waits(world, key, 10 * QUOTA)
    assert not world.runtime.containers[world.slot(key)].frozen


@pytest.mark.parametrize(
    ("amounts", "total", "level"),
    [([], 10, 2**62), ([3, 4], 7, 2**62), ([1, 9], 7, 6), ([9, 9, 1], 11, 5), ([5, 5], 0, 0)],
)
def test_the_largest_backlogs_give_way_when_all_together_are_too_large(
    amounts: list[int], total: int, level: int
) -> None:
    assert fair_level(amounts, total) == level
