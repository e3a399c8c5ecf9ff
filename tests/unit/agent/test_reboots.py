"""What becomes of attempts whose host was restarted: what was in memory, and not yet on the disk, is gone."""

import os
from datetime import timedelta

import pytest
from fastflow.service.failpoints import AgentPoint
from fastflow_agent.facts import Ended, LogLossFound
from fastflow_agent.logs.confirmed import ConfirmedLogs
from fastflow_agent.model import AttemptKey, Reason, State
from fastflow_agent.runtime.base import SlotState
from fastflow_agent.shutdown import Shutdown

from tests.unit.agent.world import World


def losses(world: World, key: AttemptKey) -> list[tuple[str, int, int | None]]:
    return [(fact.kind, fact.offset, fact.bytes) for fact in world.known[key].facts if isinstance(fact, LogLossFound)]


async def test_a_host_that_was_restarted_is_told_apart_from_a_vanished_container(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.reboot()
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.HOST_REBOOT


async def test_an_engine_that_lost_a_start_with_the_hosts_power_is_not_waited_for(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.reboot()
    next(iter(world.runtime.containers.values())).state = SlotState.CREATED
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.HOST_REBOOT
    assert len(world.runtime.starts) == 1


async def test_output_that_was_not_on_disk_when_the_host_went_down_is_lost_to_the_disk(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    world.write(key, b"delivered\n")
    world.shipper.logs[key] = b"delivered\n"
    await world.reboot()
    os.truncate(world.paths(slot).log, 3)
    await world.start()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"delivered\n"
    (loss,) = [fact for fact in world.known[key].facts if isinstance(fact, LogLossFound)]
    assert (loss.kind, loss.offset) == ("DISK", len(b"delivered\n"))


async def down_with_output(world: World, delivered: bytes) -> AttemptKey:
    """An attempt whose host was restarted when it had written 7 bytes, and `delivered` of them."""
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"output\n")
    world.shipper.logs[key] = delivered
    await world.reboot()
    return key


@pytest.mark.parametrize("delivered", [b"", b"output\n"])
async def test_nobody_knows_what_was_not_yet_on_disk_when_the_host_went_down(world: World, delivered: bytes) -> None:
    key = await down_with_output(world, delivered)
    # Its end is seen before the control plane names what is to be masked, and its log is opened.
    await world.start(connect=False)
    await world.until(lambda: world.attempt(key).report.state is State.FAILED)
    for _ in range(2):
        await world.restart()
        await world.until(lambda: key in world.shipper.sealed)
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"output\n"
    assert losses(world, key) == [("DISK", len(b"output\n"), None)]


@pytest.mark.parametrize("kept", [7, 3])
async def test_what_a_program_that_had_ended_wrote_is_known_when_the_host_goes_down(world: World, kept: int) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    world.write(key, b"output\n")
    world.shipper.blocked.clear()
    world.runtime.end(slot, 0)
    await world.until(lambda: world.known[key].ends)
    await world.reboot()
    os.truncate(world.paths(slot).log, kept)
    world.shipper.blocked.set()
    await world.start()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"output\n"[:kept]
    assert losses(world, key) == ([] if kept == 7 else [("DISK", 3, None)])


@pytest.mark.parametrize("delivered", [b"", b"out"])
async def test_nothing_is_lost_of_a_log_that_is_as_long_as_the_shutdown_confirmed(
    world: World, delivered: bytes
) -> None:
    key = await down_with_output(world, delivered)
    world.confirmed_logs = ConfirmedLogs("boot-1", {world.slot(key): 7})
    # Its end is seen before the control plane names what is to be masked, and before the next boot.
    await world.start(connect=False)
    await world.until(lambda: world.attempt(key).report.state is State.FAILED)
    await world.reboot()
    world.confirmed_logs = ConfirmedLogs()
    await world.start()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"output\n"
    assert losses(world, key) == []


async def test_nothing_is_lost_of_a_confirmed_log_that_is_opened_before_the_engine_tells_its_end(world: World) -> None:
    key = await down_with_output(world, b"")
    world.confirmed_logs = ConfirmedLogs("boot-1", {world.slot(key): 7})
    world.runtime.unavailable = True
    await world.start()
    await world.until(lambda: key in world.shipper.spools)
    world.runtime.unavailable = False
    await world.forgotten(key, passing=1.0)
    assert losses(world, key) == []


@pytest.mark.parametrize(("boot_id", "length"), [("boot-1", 8), ("boot-1", 6), ("boot-0", 7), ("after boot-1", 7)])
async def test_a_confirmation_of_another_length_or_boot_tells_nothing_of_a_log(
    world: World, boot_id: str, length: int
) -> None:
    key = await down_with_output(world, b"")
    world.confirmed_logs = ConfirmedLogs(boot_id, {world.slot(key): length})
    await world.start()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"output\n"
    assert losses(world, key) == [("DISK", 7, None)]


async def test_an_attempt_that_ended_before_the_reboot_keeps_its_result(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    await world.reboot()
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED


async def test_a_reboot_before_the_release_only_starts_the_attempt_again(world: World) -> None:
    await world.start(die_at=AgentPoint.CONTAINER_STARTED)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.reboot()
    await world.start()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("seconds", [0, 8])
async def test_an_end_after_the_hosts_shutdown_had_begun_is_the_shutdowns(
    world: World, code: int, seconds: float
) -> None:
    key, end = await ended_near_a_shutdown(world, seconds, code)
    assert (end.state, end.reason, end.exit_code) == (State.FAILED, Reason.HOST_REBOOT, code)
    assert world.known[key].states.count(State.FAILED) == 1


@pytest.mark.parametrize(("code", "state"), [(0, State.SUCCEEDED), (3, State.FAILED)])
async def test_an_end_before_the_hosts_shutdown_is_the_programs_own(world: World, code: int, state: State) -> None:
    _, end = await ended_near_a_shutdown(world, -0.5, code)
    assert (end.state, end.exit_code) == (state, code)
    assert end.reason is (Reason.EXIT_CODE if code else Reason.NONE)
    assert "not known" not in end.message


async def test_the_shutdown_of_another_boot_tells_nothing_of_an_end(world: World) -> None:
    _, end = await ended_near_a_shutdown(world, 1, 0, boot_id="boot-0")
    assert end.state is State.SUCCEEDED
    assert "whether it was done or a shutdown of the host cut it short is not known" in end.message


async def ended_near_a_shutdown(
    world: World, seconds: float, code: int, boot_id: str = "boot-1"
) -> tuple[AttemptKey, Ended]:
    """How a run is told to have ended whose program exited so long after the host's shutdown began."""
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.last_shutdown = Shutdown(boot_id, world.clock.now())
    container = next(iter(world.runtime.containers.values()))
    container.finished_at = world.clock.now() + timedelta(seconds=seconds)
    await world.reboot(code)
    await world.start()
    await world.forgotten(key)
    return key, world.ended(key)
