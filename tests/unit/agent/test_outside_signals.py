"""Programs that somebody else tells to end, by way of the engine, and that say 0 as if they were done."""

import signal
from datetime import timedelta

import pytest
from fastflow_agent.facts import Ended
from fastflow_agent.model import AttemptKey, Reason, State
from fastflow_agent.runtime.base import Sent

from tests.unit.agent.world import World

GRACE = 20.0
"""The `stop_grace` of most runs here."""


async def ended_after(world: World, key: AttemptKey, number: int, seconds: float, code: int = 0) -> Ended:
    """How a running attempt is told to have ended whose program exited so long after it got that signal."""
    container = world.runtime.containers[world.slot(key)]
    container.sent = (*container.sent, Sent(number, world.clock.now()))
    await world.clock.advance(seconds)
    container.finished_at = container.sent[-1].time + timedelta(seconds=seconds)
    world.runtime.end(world.slot(key), code)
    await world.forgotten(key)
    return world.ended(key)


@pytest.fixture
async def key(world: World) -> AttemptKey:
    """An attempt that runs."""
    await world.start()
    key = world.assign(stop_grace=GRACE)
    await world.running(key)
    return key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("code", [0, 1])
async def test_a_program_that_ends_at_somebody_elses_signal_was_cut_short(
    world: World, key: AttemptKey, number: signal.Signals, code: int
) -> None:
    ended = await ended_after(world, key, number, GRACE - 0.5, code)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.SIGNAL, code)
    assert f"({number.name}), which Fast-Flow did not send" in ended.message


async def test_a_program_that_goes_on_for_longer_than_its_grace_has_not_heeded_the_signal(
    world: World, key: AttemptKey
) -> None:
    assert (await ended_after(world, key, signal.SIGTERM, GRACE + 0.5)).state is State.SUCCEEDED


async def test_a_run_without_any_grace_has_that_of_the_engine(world: World) -> None:
    await world.start()
    for seconds, state in ((9.5, State.FAILED), (10.5, State.SUCCEEDED)):
        key = world.assign(stop_grace=0.0)
        await world.running(key)
        assert (await ended_after(world, key, signal.SIGTERM, seconds)).state is state


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH])
async def test_a_signal_that_asks_for_something_else_is_no_end(world: World, key: AttemptKey, number: int) -> None:
    assert (await ended_after(world, key, number, 0.5)).state is State.SUCCEEDED


async def test_the_last_of_several_signals_counts(world: World, key: AttemptKey) -> None:
    container = world.runtime.containers[world.slot(key)]
    container.sent = (Sent(signal.SIGTERM, world.clock.now()),)
    await world.clock.advance(3600)
    assert (await ended_after(world, key, signal.SIGTERM, 0.5)).reason is Reason.SIGNAL


async def test_the_agents_own_signal_is_nobody_elses(world: World, key: AttemptKey) -> None:
    container = world.runtime.containers[world.slot(key)]
    container.ignores = {signal.SIGTERM}
    world.stop(key)
    await world.until(lambda: container.signals)
    ended = await ended_after(world, key, signal.SIGTERM, 0.5)
    assert (ended.state, ended.reason) == (State.CANCELLED, Reason.CANCEL_REQUESTED)


async def test_an_engine_that_ends_its_containers_while_the_host_shuts_down_does_so_for_the_host(
    world: World, key: AttemptKey
) -> None:
    world.shutting_down = True
    ended = await ended_after(world, key, signal.SIGTERM, 0.5)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.HOST_REBOOT)


async def test_an_end_that_the_engine_did_not_see_has_no_exit_code(world: World, key: AttemptKey) -> None:
    world.runtime.end(world.slot(key), None)
    await world.forgotten(key)
    ended = world.ended(key)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.RUNTIME, None)
