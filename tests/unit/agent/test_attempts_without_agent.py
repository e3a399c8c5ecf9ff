"""What becomes of attempts while their agent is dead or the control plane away, and of those it does not know."""

import itertools
import signal
from dataclasses import replace

import pytest
from fastflow.ids import new_id
from fastflow.service.failpoints import AgentPoint
from fastflow_agent.conditions import ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import ContainerGone, Ended, Event, LogLossFound, StateChanged
from fastflow_agent.model import AttemptKey, Reason, SlotId, State, StopCause
from fastflow_agent.reconcile import number
from fastflow_agent.runtime.base import Observation

from tests.unit.agent.world import SPEC, Known, World

OF_A_STOP = (AgentPoint.STOPPING, AgentPoint.SIGNAL_SENT, AgentPoint.SIGNALLED)
OF_OTHER_PARTS = (
    AgentPoint.LOG_ACKNOWLEDGED,
    AgentPoint.STAGED,
    AgentPoint.PREPARER_RELEASED,
    AgentPoint.PACKAGES_INSTALLED,
    AgentPoint.GENERATION_MOVED,
    AgentPoint.GENERATION_PUBLISHED,
)
"""Of the shipper and the uv cache, for which doubles stand here; tests/crash has them too."""


@pytest.mark.parametrize("place", [place for place in AgentPoint if place not in OF_A_STOP + OF_OTHER_PARTS])
@pytest.mark.parametrize("code", [0, 7])
async def test_an_agent_killed_anywhere_ends_the_run_once_with_its_true_result_and_whole_log(
    world: World, place: AgentPoint, code: int
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
    ended = world.ended(key)
    assert ended.exit_code == code
    assert ended.state is (State.FAILED if code else State.SUCCEEDED)
    assert world.shipper.logs[key] == b"first\nlast\n"
    assert len(world.runtime.releases) == 1
    assert world.died_at is None


@pytest.mark.parametrize(
    "place",
    [*OF_A_STOP, AgentPoint.END_SEEN, AgentPoint.EXITED, AgentPoint.CONTAINER_REMOVED],
)
async def test_an_agent_killed_during_a_cancel_still_cancels(world: World, place: AgentPoint) -> None:
    await world.start(die_at=place)
    key = world.assign()
    await world.running(key)
    world.stop(key)
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.CANCELLED


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
    assert world.ended(key).exit_code == 5
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
    assert world.ended(key).state is State.SUCCEEDED


async def test_a_container_removed_behind_the_agents_back_has_vanished(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.runtime.containers.clear()
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.CONTAINER_VANISHED


async def test_what_was_never_released_waits_for_the_control_plane_after_a_restart(world: World) -> None:
    await world.start(die_at=AgentPoint.RELEASING)
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


async def test_a_program_that_begins_just_as_its_start_is_withdrawn_was_killed_by_the_agent(world: World) -> None:
    await world.start(die_at=AgentPoint.RELEASING)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    (container,) = world.runtime.containers.values()
    observe, looks = world.runtime.observe, itertools.count(1)

    async def observe_what_begins(slot: SlotId) -> Observation:
        seen = await observe(slot)
        if next(looks) == 2:
            # The agent has just asked whether it was released, for the second time.
            container.environment = {}
        return seen

    world.runtime.observe = observe_what_begins
    await world.start()
    await world.forgotten(key)
    assert container.signals == [signal.SIGKILL]
    ended = world.ended(key)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.RUNTIME, 137)
    assert "The agent was interrupted" in ended.message


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
    ended = world.ended(key)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.STATE_LOST)
    assert any(isinstance(fact, LogLossFound) for fact in world.known[key].facts)
    assert len(world.runtime.releases) == 1


async def test_of_an_attempt_whose_end_is_known_just_that_nothing_is_left_of_it_is_reported_once_that_is_so(
    world: World,
) -> None:
    world.strays_gone.clear()
    await world.start()
    key = AttemptKey(new_id(), 1, "token")
    known = world.known[key] = Known(Desired(key, Action.STOP, stop_cause=StopCause.SUPERSEDED, ended=True))
    known.events = [Event(1, world.clock.now(), StateChanged(State.RUNNING))]
    world.connect()
    await world.clock.settle()
    # Neither another stream nor another agent makes it report what it does not know yet.
    world.connect()
    await world.restart()
    await world.clock.settle()
    world.pump()
    assert len(known.events) == 1
    world.strays_gone.set()
    await world.until(lambda: len(known.events) > 1)
    assert [(event.sequence, event.fact) for event in known.events[1:]] == [(2, ContainerGone())]
    assert not world.runtime.starts
    known.word = Desired(key, Action.FORGET)
    world.say(key)
    await world.until(lambda: not world.worker.keys)


async def test_that_nothing_is_left_is_reported_on_every_stream_until_it_is_known(world: World) -> None:
    await world.start()
    key = AttemptKey(new_id(), 1, "token")
    known = world.known[key] = Known(Desired(key, Action.RUN, spec=SPEC, ended=True))
    known.events = [Event(1, world.clock.now(), StateChanged(State.RUNNING))]
    for _ in range(2):
        world.connect()
        await world.clock.settle()
        found = world.worker.unacknowledged(number(key))
        assert found is not None
        assert [(event.sequence, event.fact) for event in found[1]] == [(2, ContainerGone())]
    assert not world.runtime.starts


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
    assert world.ended(key).state is State.SUCCEEDED


@pytest.mark.parametrize("orphan_last", [True, False])
async def test_an_attempt_that_is_wanted_anew_begins_once_the_orphan_of_its_number_is_gone(
    world: World, orphan_last: bool
) -> None:
    await world.start()
    old = world.assign()
    await world.running(old)
    slot = world.slot(old)
    container = world.runtime.containers[slot]
    del world.known[old]
    # A database that was restored knows the run, and not yet that it was placed.
    new = replace(old, claim_token="newer")
    world.known[new] = Known(Desired(new, Action.RUN, spec=SPEC))
    words = [world.word(new), Desired(old, Action.ORPHAN)]
    world.worker.take_full(words if orphan_last else words[::-1], world.grace)
    await world.clock.advance(world.grace - 1)
    world.worker.converge()
    await world.clock.settle()
    assert container.signals == []
    await world.clock.advance(2)
    world.worker.converge()
    await world.until(lambda: container.signals)
    assert list(world.runtime.containers) == [slot]
    await world.running(new)
    assert list(world.runtime.containers) == [world.slot(new)]
    assert world.slot(new) != slot
    assert world.gone == {old}
    assert not world.conditions.holds(ConditionType.ORPHANS)
    world.runtime.end(world.slot(new), 0)
    await world.forgotten(new)
    assert world.ended(new).state is State.SUCCEEDED


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
    assert world.ended(key).exit_code == 4


async def test_a_run_that_ended_while_no_agent_was_there_ended_then(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    finished = world.clock.now()
    world.runtime.containers[world.slot(key)].finished_at = finished
    world.runtime.end(world.slot(key), 0)
    await world.clock.advance(3600.0)
    await world.start()
    await world.forgotten(key)
    (time,) = [event.time for event in world.known[key].events if isinstance(event.fact, Ended)]
    assert time == finished


async def test_a_program_that_tidies_up_at_a_stop_while_its_agent_dies_was_stopped(world: World) -> None:
    await world.start(die_at=AgentPoint.SIGNAL_SENT)
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    container.ignores.add(signal.SIGTERM)
    world.stop(key, grace=10.0)
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.clock.advance(3.0)
    container.finished_at = world.clock.now()
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.CANCELLED


async def outlives_an_agent_that_died_before_its_signal(world: World) -> tuple[AttemptKey, SlotId]:
    """Returns an attempt that was to be stopped, whose program runs on, and the program's slot."""
    await world.start(die_at=AgentPoint.STOPPING)
    key = world.assign()
    await world.running(key)
    world.stop(key, grace=10.0)
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.clock.advance(11.0)
    (slot,) = world.runtime.containers
    world.runtime.containers[slot].finished_at = world.clock.now()
    return key, slot


async def test_a_program_that_no_signal_reached_before_its_agent_died_keeps_its_result(world: World) -> None:
    key, slot = await outlives_an_agent_that_died_before_its_signal(world)
    world.runtime.end(slot, 0)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.SUCCEEDED


async def test_what_was_to_be_stopped_and_had_an_end_that_nobody_may_have_seen_was_stopped(world: World) -> None:
    key, slot = await outlives_an_agent_that_died_before_its_signal(world)
    world.runtime.containers[slot].perhaps_unseen = True
    world.runtime.end(slot, 255)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert (world.ended(key).state, world.ended(key).exit_code) == (State.CANCELLED, 255)


async def test_a_run_that_killed_itself_before_its_stop_was_not_stopped(world: World) -> None:
    await world.start(die_at=AgentPoint.STOPPING)
    key = world.assign()
    await world.running(key)
    world.runtime.containers[world.slot(key)].finished_at = world.clock.now()
    await world.clock.advance(1.0)
    world.stop(key)
    await world.until(lambda: not world.alive)
    await world.kill()
    world.runtime.end(world.slot(key), 128 + signal.SIGKILL)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert (world.ended(key).state, world.ended(key).reason) == (State.FAILED, Reason.SIGNAL)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 8.0, -8.0])
async def test_a_clock_that_is_set_makes_no_success_of_what_was_stopped(world: World, jump: float) -> None:
    await world.start(die_at=AgentPoint.SIGNAL_SENT)
    key = world.assign()
    await world.running(key)
    (container,) = world.runtime.containers.values()
    container.ignores.add(signal.SIGTERM)
    world.stop(key, grace=5.0)
    await world.until(lambda: not world.alive)
    await world.kill()
    world.clock.jump(jump)
    await world.clock.advance(1.0)
    container.finished_at = world.clock.now()
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.CANCELLED


@pytest.mark.parametrize("drift", [4.0, -4.0])
async def test_a_clock_that_drifts_tells_what_came_first(world: World, drift: float) -> None:
    await world.start(die_at=AgentPoint.STOPPING)
    key = world.assign()
    await world.running(key)
    (container,) = world.runtime.containers.values()
    await world.clock.advance(10.0)
    container.finished_at = world.clock.now()
    await world.clock.advance(10.0)
    world.stop(key)
    await world.until(lambda: not world.alive)
    await world.kill()
    world.runtime.end(next(iter(world.runtime.containers)), 0)
    world.clock.jump(drift)
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.SUCCEEDED
