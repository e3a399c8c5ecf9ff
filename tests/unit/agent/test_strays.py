import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow_agent.conditions import ConditionType
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import SlotState
from fastflow_agent.strays import STRAY_STOP_SECONDS, Strays

from tests.unit.agent.doubles import Container
from tests.unit.agent.world import World

STRAY = SlotId("00000000000000aa")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


def _leave_container(world: World) -> Container:
    container = world.runtime.containers[STRAY] = Container(SlotState.RUNNING)
    world.paths(STRAY).root.mkdir(parents=True)
    world.paths(STRAY).log.touch()
    return container


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


async def test_what_has_a_journal_is_no_stray(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await _begin_again(world)
    assert not world.conditions.holds(ConditionType.STRAY_CONTAINERS)
    assert list(world.runtime.containers) == [world.slot(key)]


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
