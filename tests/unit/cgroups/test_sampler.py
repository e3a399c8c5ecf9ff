"""The sampler: each slot once a second, near the limit more often where that matters, all told once."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastflow_agent.cgroups.paths import SlotGroup
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.cgroups.stats import Reading, Usage
from fastflow_agent.clock import Clock
from fastflow_agent.facts import SoftLimitCrossed
from fastflow_agent.model import Limits, SlotId

MIB = 1 << 20
LIMIT = 100 * MIB
SLOT = SlotId("0123456789abcdef")


class SteppedClock(Clock):
    """Time that passes only when the test lets it."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time - 1000)

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.Event()
        self._sleepers.append((self.time + seconds, wake))
        await wake.wait()

    async def pass_to(self, time: float) -> None:
        """Let time pass, waking each sleeper when it is due and waiting until it sleeps again."""
        await self._settle()
        while self._sleepers and min(due for due, _ in self._sleepers) <= time + 1e-9:
            due, wake = min(self._sleepers, key=lambda sleeper: sleeper[0])
            self._sleepers.remove((due, wake))
            self.time = max(self.time, due)
            wake.set()
            await self._settle()
        self.time = time

    async def _settle(self) -> None:
        async with asyncio.timeout(60):
            while not self._sleepers:  # noqa: ASYNC110 - a thread reads, and real time must pass for it
                await asyncio.sleep(0)


class ScriptedGroup(SlotGroup):
    """A group that reads as the test says at each moment of the clock."""

    def __init__(self, clock: SteppedClock, version: str, script: Callable[[float], Reading]) -> None:
        super().__init__({}, "v2" if version == "v2" else "v1")
        self._clock = clock
        self._script = script
        self.reads: list[float] = []
        self.first: int | None = None

    def first_process(self, proc: Path = Path("/proc")) -> int | None:
        return self.first

    def read(self) -> Reading:
        self.reads.append(round(self._clock.time - 1000, 3))
        return self._script(self._clock.time - 1000)


class World:
    """A sampler, its clock, and what it told."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.usages: list[Usage] = []
        self.crossings: list[SoftLimitCrossed] = []
        self.kills: list[int] = []
        self.sampler = Sampler(
            self.clock,
            on_usage=lambda _, usage: self.usages.append(usage),
            on_crossing=lambda _, crossing: self.crossings.append(crossing),
            on_oom=lambda _, kills: self.kills.append(kills),
        )

    def add(
        self, version: str, script: Callable[[float], Reading], soft: int = 0, first: int | None = None
    ) -> ScriptedGroup:
        group = ScriptedGroup(self.clock, version, script)
        group.first = first
        self.sampler.add(SLOT, group, Limits(1000, LIMIT, memory_soft_bytes=soft))
        return group

    async def pass_seconds(self, seconds: float) -> None:
        await self.clock.pass_to(self.clock.time + seconds)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    running = asyncio.ensure_future(world.sampler.run())
    yield world
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    world.sampler.close()


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """A real process that lives until it is killed."""
    program = subprocess.Popen(["sleep", "60"])
    yield program
    program.kill()
    program.wait()


def using(memory: int, cpu_usec: int = 0, peak: int | None = None, **more: int) -> Reading:
    usage = Usage(working_set_bytes=memory, cpu_usec=cpu_usec, peak_memory_bytes=peak)
    return Reading(usage, memory_bytes=memory, **more)


async def test_a_slot_is_read_once_a_second(world: World) -> None:
    group = world.add("v2", lambda _: using(10 * MIB))
    await world.pass_seconds(3.5)
    assert group.reads == [1, 2, 3]
    assert len(world.usages) == 3


async def test_cpu_is_told_as_the_rate_between_two_samples(world: World) -> None:
    world.add("v2", lambda second: using(10 * MIB, cpu_usec=int(second * 1_500_000)))
    await world.pass_seconds(3.5)
    assert [usage.cpu_milli_cores for usage in world.usages] == [None, 1500, 1500]


async def test_near_the_limit_version_1_is_read_ten_times_a_second(world: World) -> None:
    group = world.add("v1", lambda second: using(95 * MIB if 0.5 < second < 1.5 else 10 * MIB))
    await world.pass_seconds(3.05)
    assert group.reads == [1, 1.1, 1.2, 1.3, 1.4, 1.5, 2, 3]
    assert len(world.usages) == 3


async def test_version_2_needs_no_hurry_near_the_limit(world: World) -> None:
    group = world.add("v2", lambda _: using(99 * MIB))
    await world.pass_seconds(2.5)
    assert group.reads == [1, 2]


async def test_a_childs_oom_is_told_once(world: World) -> None:
    world.add("v1", lambda second: using(60 * MIB, peak=LIMIT, oom_kills=2 if second > 0.5 else 0))
    await world.pass_seconds(4.5)
    assert world.kills == [2]


async def test_a_kill_that_was_not_the_limits_is_not_told(world: World) -> None:
    world.add("v1", lambda _: using(60 * MIB, peak=61 * MIB, oom_kills=1))
    await world.pass_seconds(1.5)
    await world.sampler.finish(SLOT)
    world.add("v2", lambda _: using(60 * MIB, peak=61 * MIB, oom_kills=1, limit_hits=0))
    await world.pass_seconds(2)
    assert world.kills == []


async def test_a_soft_limit_is_told_when_crossed_and_cleared_at_the_end(world: World) -> None:
    world.add("v2", lambda second: using(80 * MIB if second > 0.5 else 10 * MIB), soft=64 * MIB)
    await world.pass_seconds(2.5)
    assert [crossing.clear_time for crossing in world.crossings] == [None]
    await world.sampler.finish(SLOT)
    raised, cleared = world.crossings
    assert (cleared.crossing, cleared.seconds_above) == (raised.crossing, 1.5)


async def test_the_last_reading_keeps_what_only_the_living_could_tell(world: World) -> None:
    def script(second: float) -> Reading:
        if second < 2.5:
            usage = Usage(working_set_bytes=7, throttled_usec=9, cpu_usec=int(second * 1e6), pids=3)
            return Reading(usage, memory_bytes=8, oom_kills=1)
        return Reading(Usage(cpu_usec=2_200_000, peak_memory_bytes=50, working_set_bytes=0, pids=0))

    world.add("v1", script)
    await world.pass_seconds(2.9)
    final = await world.sampler.finish(SLOT)
    assert final
    assert final.oom_kills == 1
    assert final.usage == Usage(
        peak_memory_bytes=50, cpu_usec=2_200_000, throttled_usec=9, working_set_bytes=7, pids=3, cpu_milli_cores=1000
    )


async def test_what_goes_with_the_container_is_read_when_its_last_process_ends(
    world: World, program: subprocess.Popen[bytes]
) -> None:
    usages = iter([Usage(throttled_usec=700_000, working_set_bytes=0, pids=1), Usage(working_set_bytes=0, pids=0)])
    group = world.add("v1", lambda _: Reading(next(usages), oom_kills=1), first=program.pid)
    assert group.reads == []
    program.kill()
    async with asyncio.timeout(60):
        while not group.reads:  # noqa: ASYNC110 - a process ends, and a thread reads
            await asyncio.sleep(0.001)
    final = await world.sampler.finish(SLOT)
    assert final
    assert (final.usage, final.oom_kills) == (Usage(throttled_usec=700_000), 1)


@pytest.mark.parametrize("first", [None, 2**22 - 1])
async def test_a_container_whose_processes_can_not_be_seen_is_sampled_all_the_same(
    world: World, first: int | None
) -> None:
    world.add("v1", lambda _: using(7), first=first)
    await world.pass_seconds(1.5)
    final = await world.sampler.finish(SLOT)
    assert final
    assert final.usage.working_set_bytes == 7


async def test_the_start_wrapper_is_not_taken_for_the_program(world: World) -> None:
    await world.pass_seconds(0.9)
    world.add("v2", lambda second: using(MIB // 2 if second < 1.1 else 30 * MIB))
    await world.pass_seconds(0.5)
    assert world.usages == []
    await world.pass_seconds(1)
    assert [usage.working_set_bytes for usage in world.usages] == [30 * MIB]


@pytest.mark.parametrize("left", [0, 1])
async def test_what_is_left_once_the_program_is_over_is_not_its_use(world: World, left: int) -> None:
    world.add("v2", lambda _: Reading(Usage(working_set_bytes=400_000, pids=left, cpu_usec=5), memory_bytes=400_000))
    await world.pass_seconds(1.5)
    final = await world.sampler.finish(SLOT)
    assert final
    assert final.usage == Usage(cpu_usec=5, peak_memory_bytes=400_000)


async def test_a_finished_slot_is_not_read_again(world: World) -> None:
    group = world.add("v2", lambda _: using(10 * MIB))
    await world.pass_seconds(0.5)
    await world.sampler.finish(SLOT)
    assert await world.sampler.finish(SLOT) is None
    reads = len(group.reads)
    await world.pass_seconds(3)
    assert len(group.reads) == reads


async def test_a_group_that_goes_while_it_is_read_stops_nobody(world: World, tmp_path: Path) -> None:
    world.sampler.add(SlotId("ffffffffffffffff"), SlotGroup({"": tmp_path / "gone"}, "v2"), Limits(1000, LIMIT))
    world.add("v2", lambda _: using(10 * MIB))
    await world.pass_seconds(2.5)
    assert [usage.working_set_bytes for usage in world.usages] == [None, 10 * MIB, None, 10 * MIB]
