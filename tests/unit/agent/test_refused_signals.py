"""Programs whose engine refuses to signal them, or to tell of their end: they are watched all the same."""

import signal
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from fastflow_agent.attempts.watch import KILL_AGAIN_SECONDS
from fastflow_agent.model import AttemptKey, Reason, State
from fastflow_agent.runtime.base import RuntimeFault
from structlog.testing import capture_logs

from tests.unit.agent.world import World

GRACE = 20.0


@pytest.fixture
async def key(world: World) -> AttemptKey:
    """An attempt that runs."""
    await world.start()
    key = world.assign(stop_grace=GRACE)
    await world.running(key)
    return key


@pytest.fixture(autouse=True)
def no_errors() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is said; none of it is an error that nobody foresaw."""
    with capture_logs() as entries:
        yield entries
    assert [entry for entry in entries if entry["log_level"] == "error"] == []


async def test_a_program_that_can_not_be_told_to_end_is_killed_after_its_grace(world: World, key: AttemptKey) -> None:
    container = world.runtime.containers[world.slot(key)]
    world.runtime.fail["signal"] = RuntimeFault("permission denied")
    world.stop(key, grace=GRACE)
    await world.clock.settle()
    await world.clock.advance(GRACE - 1)
    del world.runtime.fail["signal"]
    assert container.signals == []
    await world.clock.advance(2)
    assert container.signals == [signal.SIGKILL]
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED


async def test_a_program_that_can_not_be_killed_is_killed_again_and_its_own_end_is_seen_meanwhile(
    world: World, key: AttemptKey
) -> None:
    other = world.assign(stop_grace=GRACE)
    await world.running(other)
    container = world.runtime.containers[world.slot(key)]
    world.runtime.fail["signal"] = RuntimeFault("permission denied")
    for each in (key, other):
        world.stop(each, grace=GRACE)
    await world.clock.settle()
    await world.clock.advance(GRACE + 3 * KILL_AGAIN_SECONDS)
    world.pump()
    assert not world.known[key].ends
    world.runtime.end(world.slot(other), 3)
    await world.until(lambda: world.known[other].ends)
    del world.runtime.fail["signal"]
    await world.clock.advance(KILL_AGAIN_SECONDS)
    assert container.signals == [signal.SIGKILL]
    await world.forgotten(key)
    assert world.ended(key).state is State.CANCELLED


async def test_an_end_that_the_engine_does_not_tell_is_asked_for_until_it_does(
    world: World, no_errors: list[MutableMapping[str, Any]]
) -> None:
    await world.start()
    world.runtime.fail["wait"] = RuntimeFault("it does not work")
    key = world.assign()
    await world.running(key)
    world.runtime.end(world.slot(key), 7)
    await world.clock.advance(60.0)
    world.pump()
    assert not world.known[key].ends
    assert [entry["why"] for entry in no_errors if entry["log_level"] == "warning"] == ["it does not work"]
    del world.runtime.fail["wait"]
    await world.forgotten(key, passing=1.0)
    ended = world.ended(key)
    assert (ended.state, ended.reason, ended.exit_code) == (State.FAILED, Reason.EXIT_CODE, 7)
