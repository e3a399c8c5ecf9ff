"""Environments prepared ahead of runs: in which order, how often, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastflow_agent.bundles import BundleFault
from fastflow_agent.runtime.base import HostFault, RuntimeUnavailable
from fastflow_agent.uvcache import EnvironmentFault, Generation
from fastflow_agent.uvcache.preheat import (
    HINDERED_MAXIMUM_SECONDS,
    REMEMBERED,
    REPORTED,
    RETRY_MAXIMUM_SECONDS,
    Preheat,
    PreheatState,
    Result,
    Wanted,
)

from tests.unit.agent.doubles import FakeClock

DAY = 24 * 3600.0
LOOK_SECONDS = DAY / 4
ONE, TWO, THREE = (Wanted(f"sha256:{name}", 10) for name in ("one", "two", "three"))


@dataclass
class Host:
    """Code and environments of this host: what is asked for is there after `gate` opens, or fails as told.

    Before, it waits until the host is `calm`, and then for its `turn`.
    """

    clock: FakeClock
    asked: list[str] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    prepared: dict[str, float] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calm: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    image: str = "sha256:image"
    obstacle: str = ""
    changes: int = 0
    lost: set[str] = field(default_factory=set)

    async def ensure(self, digest: str, size: int) -> Path:
        return Path(digest)

    async def ensure_ahead(
        self, code: Path, python_version: str, image_digest: str, max_age: float, waits: Callable[[int], None]
    ) -> Generation:
        name = str(code).removeprefix("sha256:")
        self.asked.append(name)
        await self.calm.wait()
        waits(1)
        await self.turn.wait()
        waits(0)
        await self.gate.wait()
        if name in self.faults:
            raise self.faults[name]
        now = self.clock.now().timestamp()
        if now - self.prepared.get(name, 0.0) > max_age:
            self.prepared[name] = now
        self.lost.discard(f"environment of {name}")
        return Generation("1", Path("1"), (f"{name}==1",), True, f"environment of {name}", self.prepared[name], 2.0)

    def environments(self) -> list[str]:
        return [each for each in map("environment of {}".format, ("one", "two", "three")) if each not in self.lost]

    def changed(self) -> None:
        self.changes += 1


@dataclass
class World:
    clock: FakeClock
    host: Host
    preheat: Preheat

    def told(self) -> dict[str, Result]:
        return {result.key[0].removeprefix("sha256:"): result for result in self.preheat.report().results}

    def states(self) -> dict[str, str]:
        return {name: result.state.value for name, result in self.told().items()}


@pytest.fixture
def disk() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def world(disk: Executor) -> AsyncIterator[World]:
    clock = FakeClock(disk)
    host = Host(clock)
    for event in (host.calm, host.turn, host.gate):
        event.set()
    preheat = Preheat(
        host,
        host,
        clock,
        image=lambda: host.image,
        obstacle=lambda: host.obstacle,
        max_age=7 * DAY,
        changed=host.changed,
        look=LOOK_SECONDS,
    )
    running = asyncio.create_task(preheat.run())
    yield World(clock, host, preheat)
    running.cancel()


async def test_environments_are_prepared_one_at_a_time_in_the_order_they_are_wanted(world: World) -> None:
    world.host.gate.clear()
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    assert world.host.asked == ["one"]
    assert world.states() == {"one": "PREPARING", "two": "WAITING"}
    world.host.gate.set()
    await world.clock.settle()
    assert world.host.asked == ["one", "two"]
    told = world.told()
    assert {name: result.state for name, result in told.items()} == dict.fromkeys(("one", "two"), PreheatState.READY)
    assert (told["one"].packages, told["one"].seconds) == (("one==1",), 2.0)
    assert told["one"].prepared == world.clock.now()


async def test_one_that_waits_for_its_turn_is_told_to_wait_and_not_to_be_prepared(world: World) -> None:
    for event in (world.host.calm, world.host.turn, world.host.gate):
        event.clear()
    world.preheat.take([ONE])
    await world.clock.settle()
    assert world.host.asked == ["one"]
    assert world.states() == {"one": "WAITING"}
    world.host.calm.set()
    await world.clock.settle()
    assert world.states() == {}
    world.host.turn.set()
    await world.clock.settle()
    assert world.states() == {"one": "PREPARING"}
    world.host.gate.set()
    await world.clock.settle()
    assert world.states() == {"one": "READY"}


async def test_a_report_begins_with_everything_and_goes_on_with_what_changed(world: World) -> None:
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    report = world.preheat.report()
    assert (len(report.results), report.full) == (2, True)
    world.preheat.note("sha256:seen", "", Generation("1", Path("1"), ("seen==1",)))
    report = world.preheat.report()
    assert ([result.key for result in report.results], report.full) == ([("sha256:seen", "")], False)
    # A new stream brings the set anew.
    world.preheat.take([ONE, TWO])
    report = world.preheat.report()
    assert (len(report.results), report.full) == (3, True)
    assert world.host.asked == ["one", "two"]


async def test_of_a_difference_only_that_is_told(world: World) -> None:
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    assert world.states() == {"one": "READY", "two": "READY"}
    world.preheat.change([THREE], [ONE.key, ("sha256:unknown", "")])
    await world.clock.settle()
    report = world.preheat.report()
    assert [result.key for result in report.results] == [THREE.key]
    assert (list(report.gone), report.full) == ([ONE.key], False)
    assert world.host.asked == ["one", "two", "three"]
    # What comes back is begun anew, what is told twice goes on.
    world.preheat.change([ONE, THREE], [])
    await world.clock.settle()
    assert world.states() == {"one": "READY"}
    assert world.host.asked == ["one", "two", "three", "one"]


async def test_what_is_no_longer_wanted_is_not_prepared_to_its_end(world: World) -> None:
    world.host.gate.clear()
    world.preheat.take([ONE])
    await world.clock.settle()
    world.preheat.change([TWO], [ONE.key])
    world.host.gate.set()
    await world.clock.settle()
    assert world.host.asked == ["one", "two"]
    assert list(world.host.prepared) == ["two"]


async def test_runs_environments_of_long_ago_are_taken_back(world: World) -> None:
    for number in range(REMEMBERED + 1):
        world.preheat.note(f"sha256:{number}", "", Generation("1", Path("1")))
    gone = []
    while (report := world.preheat.report()).results or report.gone:
        gone += report.gone
    assert gone == [("sha256:0", "")]


async def test_many_results_are_told_in_several_messages(world: World) -> None:
    world.preheat.take([Wanted(f"sha256:{number}", 1) for number in range(REPORTED + 5)])
    before = world.host.changes
    report = world.preheat.report()
    assert (len(report.results), report.full) == (REPORTED, True)
    assert world.host.changes == before + 1
    report = world.preheat.report()
    assert (len(report.results), report.full) == (5, False)


async def test_what_uv_refuses_is_told_in_its_own_words_and_tried_again_ever_more_seldom(world: World) -> None:
    output = b"  x No solution found\n    because there is no version of one==9\n"
    world.host.faults["one"] = EnvironmentFault("the requirements can not be installed: x", output)
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    told = world.told()
    assert told["one"].state is PreheatState.FAILED
    assert "there is no version of one==9" in told["one"].message
    assert told["one"].retry is not None
    assert told["one"].retry > world.clock.now()
    assert told["two"].state is PreheatState.READY
    for _ in range(12):
        await world.clock.advance(RETRY_MAXIMUM_SECONDS)
    assert 6 <= world.host.asked.count("one") <= 130
    del world.host.faults["one"]
    await world.clock.advance(RETRY_MAXIMUM_SECONDS)
    assert world.states()["one"] == "READY"


async def test_changed_requirements_are_tried_at_once(world: World) -> None:
    world.host.faults["one"] = EnvironmentFault("no", b"no\n")
    world.preheat.take([ONE])
    await world.clock.settle()
    world.preheat.take([TWO])
    await world.clock.settle()
    assert world.states() == {"two": "READY"}


@pytest.mark.parametrize(
    "fault", [BundleFault("the code can not be fetched"), ValueError("nobody foresaw this"), EnvironmentFault("", b"")]
)
async def test_no_failure_keeps_the_others_from_being_prepared(world: World, fault: Exception) -> None:
    world.host.faults["one"] = fault
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    assert world.states() == {"one": "FAILED", "two": "READY"}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeUnavailable("no engine"), HostFault("no space")]
)
async def test_a_trouble_of_this_host_is_no_fault_of_the_requirements(world: World, error: Exception) -> None:
    world.host.faults["one"] = error
    world.preheat.take([ONE])
    await world.clock.settle()
    assert world.states() == {"one": "WAITING"}
    del world.host.faults["one"]
    await world.clock.advance(LOOK_SECONDS)
    assert world.states() == {"one": "READY"}


async def test_nothing_is_prepared_while_something_is_in_the_way(world: World) -> None:
    world.host.obstacle = "the disk is full"
    world.preheat.take([ONE])
    await world.clock.settle()
    told = world.told()["one"]
    assert (told.state, told.message) == (PreheatState.WAITING, "the disk is full")
    assert world.host.asked == []
    world.host.obstacle = ""
    await world.clock.advance(LOOK_SECONDS)
    assert world.states() == {"one": "READY"}


async def test_nothing_is_prepared_for_an_image_that_is_not_there(world: World) -> None:
    world.host.image = ""
    world.preheat.take([ONE])
    await world.clock.advance(LOOK_SECONDS)
    assert world.host.asked == []
    world.host.image = "sha256:image"
    await world.clock.advance(LOOK_SECONDS)
    assert world.host.asked == ["one"]


async def test_another_image_makes_all_environments_anew(world: World) -> None:
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    world.host.image = "sha256:another"
    await world.clock.advance(LOOK_SECONDS)
    assert world.host.asked == ["one", "two", "one", "two"]


async def test_a_host_that_can_not_prepare_tries_ever_more_seldom(world: World) -> None:
    world.host.faults["one"] = OSError(28, "No space left on device")
    world.preheat.take([ONE])
    await world.clock.settle()
    await world.clock.advance(3600)
    assert 3600 / HINDERED_MAXIMUM_SECONDS <= len(world.host.asked) < 200
    del world.host.faults["one"]
    await world.clock.advance(HINDERED_MAXIMUM_SECONDS)
    assert world.states() == {"one": "READY"}


async def test_an_old_environment_is_prepared_again_and_stays_ready_meanwhile(world: World) -> None:
    world.preheat.take([ONE])
    await world.clock.settle()
    first = world.told()["one"].prepared
    await world.clock.advance(6 * DAY)
    assert world.host.asked == ["one"]
    world.host.gate.clear()
    await world.clock.advance(1.1 * DAY)
    assert world.host.asked == ["one", "one"]
    assert world.told() == {}
    world.host.gate.set()
    await world.clock.settle()
    assert world.told()["one"].prepared != first


async def test_an_old_environment_that_can_not_be_prepared_again_stays_in_use(world: World) -> None:
    world.preheat.take([ONE])
    await world.clock.settle()
    first = world.told()["one"]
    world.host.faults["one"] = EnvironmentFault("no", b"the index is away\n")
    await world.clock.advance(7.1 * DAY)
    told = world.told()["one"]
    assert (told.state, told.packages, told.prepared) == (PreheatState.READY, first.packages, first.prepared)
    assert "the index is away" in told.message


async def test_preparing_what_is_not_wanted_any_more_is_ended(world: World) -> None:
    world.host.gate.clear()
    world.preheat.take([ONE])
    await world.clock.settle()
    world.preheat.take([TWO])
    await world.clock.settle()
    world.host.gate.set()
    await world.clock.settle()
    assert world.host.asked == ["one", "two"]
    assert world.states() == {"two": "READY"}


async def test_what_a_run_had_prepared_is_ready_for_others(world: World) -> None:
    world.host.faults["one"] = EnvironmentFault("no", b"no\n")
    world.preheat.take([ONE])
    await world.clock.settle()
    world.preheat.note(*ONE.key, Generation("1", Path("1"), ("one==1",), environment="environment of one"))
    assert world.states() == {"one": "READY"}


async def test_what_was_removed_from_the_cache_is_not_called_ready_and_prepared_again(world: World) -> None:
    world.preheat.take([ONE, TWO])
    await world.clock.settle()
    world.told()
    world.host.lost.add("environment of one")
    await world.clock.advance(LOOK_SECONDS)
    told = world.told()
    assert told["one"].state is PreheatState.WAITING
    assert "want of room" in told["one"].message
    await world.clock.advance(RETRY_MAXIMUM_SECONDS)
    assert world.states() == {"one": "READY"}
    assert world.host.asked == ["one", "two", "one"]


async def test_only_the_last_environments_of_runs_are_remembered(world: World) -> None:
    for number in range(REMEMBERED + 10):
        world.preheat.note(f"sha256:{number}", "", Generation("1", Path("1")))
    world.preheat.take([])
    told = 0
    while results := world.preheat.report().results:
        told += len(results)
    assert told == REMEMBERED
