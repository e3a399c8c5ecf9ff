import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow_agent.attempts.closing import REMOVE_AGAIN_SECONDS
from fastflow_agent.conditions import ConditionType
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import Observation, RuntimeFault, SlotState
from fastflow_agent.strays import STRAY_STOP_SECONDS, Strays

from tests.unit.agent.doubles import Container
from tests.unit.agent.world import World

STRAY = SlotId("00000000000000aa")
OTHER = SlotId("00000000000000bb")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


def _leave_container(world: World, slot: SlotId = STRAY) -> Container:
    container = world.runtime.containers[slot] = Container(SlotState.RUNNING)
    world.paths(slot).root.mkdir(parents=True)
    world.paths(slot).log.touch()
    return container


def _at_once() -> "asyncio.Future[float]":
    grace: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    grace.set_result(0.0)
    return grace


def _said(world: World) -> str:
    (held,) = world.conditions.all()
    assert held.type is ConditionType.STRAY_CONTAINERS
    return held.message


async def _begin(world: World, grace: "asyncio.Future[float]") -> "asyncio.Task[None]":
    folders = await world.worker.adopt()
    strays = Strays(world.services, world.conditions, lambda: world.worker.bound_slots, folders)
    clearing = asyncio.create_task(strays.clear(grace))
    await world.clock.settle()
    return clearing


async def test_a_container_without_journal_is_said_and_stopped_only_after_the_grace(world: World) -> None:
    container = _leave_container(world)
    container.ignores = {signal.SIGTERM}
    await world.start()
    grace: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    clearing = await _begin(world, grace)
    assert world.conditions.holds(ConditionType.STRAY_CONTAINERS)
    await world.clock.advance(10_000)
    assert container.signals == []
    grace.set_result(300.0)
    await world.clock.settle()
    await world.clock.advance(299)
    assert container.signals == []
    await world.clock.advance(2)
    assert container.signals == [signal.SIGTERM]
    await world.clock.advance(STRAY_STOP_SECONDS + 1)
    await clearing
    assert not world.runtime.containers
    assert not world.paths(STRAY).root.exists()
    assert not world.conditions.holds(ConditionType.STRAY_CONTAINERS)


async def test_a_stray_that_ends_when_it_is_told_to_is_removed_at_once(world: World) -> None:
    container = _leave_container(world)
    await world.start()
    clearing = await _begin(world, _at_once())
    assert container.signals == [signal.SIGTERM]
    assert clearing.done()
    assert not world.runtime.containers
    assert not world.paths(STRAY).root.exists()


async def test_a_stray_whose_end_can_not_be_told_gets_all_its_time(world: World) -> None:
    _leave_container(world)
    await world.start()
    world.runtime.fail["wait"] = RuntimeFault("it does not work")
    await _begin(world, _at_once())
    await world.clock.advance(STRAY_STOP_SECONDS - 1)
    assert list(world.runtime.containers) == [STRAY]
    await world.clock.advance(2)
    assert not world.runtime.containers


async def test_a_stray_the_engine_can_not_remove_is_said_and_tried_again_and_holds_up_no_other(world: World) -> None:
    stuck, _ = _leave_container(world), _leave_container(world, OTHER)
    stuck.stuck = True
    await world.start()
    clearing = await _begin(world, _at_once())
    await world.clock.advance(3 * (STRAY_STOP_SECONDS + REMOVE_AGAIN_SECONDS))
    assert list(world.runtime.containers) == [STRAY]
    assert not world.paths(OTHER).root.exists()
    assert world.paths(STRAY).root.exists()
    assert "can not be removed" in _said(world)
    assert (STRAY in _said(world), OTHER in _said(world)) == (True, False)
    assert not clearing.done()
    stuck.stuck = False
    await world.clock.advance(STRAY_STOP_SECONDS + REMOVE_AGAIN_SECONDS)
    await clearing
    assert not world.runtime.containers
    assert world.conditions.all() == []


async def test_strays_are_looked_for_until_the_engine_tells_them(world: World) -> None:
    _leave_container(world)
    await world.start()
    world.runtime.fail["slots"] = RuntimeFault("it does not work")
    clearing = await _begin(world, _at_once())
    await world.clock.advance(3 * REMOVE_AGAIN_SECONDS)
    assert "it does not work" in _said(world)
    assert not clearing.done()
    del world.runtime.fail["slots"]
    await world.clock.advance(REMOVE_AGAIN_SECONDS + STRAY_STOP_SECONDS)
    await clearing
    assert not world.runtime.containers
    assert world.conditions.all() == []


async def test_what_has_a_journal_is_no_stray(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await _begin_again(world)
    assert not world.conditions.holds(ConditionType.STRAY_CONTAINERS)
    assert list(world.runtime.containers) == [world.slot(key)]


async def test_what_is_over_by_the_time_the_engine_has_told_its_container_is_no_stray(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    list_slots = world.runtime.slots

    async def list_slots_slowly() -> dict[SlotId, Observation]:
        found = await list_slots()
        world.runtime.end(world.slot(key), 0)
        await world.forgotten(key)
        return found

    world.runtime.slots = list_slots_slowly
    clearing = asyncio.create_task(_begin_again(world))
    await world.clock.settle()
    assert not world.conditions.holds(ConditionType.STRAY_CONTAINERS)
    await clearing


async def _begin_again(world: World) -> None:
    strays = Strays(world.services, world.conditions, lambda: world.worker.bound_slots, [])
    await strays.clear(asyncio.get_running_loop().create_future())


async def test_a_folder_whose_journal_was_never_whole_is_deleted_at_once(world: World) -> None:
    world.paths(STRAY).root.mkdir(parents=True)
    world.paths(STRAY).journal.write_bytes(b"0000")
    await world.start()
    await _begin(world, asyncio.get_running_loop().create_future())
    assert not world.paths(STRAY).root.exists()


async def test_what_a_dead_agent_was_preparing_is_removed_though_nothing_is_prepared_again(world: World) -> None:
    await world.start()
    await _begin(world, asyncio.get_running_loop().create_future())
    assert world.uvcache.cleared_up
