"""One attempt's life, with an engine and a control plane in memory."""

import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow_agent.attempts.dossier import Checkpoint
from fastflow_agent.bundles import BundleFault
from fastflow_agent.conditions import ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import Ended, LogLossFound, ProvenanceKnown, SoftLimitCrossed, StateChanged
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.model import AttemptKey, Reason, SlotId, State, StopCause
from fastflow_agent.reconcile import number
from fastflow_agent.runtime.base import ImageMissing, RuntimeFault, RuntimeUnavailable, SlotState
from fastflow_agent.uvcache import EnvironmentFault

from tests.unit.agent.world import Known, World

OF_A_STOP = (Checkpoint.STOPPING, Checkpoint.SIGNAL_SENT)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


def _ended(world: World, key: AttemptKey) -> Ended:
    end = world.known[key].end
    assert isinstance(end, Ended)
    return end


async def _run_to_exit(world: World, code: int = 0) -> AttemptKey:
    key = world.assign()
    await world.running(key)
    world.write(key, b"hello\n")
    world.runtime.end(world.slot(key), code)
    await world.forgotten(key)
    return key


# A life without trouble.


async def test_an_attempt_runs_ends_and_leaves_nothing_behind(world: World) -> None:
    await world.start()
    key = await _run_to_exit(world)
    assert world.known[key].states == [State.PREPARING, State.RUNNING, State.SUCCEEDED]
    assert _ended(world, key).exit_code == 0
    assert world.shipper.logs[key] == b"hello\n"


async def test_a_program_that_fails_is_failed_with_its_exit_code(world: World) -> None:
    await world.start()
    key = await _run_to_exit(world, 7)
    ended = _ended(world, key)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.EXIT_CODE, 7)


async def test_the_program_gets_variables_and_secrets_and_the_disk_gets_neither(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    assert world.runtime.containers[slot].environment == {"GREETING": "hello", "TOKEN": "s3cret-value"}
    journal = world.paths(slot).journal.read_bytes()
    assert b"s3cret-value" not in journal
    assert b"hello" not in journal
    assert "s3cret-value" not in repr(world.known[key].word)


async def test_a_secret_in_the_output_is_masked(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"token s3cret-value!\n")
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"token ************!\n"


async def test_provenance_names_secret_versions_and_the_image(world: World) -> None:
    await world.start()
    key = await _run_to_exit(world)
    (known,) = [fact for fact in world.known[key].facts if isinstance(fact, ProvenanceKnown)]
    assert known.secret_versions == {"TOKEN": 4}
    assert known.image_digest == "sha256:image"


async def test_capacity_is_given_back_only_when_the_container_is_gone(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.runtime.fail["remove"] = RuntimeFault("a process does not die")
    world.runtime.end(world.slot(key), 0)
    await world.until(lambda: world.known[key].ends)
    await world.clock.settle()
    world.pump()
    assert not world.known[key].gone
    del world.runtime.fail["remove"]
    await world.forgotten(key, passing=1.0)
    assert world.known[key].gone


# Stops.


async def test_a_cancel_sends_sigterm_and_then_nothing_if_the_program_ends(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    world.stop(key)
    await world.forgotten(key)
    assert container.signals == [signal.SIGTERM]
    assert world.known[key].states[-2:] == [State.STOPPING, State.CANCELLED]
    assert _ended(world, key).reason is Reason.CANCEL_REQUESTED


async def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    container.ignores = {signal.SIGTERM}
    world.stop(key, grace=10.0)
    await world.until(lambda: container.signals)
    await world.clock.settle()
    await world.clock.advance(9.5)
    assert container.signals == [signal.SIGTERM]
    await world.clock.advance(1.0)
    await world.forgotten(key)
    assert container.signals == [signal.SIGTERM, signal.SIGKILL]
    assert _ended(world, key).state is State.CANCELLED


async def test_a_cancel_that_loses_to_the_exit_keeps_the_real_result(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    container = world.runtime.containers[slot]
    real = container.changed
    # The program ended, but the agent has not heard of it when the stop comes.
    container.state, container.exit_code = container.state.EXITED, 3
    world.stop(key)
    await world.until(lambda: State.STOPPING in world.known[key].states)
    real.set()
    container.changed.set()
    await world.forgotten(key)
    ended = _ended(world, key)
    assert (ended.state, ended.exit_code) == (State.FAILED, 3)
    assert container.signals == []


async def test_the_time_limit_counts_from_the_release(world: World) -> None:
    await world.start()
    world.bundles.gate.clear()
    key = world.assign(timeout=30.0)
    await world.clock.settle()
    await world.clock.advance(100.0)
    world.bundles.gate.set()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    await world.clock.advance(29.0)
    assert container.signals == []
    await world.clock.advance(2.0)
    await world.forgotten(key)
    ended = _ended(world, key)
    assert (ended.state, ended.reason) == (State.TIMED_OUT, Reason.TIMEOUT)


async def test_the_time_limit_survives_the_agent(world: World) -> None:
    await world.start()
    key = world.assign(timeout=30.0)
    await world.running(key)
    await world.kill()
    await world.clock.advance(20.0)
    await world.start()
    await world.clock.settle()
    container = world.runtime.containers[world.slot(key)]
    await world.clock.advance(9.0)
    assert container.signals == []
    await world.clock.advance(2.0)
    await world.forgotten(key)
    assert _ended(world, key).state is State.TIMED_OUT


async def test_a_stop_during_preparation_cancels_without_running_anything(world: World) -> None:
    await world.start()
    world.bundles.gate.clear()
    key = world.assign()
    await world.until(lambda: State.PREPARING in world.known[key].states)
    world.stop(key)
    await world.forgotten(key)
    assert _ended(world, key).state is State.CANCELLED
    assert world.runtime.starts == []


async def test_a_stop_that_comes_before_the_attempt_ends_it_unstarted(world: World) -> None:
    await world.start()
    key = AttemptKey("run", 1, "token")
    world.known[key] = Known(Desired(key, Action.STOP))
    world.say(key)
    await world.forgotten(key)
    assert _ended(world, key).state is State.CANCELLED
    assert world.runtime.starts == []


# What the sampler and the spool find.


async def test_a_childs_oom_ends_the_whole_container_and_is_the_verdict(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    world.attempt(key).note_oom(2)
    await world.forgotten(key)
    assert container.signals == [signal.SIGKILL]
    ended = _ended(world, key)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.OOM_KILLED, 137)


async def test_an_oom_seen_before_the_agent_died_is_still_the_verdict(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.runtime.containers[world.slot(key)].ignores = {signal.SIGKILL}
    world.attempt(key).note_oom(1)
    await world.until(lambda: world.runtime.containers[world.slot(key)].signals)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 137)
    await world.start()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.OOM_KILLED


async def test_a_crossing_of_a_soft_limit_is_a_fact_and_comes_before_the_end(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    crossing = SoftLimitCrossed(1, "MEMORY", 10, 12, world.clock.now())
    world.attempt(key).note(crossing)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    facts = world.known[key].facts
    assert facts.index(crossing) < facts.index(_ended(world, key))


async def test_a_loss_of_output_is_told_once_even_if_it_is_found_again(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    loss = LogLoss("DROPPED", 5, 7, "too fast")
    world.shipper.on_loss[key](loss)
    await world.until(lambda: any(isinstance(fact, LogLossFound) for fact in world.known[key].facts))
    await world.restart()
    await world.until(lambda: key in world.shipper.spools)
    world.shipper.on_loss[key](loss)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    losses = [fact for fact in world.known[key].facts if isinstance(fact, LogLossFound)]
    assert [(found.kind, found.offset, found.bytes) for found in losses] == [("DROPPED", 5, 7)]


async def test_a_log_that_was_replaced_while_no_agent_watched_is_not_taken_for_the_programs(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    log = world.paths(world.slot(key)).log
    await world.kill()
    log.rename(log.with_name("moved"))
    log.write_bytes(b"forged\n")
    await world.start()
    await world.until(lambda: key in world.shipper.spools)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.shipper.logs[key] == b""
    (loss,) = [fact for fact in world.known[key].facts if isinstance(fact, LogLossFound)]
    assert loss.kind == "TAMPERED"


# What can not start.


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
    ended = _ended(world, key)
    assert (ended.state, ended.reason, ended.message) == (State.FAILED, reason, str(fault))
    assert world.known[key].gone
    assert world.runtime.releases == []


async def test_what_uv_said_is_in_the_log_of_a_run_whose_requirements_do_not_resolve(world: World) -> None:
    await world.start()
    world.uvcache.fault = EnvironmentFault("the requirements do not resolve", b"No solution found\n")
    key = world.assign()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.ENVIRONMENT
    assert world.shipper.logs[key] == b"No solution found\n"


async def test_a_wrapper_that_fails_before_its_release_is_told_apart(world: World) -> None:
    await world.start()
    original = world.runtime.start

    async def start_and_fail(slot: SlotId) -> None:
        await original(slot)
        world.runtime.containers[slot].wrapper_failed = True
        world.runtime.end(slot, 125)

    world.runtime.start = start_and_fail  # type: ignore[method-assign]
    key = world.assign()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.WRAPPER


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
    assert _ended(world, key).state is State.SUCCEEDED


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


async def test_a_full_disk_sends_the_attempt_elsewhere(world: World) -> None:
    await world.start()
    world.bundles.fault = OSError(errno.ENOSPC, "No space left on device")
    key = world.assign()
    await world.forgotten(key)
    end = world.known[key].end
    assert isinstance(end, StateChanged)
    assert (end.state, end.reason) == (State.QUEUED, Reason.DISK_FULL)
    assert world.conditions.holds(ConditionType.DISK_FULL)


async def test_an_error_nobody_foresaw_fails_that_attempt_alone(world: World) -> None:
    await world.start()
    other = world.assign()
    await world.running(other)
    world.bundles.fault = ZeroDivisionError("a bug")
    key = world.assign()
    await world.forgotten_one(key, passing=1.0)
    ended = _ended(world, key)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.RUNTIME)
    world.runtime.end(world.slot(other), 0)
    await world.forgotten(other)
    assert _ended(world, other).state is State.SUCCEEDED


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
    assert _ended(world, key).exit_code == 9


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


# What happens while the agent is away.


@pytest.mark.parametrize("place", [place for place in Checkpoint if place not in OF_A_STOP])
@pytest.mark.parametrize("code", [0, 7])
async def test_an_agent_killed_anywhere_ends_the_run_once_with_its_true_result_and_whole_log(
    world: World, place: Checkpoint, code: int
) -> None:
    await world.start(die_at=place)
    key = world.assign()
    wrote = False

    def step() -> bool:
        nonlocal wrote
        for slot, container in world.runtime.containers.items():
            if container.environment is not None and not wrote:
                with world.paths(slot).log.open("ab") as log:
                    log.write(b"first\nlast\n")
                wrote = True
                world.runtime.end(slot, code)
        return not world.alive or world.known[key].word.action is Action.FORGET

    await world.until(step)
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.start()
    await world.until(lambda: step() and number(key) not in world.worker._attempts, passing=0.5)
    await world.forgotten(key, passing=0.5)
    ended = _ended(world, key)
    assert ended.exit_code == code
    assert ended.state is (State.FAILED if code else State.SUCCEEDED)
    assert world.shipper.logs[key] == b"first\nlast\n"
    assert len(world.runtime.releases) == 1
    assert world.died_at is None


@pytest.mark.parametrize(
    "place",
    [Checkpoint.STOPPING, Checkpoint.SIGNAL_SENT, Checkpoint.END_SEEN, Checkpoint.EXITED, Checkpoint.CONTAINER_REMOVED],
)
async def test_an_agent_killed_during_a_cancel_still_cancels(world: World, place: Checkpoint) -> None:
    await world.start(die_at=place)
    key = world.assign()
    await world.running(key)
    world.stop(key)
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert _ended(world, key).state is State.CANCELLED


async def test_an_agent_that_comes_back_watches_what_still_runs(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"before\n")
    await world.restart()
    await world.clock.settle()
    world.write(key, b"after\n")
    world.runtime.end(world.slot(key), 5)
    await world.forgotten(key)
    assert _ended(world, key).exit_code == 5
    assert world.shipper.logs[key] == b"before\nafter\n"
    assert len(world.runtime.releases) == 1


async def test_output_is_shipped_while_the_engine_does_not_answer_a_new_agent(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.unavailable = True
    await world.start()
    await world.until(lambda: key in world.shipper.spools)
    world.runtime.unavailable = False
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    await world.forgotten(key, passing=1.0)
    assert _ended(world, key).state is State.SUCCEEDED


async def test_a_container_removed_behind_the_agents_back_has_vanished(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.containers.clear()
    await world.start()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.CONTAINER_VANISHED


async def test_a_host_that_was_restarted_is_told_apart_from_a_vanished_container(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 255)
    world.boot_id = "boot-2"
    await world.start()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.HOST_REBOOT


async def test_an_engine_that_lost_a_start_with_the_hosts_power_is_not_waited_for(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    next(iter(world.runtime.containers.values())).state = SlotState.CREATED
    world.boot_id = "boot-2"
    await world.start()
    await world.forgotten(key)
    assert _ended(world, key).reason is Reason.HOST_REBOOT
    assert len(world.runtime.starts) == 1


async def test_output_that_was_not_on_disk_when_the_host_went_down_is_lost_to_the_disk(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    world.write(key, b"delivered\n")
    world.shipper.logs[key] = b"delivered\n"
    await world.kill()
    world.boot_id = "boot-2"
    os.truncate(world.paths(slot).log, 3)
    world.runtime.end(slot, 255)
    await world.start()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"delivered\n"
    (loss,) = [fact for fact in world.known[key].facts if isinstance(fact, LogLossFound)]
    assert (loss.kind, loss.offset) == ("DISK", len(b"delivered\n"))


async def test_an_attempt_that_ended_before_the_reboot_keeps_its_result(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    world.boot_id = "boot-2"
    await world.start()
    await world.forgotten(key)
    assert _ended(world, key).state is State.SUCCEEDED


async def test_what_was_never_released_waits_for_the_control_plane_after_a_restart(world: World) -> None:
    await world.start(die_at=Checkpoint.RELEASING)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.start(connect=False)
    await world.clock.settle()
    assert world.runtime.releases == []
    assert not world.known[key].ends
    world.connect()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert len(world.runtime.releases) == 1


async def test_a_reboot_before_the_release_only_starts_the_attempt_again(world: World) -> None:
    await world.start(die_at=Checkpoint.CONTAINER_STARTED)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 255)
    world.boot_id = "boot-2"
    await world.start()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert _ended(world, key).state is State.SUCCEEDED


async def test_an_attempt_known_to_have_begun_is_never_started_a_second_time(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    await world.kill()
    world.runtime.containers.clear()
    world.uvcache.pins.clear()
    world.paths(slot).journal.unlink()
    world.paths(slot).log.unlink()
    world.paths(slot).root.rmdir()
    await world.start()
    await world.forgotten(key)
    ended = _ended(world, key)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.STATE_LOST)
    assert any(isinstance(fact, LogLossFound) for fact in world.known[key].facts)
    assert len(world.runtime.releases) == 1


# What the control plane does not know.


async def test_an_orphan_lives_through_its_grace_and_is_stopped_after_it(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    slot = world.slot(key)
    container = world.runtime.containers[slot]
    del world.known[key]
    world.connect()
    assert world.conditions.holds(ConditionType.ORPHANS)
    await world.clock.advance(world.grace - 1)
    world.worker.converge()
    await world.clock.settle()
    assert container.signals == []
    await world.clock.advance(2)
    world.worker.converge()
    await world.until(lambda: not world.runtime.containers)
    assert container.signals == [signal.SIGTERM]
    await world.until(lambda: not world.conditions.holds(ConditionType.ORPHANS))
    assert not any((world.folder / "slots").iterdir())


async def test_an_orphan_that_is_known_again_lives_on(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    known = world.known.pop(key)
    world.connect()
    await world.clock.advance(world.grace - 1)
    world.known[key] = known
    world.connect()
    assert not world.conditions.holds(ConditionType.ORPHANS)
    await world.clock.advance(world.grace)
    world.worker.converge()
    await world.clock.settle()
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert _ended(world, key).state is State.SUCCEEDED


async def test_absence_from_a_difference_changes_nothing(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.worker.take_delta([])
    await world.clock.advance(10 * world.grace)
    world.worker.converge()
    await world.clock.settle()
    assert world.runtime.containers[world.slot(key)].signals == []


async def test_a_superseded_attempt_is_stopped_and_its_log_still_delivered(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.write(key, b"too late\n")
    world.stop(key, StopCause.SUPERSEDED)
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"too late\n"


async def test_the_result_waits_for_a_control_plane_that_is_away(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.connected = False
    world.runtime.end(world.slot(key), 4)
    await world.clock.settle()
    assert not world.known[key].ends
    await world.restart()
    world.connected = True
    world.connect()
    await world.forgotten(key)
    assert _ended(world, key).exit_code == 4
