"""A new agent process finds the slots of the one before it, whatever they were doing."""

from collections.abc import AsyncIterator, Callable

import pytest
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions

from tests.slots import Slot, Workshop


@pytest.fixture
async def successor(options: DockerOptions) -> AsyncIterator[DockerRuntime]:
    """The runtime of the next agent process: same folders, same agent id."""
    runtime = DockerRuntime(options)
    yield runtime
    await runtime.aclose()


async def test_it_sees_no_slot_of_another_agent(
    workshop: Workshop, docker_options: Callable[..., DockerOptions]
) -> None:
    slot = workshop.slot("print('ran')")
    await slot.run()
    other = DockerRuntime(docker_options())
    try:
        assert await other.slots() == {}
    finally:
        await other.aclose()


async def test_it_can_neither_start_nor_release_a_second_time(workshop: Workshop, successor: DockerRuntime) -> None:
    slot = workshop.slot("print('ran', flush=True); import time; time.sleep(2)")
    await slot.begin()
    await slot.said("ran")
    await Slot(successor, slot.spec).begin()
    assert (await Slot(successor, slot.spec).end()).text == "ran"


async def test_it_reads_the_control_groups_of_what_it_adopted(workshop: Workshop, successor: DockerRuntime) -> None:
    slot = workshop.slot("import time; print('up', flush=True); time.sleep(30)")
    await slot.begin()
    await slot.said("up")
    await successor.probe()
    group = successor.group(slot.id)
    assert group
    assert (group.read().usage.pids or 0) >= 2


async def test_a_slot_whose_environment_a_reboot_took_counts_as_released_once_it_ran(workshop: Workshop) -> None:
    created, ended = workshop.slot("print('ran')"), workshop.slot("print('ran')")
    await created.runtime.prepare_folders(created.spec)
    await created.runtime.create(created.spec)
    await ended.run()
    for slot in (created, ended):
        for path in slot.spec.paths.env.iterdir():
            path.unlink()
        slot.spec.paths.env.rmdir()
    assert not await created.runtime.was_released(created.id)
    assert await ended.runtime.was_released(ended.id)
