"""Attempts that something keeps from starting."""

import errno
import os

import pytest
from fastflow.service.failpoints import AgentPoint
from fastflow_agent.bundles import BundleFault
from fastflow_agent.conditions import ConditionType
from fastflow_agent.facts import StateChanged
from fastflow_agent.model import Reason, SlotId, State
from fastflow_agent.runtime.base import ContainerRemoved, HostFault, ImageMissing, RuntimeFault, RuntimeUnavailable
from fastflow_agent.uvcache import EnvironmentFault
from structlog.testing import capture_logs

from tests.unit.agent.world import World


@pytest.mark.parametrize(
    ("seam", "fault", "reason"),
    [
        ("bundles", BundleFault("the digest does not match"), Reason.BUNDLE),
        ("create", ImageMissing("build it with make image"), Reason.IMAGE),
        ("start", RuntimeFault("no such runtime"), Reason.RUNTIME),
        ("release", RuntimeFault("the value of X contains a zero byte"), Reason.RUNTIME),
    ],
)
async def test_a_permanent_fault_fails_the_run_with_its_reason(
    world: World, seam: str, fault: Exception, reason: Reason
) -> None:
    await world.start()
    if seam == "bundles":
        world.bundles.fault = fault
    else:
        world.runtime.fail[seam] = fault
    key = world.assign()
    await world.forgotten(key)
    ended = world.ended(key)
    assert (ended.state, ended.reason, ended.message) == (State.FAILED, reason, str(fault))
    assert world.known[key].gone
    assert world.runtime.releases == []


async def test_what_uv_said_is_in_the_log_of_a_run_whose_requirements_do_not_resolve(world: World) -> None:
    await world.start()
    world.uvcache.fault = EnvironmentFault("the requirements do not resolve", b"No solution found\n")
    key = world.assign()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.ENVIRONMENT
    assert world.shipper.logs[key] == b"No solution found\n"


async def test_a_wrapper_that_fails_before_its_release_is_told_apart(world: World) -> None:
    await world.start()
    original = world.runtime.start

    async def start_and_fail(slot: SlotId) -> None:
        await original(slot)
        world.runtime.containers[slot].wrapper_failed = True
        world.runtime.end(slot, 125)

    world.runtime.start = start_and_fail
    key = world.assign()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.WRAPPER


async def test_an_engine_that_is_away_for_a_moment_only_delays_the_start(world: World) -> None:
    await world.start()
    world.runtime.unavailable = True
    key = world.assign()
    await world.clock.settle()
    assert world.conditions.holds(ConditionType.DOCKER_UNAVAILABLE)
    await world.clock.advance(3.0)
    world.runtime.unavailable = False
    await world.until(lambda: State.RUNNING in world.known[key].states, passing=0.5)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.SUCCEEDED


async def test_an_engine_that_stays_away_sends_the_attempt_elsewhere_and_never_releases_it(world: World) -> None:
    await world.start()
    world.runtime.fail["start"] = RuntimeUnavailable("the engine went away")
    key = world.assign()
    await world.until(lambda: world.runtime.containers)
    world.runtime.unavailable = True
    await world.until(lambda: world.known[key].ends, passing=1.0)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.RUNTIME)
    assert not world.known[key].gone
    world.runtime.unavailable = False
    world.runtime.fail.clear()
    await world.forgotten(key, passing=1.0)
    assert world.known[key].gone
    assert world.runtime.releases == []


async def test_a_container_that_somebody_removes_before_its_start_sends_the_attempt_elsewhere(world: World) -> None:
    await world.start()
    world.runtime.fail["start"] = ContainerRemoved("it was removed")
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason, end.message) == (State.QUEUED, Reason.RUNTIME, "could not start: it was removed")
    assert world.known[key].gone


@pytest.mark.parametrize("seam", ["prepare_folders", "create", "start", "release"])
async def test_a_fault_of_the_host_sends_the_attempt_elsewhere(world: World, seam: str) -> None:
    await world.start()
    world.runtime.fail[seam] = HostFault("[Errno 5] Input/output error")
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    message = "could not start: [Errno 5] Input/output error"
    assert (end.state, end.reason, end.message) == (State.QUEUED, Reason.RUNTIME, message)
    assert world.known[key].gone
    assert world.runtime.releases == []


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_start_that_can_not_be_withdrawn_goes_elsewhere_and_its_container_once_that_is_possible(
    world: World, interrupted: bool
) -> None:
    if interrupted:
        await world.start(die_at=AgentPoint.CONTAINER_STARTED)
        key = world.assign()
        await world.until(lambda: not world.alive)
        await world.kill()
        world.runtime.fail["remove"] = RuntimeFault("a removal is under way and does not end")
        with capture_logs() as entries:
            await world.start()
            await world.until(lambda: world.known[key].ends, passing=1.0)
    else:
        await world.start()
        world.runtime.fail["release"] = RuntimeFault("the wrapper did not come")
        world.runtime.fail["remove"] = RuntimeFault("a removal is under way and does not end")
        with capture_logs() as entries:
            key = world.assign()
            await world.until(lambda: world.known[key].ends, passing=1.0)
    assert [entry for entry in entries if entry["log_level"] == "error"] == []
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.RUNTIME)
    assert "a removal is under way" in end.message
    assert not world.known[key].gone
    world.runtime.fail.clear()
    await world.forgotten(key, passing=1.0)
    assert world.known[key].gone
    assert world.runtime.releases == []


@pytest.mark.parametrize("question", ["was_released", "observe", "signal", "wait"])
async def test_whether_a_withdrawn_start_came_through_is_asked_until_the_engine_tells(
    world: World, question: str
) -> None:
    await world.start(die_at=AgentPoint.RELEASING)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    world.runtime.fail[question] = RuntimeFault("it does not work")
    with capture_logs() as entries:
        await world.start()
        await world.clock.settle()
        await world.clock.advance(60.0)
        world.pump()
        assert not world.known[key].ends
        assert world.runtime.releases == []
        world.runtime.fail.clear()
        await world.until(lambda: State.RUNNING in world.known[key].states, passing=1.0)
    assert [entry for entry in entries if entry["log_level"] == "error"] == []
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key, passing=1.0)
    assert world.ended(key).state is State.SUCCEEDED


async def test_a_full_disk_sends_the_attempt_elsewhere(world: World) -> None:
    await world.start()
    world.bundles.fault = OSError(errno.ENOSPC, "No space left on device")
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.DISK_FULL)
    assert world.conditions.holds(ConditionType.DISK_FULL)


async def test_a_disk_that_fails_otherwise_sends_the_attempt_elsewhere_too(world: World) -> None:
    await world.start()
    world.bundles.fault = FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/bundles/new")
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.RUNTIME)
    assert end.message == "could not start: [Errno 2] No such file or directory: '/data/bundles/new'"


async def test_an_error_nobody_foresaw_fails_that_attempt_alone(world: World) -> None:
    await world.start()
    other = world.assign()
    await world.running(other)
    world.bundles.fault = ZeroDivisionError("a bug")
    key = world.assign()
    await world.forgotten_one(key, passing=1.0)
    ended = world.ended(key)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.RUNTIME)
    world.runtime.end(world.slot(other), 0)
    await world.forgotten(other)
    assert world.ended(other).state is State.SUCCEEDED


async def test_only_one_long_outage_sends_an_attempt_elsewhere_and_not_a_long_preparation(world: World) -> None:
    await world.start()
    world.bundles.gate.clear()
    key = world.assign()
    await world.clock.settle()
    await world.clock.advance(600.0)
    world.runtime.fail["create"] = RuntimeUnavailable("for a moment")
    world.bundles.gate.set()
    await world.clock.settle()
    await world.clock.advance(2.0)
    world.runtime.fail.clear()
    await world.until(lambda: State.RUNNING in world.known[key].states, passing=0.5)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key, passing=0.5)


async def test_a_disk_that_refuses_the_journal_delays_the_end_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        world.runtime.end(slot, 9)
        await world.clock.settle()
        await world.clock.advance(5.0)
        world.pump()
        assert not world.known[key].ends
        assert world.conditions.holds(ConditionType.DISK_FULL)
    await world.forgotten(key, passing=1.0)
    assert world.ended(key).exit_code == 9


async def test_a_disk_that_refuses_the_first_record_sends_the_attempt_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.DISK_FULL)
    assert world.runtime.starts == []
