"""An agent that is being emptied, and stops that can not name the masks of a log."""

import signal

import pytest
from fastflow.service.failpoints import AgentPoint
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import Ended, StateChanged
from fastflow_agent.model import AttemptKey, Reason, State, StopCause

from tests.unit.agent.world import SPEC, World


def was_given_back(world: World, key: AttemptKey) -> bool:
    end = world.known[key].end
    return isinstance(end, StateChanged) and end.reason is Reason.AGENT_DRAINED


@pytest.mark.parametrize(
    "place",
    [AgentPoint.BOUND, AgentPoint.PREPARED, AgentPoint.CREATED, AgentPoint.CONTAINER_STARTED],
)
async def test_what_an_agent_had_not_released_when_it_died_is_given_back_by_the_next(
    world: World, place: AgentPoint
) -> None:
    await world.start(die_at=place)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    await world.start(connect=False)
    world.worker.drain(True)
    world.connect()
    await world.forgotten(key)
    assert was_given_back(world, key)
    assert world.runtime.releases == []


async def test_what_is_assigned_to_a_drained_agent_is_given_back(world: World) -> None:
    await world.start()
    world.worker.drain(True)
    key = world.assign()
    await world.forgotten(key)
    assert was_given_back(world, key)
    assert world.runtime.starts == []


async def test_what_runs_on_a_drained_agent_runs_on(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.worker.drain(True)
    await world.clock.settle()
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED


async def test_an_agent_that_takes_runs_again_begins_them(world: World) -> None:
    await world.start()
    world.worker.drain(True)
    world.worker.drain(False)
    key = world.assign()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)


async def test_a_cancelled_attempt_of_a_drained_agent_is_cancelled_and_not_given_back(world: World) -> None:
    await world.start(die_at=AgentPoint.CREATED)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    world.stop(key)
    await world.start(connect=False)
    world.worker.drain(True)
    world.connect()
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED


async def test_the_deadline_of_a_drain_stops_what_runs_and_says_so(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    world.stop(key, StopCause.DRAIN)
    await world.forgotten(key)
    ended = world.ended(key)
    assert (ended.state, ended.reason) == (State.CANCELLED, Reason.AGENT_DRAINED)
    assert "drained" in ended.message


async def test_the_deadline_of_a_drain_gives_back_what_had_not_begun(world: World) -> None:
    await world.start(die_at=AgentPoint.CREATED)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    world.stop(key, StopCause.DRAIN)
    await world.start()
    await world.forgotten(key)
    assert was_given_back(world, key)


async def test_the_deadline_of_a_drain_gives_back_what_never_came(world: World) -> None:
    await world.start()
    world.connected = False
    key = world.assign()
    world.stop(key, StopCause.DRAIN)
    world.connected = True
    world.connect()
    await world.forgotten(key)
    assert was_given_back(world, key)


# Stops that can not name the masks.


def stop_unmasked(world: World, key: AttemptKey) -> None:
    """Asks for the end of an attempt, and can not tell which secrets to mask."""
    world.known[key].word = Desired(key, Action.STOP, stop_grace=10.0, masks_known=False)


@pytest.mark.parametrize("place", [AgentPoint.BOUND, AgentPoint.PREPARED, AgentPoint.CREATED])
async def test_an_attempt_that_waits_for_its_release_ends_though_its_masks_are_unknown(
    world: World, place: AgentPoint
) -> None:
    await world.start(die_at=place)
    key = world.assign()
    await world.until(lambda: not world.alive)
    await world.kill()
    stop_unmasked(world, key)
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED
    assert world.runtime.releases == []


async def test_a_program_is_stopped_and_its_output_kept_until_the_masks_are_known(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    await world.kill()
    world.write_to(next(iter(world.runtime.containers)), b"token s3cret-value!\n")
    stop_unmasked(world, key)
    await world.start()
    await world.until(lambda: world.known[key].gone)
    assert isinstance(world.known[key].end, Ended)
    await world.clock.settle()
    assert key not in world.shipper.spools
    assert key not in world.shipper.sealed
    world.known[key].word = Desired(key, Action.STOP, secrets=SPEC.secrets)
    world.connect()
    await world.forgotten(key)
    assert world.shipper.logs[key] == b"token ************!\n"


# Stops that are hurried.


async def test_a_shorter_grace_kills_sooner_and_counts_from_sigterm(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    container.ignores = {signal.SIGTERM}
    world.stop(key, grace=600.0)
    await world.until(lambda: container.signals)
    await world.clock.settle()
    await world.clock.advance(20.0)
    world.stop(key, grace=900.0)
    await world.clock.settle()
    world.stop(key, grace=30.0)
    await world.clock.settle()
    await world.clock.advance(9.0)
    assert container.signals == [signal.SIGTERM]
    await world.clock.advance(1.5)
    await world.forgotten(key)
    assert container.signals == [signal.SIGTERM, signal.SIGKILL]


async def test_a_shorter_grace_holds_for_a_run_over_its_time_limit(world: World) -> None:
    await world.start()
    key = world.assign(timeout=5.0, stop_grace=600.0)
    await world.running(key)
    container = world.runtime.containers[world.slot(key)]
    container.ignores = {signal.SIGTERM}
    await world.clock.advance(6.0)
    await world.until(lambda: container.signals)
    world.stop(key, grace=0.0)
    await world.forgotten(key)
    assert container.signals == [signal.SIGTERM, signal.SIGKILL]
    assert world.ended(key).state is State.TIMED_OUT
