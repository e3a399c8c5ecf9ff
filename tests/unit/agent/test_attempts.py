"""One attempt's life, with an engine and a control plane in memory."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_agent.attempts import closing
from fastflow_agent.conditions import ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import LogLossFound, ProvenanceKnown, SoftLimitCrossed, StateChanged
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.model import AttemptKey, Reason, State
from fastflow_agent.runtime.base import RuntimeFault

from tests.unit.agent.world import Known, World


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
    assert world.ended(key).exit_code == 0
    assert world.shipper.logs[key] == b"hello\n"


async def test_what_is_waited_for_while_packages_are_prepared_is_told_until_the_program_runs(world: World) -> None:
    await world.start()
    world.uvcache.ready.clear()
    world.uvcache.ahead = [25, 12, 2, 2, 1, 0]
    key = world.assign()
    await world.until(lambda: "its environment is being prepared" in said(world, key))
    world.uvcache.ready.set()
    await world.running(key)
    place = "it waits for a place to prepare its environment"
    assert said(world, key) == [
        "",
        f"{place}: more than 10 others are prepared there first",
        f"{place}: 2 others are prepared there first",
        f"{place}: another one is prepared there first",
        "its environment is being prepared",
        "its environment is ready",
        "",
    ]


async def test_what_is_waited_for_is_not_told_again_by_the_next_agent(world: World) -> None:
    await world.start()
    world.uvcache.ready.clear()
    world.uvcache.ahead = [0]
    key = world.assign()
    await world.until(lambda: "its environment is being prepared" in said(world, key))
    await world.restart()
    world.uvcache.ready.set()
    await world.running(key)
    assert said(world, key) == ["", "its environment is being prepared", "its environment is ready", ""]


def said(world: World, key: AttemptKey) -> list[str]:
    return [fact.message for fact in world.known[key].facts if isinstance(fact, StateChanged)]


async def test_a_program_that_fails_is_failed_with_its_exit_code(world: World) -> None:
    await world.start()
    key = await _run_to_exit(world, 7)
    ended = world.ended(key)
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


async def test_a_slot_is_deleted_however_deep_its_program_has_filled_its_folders(
    world: World, make_deep: Callable[[Path], None]
) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    paths = world.paths(world.slot(key))
    for folder in (paths.tmp, paths.out):
        folder.mkdir()
        make_deep(folder)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)


async def test_a_slot_that_can_not_be_deleted_yet_is_deleted_later_and_disturbs_no_other_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    def refuse(*_: Path) -> None:
        nonlocal refused
        refused += 1
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    await world.start()
    key = world.assign()
    await world.running(key)
    attempt = world.attempt(key)
    monkeypatch.setattr(closing, "delete_slot", refuse)
    world.runtime.end(world.slot(key), 0)
    await world.until(lambda: refused)
    # The files of this one get the numbers that those of the other one had.
    other = world.assign()
    await world.running(other)
    attempt.note(SoftLimitCrossed(1, "MEMORY", 10, 12, world.clock.now()))
    await world.clock.advance(60.0)
    assert refused > 2
    world.runtime.end(world.slot(other), 3)
    await world.until(lambda: world.known[other].ends)
    assert not world.conditions.holds(ConditionType.DISK_FULL)
    monkeypatch.undo()
    await world.clock.advance(60.0)
    await world.forgotten_one(key)
    await world.forgotten(other)
    assert world.ended(other).exit_code == 3


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
    assert world.ended(key).reason is Reason.CANCEL_REQUESTED


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
    assert world.ended(key).state is State.CANCELLED


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
    ended = world.ended(key)
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
    ended = world.ended(key)
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
    assert world.ended(key).state is State.TIMED_OUT


async def test_a_stop_during_preparation_cancels_without_running_anything(world: World) -> None:
    await world.start()
    world.bundles.gate.clear()
    key = world.assign()
    await world.until(lambda: State.PREPARING in world.known[key].states)
    world.stop(key)
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED
    assert world.runtime.starts == []


async def test_a_stop_that_comes_before_the_attempt_ends_it_unstarted(world: World) -> None:
    await world.start()
    key = AttemptKey("run", 1, "token")
    world.known[key] = Known(Desired(key, Action.STOP))
    world.say(key)
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED
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
    ended = world.ended(key)
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
    assert world.ended(key).reason is Reason.OOM_KILLED


async def test_a_crossing_of_a_soft_limit_is_a_fact_and_comes_before_the_end(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    crossing = SoftLimitCrossed(1, "MEMORY", 10, 12, world.clock.now())
    world.attempt(key).note(crossing)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    facts = world.known[key].facts
    assert facts.index(crossing) < facts.index(world.ended(key))


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


async def test_code_and_environment_of_a_slot_are_kept_from_before_its_start_until_its_container_is_gone(
    world: World,
) -> None:
    world.bundles.gate.clear()
    await world.start()
    key = world.assign()
    await world.until(lambda: world.bundles.pins)
    world.bundles.gate.set()
    await world.running(key)
    slot = world.slot(key)
    await world.restart()
    assert world.bundles.pins == {slot: "sha256:00"}
    assert world.uvcache.pins == {slot: "generation-1"}
    world.runtime.end(slot, 0)
    await world.forgotten(key)
    assert world.bundles.pins == {}


async def test_the_environment_of_a_run_that_failed_is_looked_at_and_of_one_that_did_not_is_not(world: World) -> None:
    await world.start()
    for code in (0, 3):
        key = world.assign()
        await world.running(key)
        slot = world.slot(key)
        world.runtime.end(slot, code)
        await world.forgotten(key)
        assert world.uvcache.suspected == ([slot] if code else [])


async def test_a_program_is_not_released_before_the_control_plane_has_stored_that_the_attempt_is_here(
    world: World,
) -> None:
    await world.start()
    key = world.assign()
    world.connected = False
    await world.until(lambda: world.runtime.containers, passing=0.5)
    for _ in range(20):
        await world.until(lambda: True, passing=0.5)
    assert not world.runtime.releases
    world.connected = True
    await world.until(lambda: world.runtime.releases)
    assert world.known[key].states[:1] == [State.PREPARING]


async def test_an_attempt_that_the_control_plane_has_not_heard_of_can_be_stopped(world: World) -> None:
    await world.start()
    key = world.assign()
    world.connected = False
    await world.until(lambda: world.runtime.containers, passing=0.5)
    world.connected = True
    world.stop(key)
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.CANCELLED
    assert not world.runtime.releases
