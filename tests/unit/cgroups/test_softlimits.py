"""Soft limits: raised once, cleared once, judged by a span of time."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from fastflow_agent.cgroups.softlimits import Sample, SoftLimits, milli_cores
from fastflow_agent.facts import SoftLimitCrossed
from fastflow_agent.model import Limits
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20
START = datetime(2026, 1, 1, tzinfo=UTC)


def limits(memory: int = 0, cpu: int = 0) -> Limits:
    return Limits(2000, 1024 * MIB, cpu_soft_milli_cores=cpu, memory_soft_bytes=memory)


@dataclass
class Feed:
    """Feeds one sample a second."""

    watch: SoftLimits
    second: int = 0
    cpu_usec: int = 0

    def memory(self, *sizes: int) -> list[SoftLimitCrossed]:
        told = []
        for size in sizes:
            told += self.watch.feed(Sample(100.0 + self.second, self.now, size, None))
            self.second += 1
        return told

    def cpu(self, milli_cores: int, seconds: int) -> list[SoftLimitCrossed]:
        told = []
        for _ in range(seconds):
            told += self.watch.feed(Sample(100.0 + self.second, self.now, None, self.cpu_usec))
            self.second += 1
            self.cpu_usec += milli_cores * 1000
        return told

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.second)


def test_memory_above_the_limit_is_told_once_and_its_end_once() -> None:
    feed = Feed(SoftLimits(limits(memory=100)))
    assert feed.memory(90, 100) == []
    (raised,) = feed.memory(120)
    assert raised == SoftLimitCrossed(1, "MEMORY", 100, 120, raise_time=START + timedelta(seconds=2))
    assert feed.memory(150, 140) == []
    (cleared,) = feed.memory(50)
    assert cleared == SoftLimitCrossed(
        1,
        "MEMORY",
        100,
        150,
        raise_time=raised.raise_time,
        clear_time=START + timedelta(seconds=5),
        seconds_above=3.0,
    )


def test_use_that_hovers_at_the_limit_is_one_crossing() -> None:
    feed = Feed(SoftLimits(limits(memory=100)))
    told = feed.memory(*[101, 99, 95, 91, 102] * 20)
    assert [crossing.crossing for crossing in told] == [1]


def test_each_crossing_has_a_number_of_its_own() -> None:
    feed = Feed(SoftLimits(limits(memory=100)))
    told = feed.memory(120, 10, 120, 10)
    assert [(one.crossing, one.clear_time is None) for one in told] == [(1, True), (1, False), (2, True), (2, False)]


def test_cpu_is_judged_by_its_average_over_five_seconds() -> None:
    feed = Feed(SoftLimits(limits(cpu=500)))
    assert feed.cpu(2000, 1) + feed.cpu(0, 9) == []
    assert feed.cpu(400, 10) == []
    (raised,) = feed.cpu(800, 6)
    assert (raised.kind, raised.limit) == ("CPU", 500)
    assert 500 < raised.peak <= 800


def test_cpu_above_one_core_is_counted_as_such() -> None:
    feed = Feed(SoftLimits(limits(cpu=1500)))
    (raised,) = feed.cpu(1900, 8)
    assert raised.peak == 1900


def test_a_short_program_is_not_judged_by_its_imports() -> None:
    assert Feed(SoftLimits(limits(cpu=100))).cpu(1000, 5) == []


def test_without_a_limit_nothing_is_told() -> None:
    feed = Feed(SoftLimits(limits()))
    assert feed.memory(10**12) + feed.cpu(64_000, 20) == []


def test_what_can_not_be_read_is_no_crossing_and_no_clearing() -> None:
    watch = SoftLimits(limits(memory=100))
    feed = Feed(watch)
    feed.memory(120)
    assert watch.feed(Sample(200.0, START, None, None)) == []
    assert [crossing.clear_time is None for crossing in feed.memory(10)] == [False]


def test_the_end_clears_what_is_raised() -> None:
    watch = SoftLimits(limits(memory=100))
    feed = Feed(watch)
    feed.memory(120, 130)
    (cleared,) = watch.finish(START + timedelta(seconds=10), 110.0)
    assert (cleared.peak, cleared.seconds_above, cleared.clear_time) == (130, 10.0, START + timedelta(seconds=10))
    assert watch.finish(START + timedelta(seconds=11), 111.0) == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_was_set_changes_neither_durations_nor_order(hours: int) -> None:
    watch = SoftLimits(limits(memory=100))
    Feed(watch).memory(120, 130)
    (cleared,) = watch.finish(START + timedelta(hours=hours, seconds=10), 110.0)
    assert cleared.seconds_above == 10.0
    assert cleared.clear_time is not None
    assert cleared.clear_time >= cleared.raise_time


def test_crossings_told_before_a_restart_go_on_under_their_numbers() -> None:
    raised = SoftLimitCrossed(3, "MEMORY", 100, 180, raise_time=START - timedelta(seconds=60))
    cleared = SoftLimitCrossed(2, "CPU", 100, 180, raise_time=START, clear_time=START, seconds_above=1)
    feed = Feed(SoftLimits(limits(memory=100), [cleared, raised]))
    assert feed.memory(120) == []
    (over,) = feed.memory(10)
    assert (over.crossing, over.peak, over.seconds_above) == (3, 180, 61.0)
    assert [crossing.crossing for crossing in feed.memory(150)] == [4]


@pytest.mark.parametrize(("usec", "seconds", "expected"), [(1_000_000, 1, 1000), (2_500_000, 2, 1250), (5, 0, 0)])
def test_milli_cores(usec: int, seconds: float, expected: int) -> None:
    assert milli_cores(usec, seconds) == expected


@given(st.lists(st.integers(0, 300), max_size=80))
def test_every_crossing_is_raised_then_cleared_whatever_comes(sizes: list[int]) -> None:
    watch = SoftLimits(limits(memory=100))
    feed = Feed(watch)
    told = feed.memory(*sizes)
    told += watch.finish(feed.now, 100.0 + feed.second)
    numbers = [crossing.crossing for crossing in told]
    assert numbers == sorted(2 * list(range(1, len(told) // 2 + 1)))
    assert [crossing.clear_time is None for crossing in told] == [True, False] * (len(told) // 2)
    assert all(crossing.peak > 100 for crossing in told)
    assert all(crossing.seconds_above > 0 for crossing in told[1::2])
