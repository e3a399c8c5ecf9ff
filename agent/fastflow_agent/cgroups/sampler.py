"""One task that samples the control groups of all slots and tells what it sees."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import structlog

from fastflow_agent.cgroups.paths import SlotGroup
from fastflow_agent.cgroups.softlimits import Sample, SoftLimits, milli_cores
from fastflow_agent.cgroups.stats import Reading, Usage
from fastflow_agent.cgroups.verdict import PEAK_SHARE
from fastflow_agent.clock import Clock
from fastflow_agent.facts import SoftLimitCrossed
from fastflow_agent.model import Limits, SlotId

log = structlog.get_logger(__name__)

SAMPLE_SECONDS = 1.0
"""Time between two samples of a slot: what people watch, at a cost of about ten small reads."""

NEAR_LIMIT_SECONDS = 0.1
"""Time between two samples near the memory limit on version 1: its OOM counter is gone with the container."""

FIRST_SAMPLE_SECONDS = 0.25
"""Age from which a slot is sampled: before, what is seen may be the start wrapper on its way to the program."""

NEAR_LIMIT_SHARE = 0.9
"""Share of the memory limit from which on a slot is near it."""


@dataclass
class _Slot:
    group: SlotGroup
    limits: Limits
    soft_limits: SoftLimits
    begin: float
    """Monotonic time (seconds) since when it is sampled."""
    last: Reading = field(default_factory=Reading)
    counted: tuple[float, int] | None = None
    """Monotonic time and CPU microseconds of the last full sample: where the next rate begins."""
    oom_told: bool = False
    end: asyncio.Task[None] | None = None
    """Waits for the container's end."""

    @property
    def near_limit(self) -> bool:
        """Whether an OOM may come at any moment and would leave no trace."""
        used = self.last.memory_bytes
        return (
            self.group.version != "v2" and used is not None and used > NEAR_LIMIT_SHARE * self.limits.memory_hard_bytes
        )


class Sampler:
    """Samples every slot each second while `run` runs. Callbacks are called on the loop and must not block.

    `on_usage(slot, usage)` once a second; `on_crossing(slot, crossing)` when a soft limit is crossed either way;
    `on_oom(slot, kills)` once, when the kernel killed a process at the hard limit and the container still lives.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        on_usage: Callable[[SlotId, Usage], None],
        on_crossing: Callable[[SlotId, SoftLimitCrossed], None],
        on_oom: Callable[[SlotId, int], None],
        interval: float = SAMPLE_SECONDS,
    ) -> None:
        """`interval` is the time in seconds between two samples of a slot."""
        self._clock = clock
        self._on_usage = on_usage
        self._on_crossing = on_crossing
        self._on_oom = on_oom
        self._interval = interval
        self._slots: dict[SlotId, _Slot] = {}
        # One thread: a read that hangs in the kernel holds up telemetry, and nothing else.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cgroup-reader")

    def add(self, slot: SlotId, group: SlotGroup, limits: Limits, earlier: Iterable[SoftLimitCrossed] = ()) -> None:
        """Sample `slot` from now on; `earlier` are its crossings told by an agent before this one."""
        watched = _Slot(group, limits, SoftLimits(limits, earlier), self._clock.monotonic())
        watched.end = asyncio.get_running_loop().create_task(self._read_at_end(watched), name=f"end of {slot}")
        self._slots[slot] = watched

    async def finish(self, slot: SlotId) -> Reading | None:
        """Stop sampling a slot that has ended, and read what its parent group keeps: the evidence for its verdict.

        Crossings still raised are told as cleared. None for a slot that was not added. Call it before the group goes.
        """
        watched = self._slots.pop(slot, None)
        if watched is None:
            return None
        for crossing in watched.soft_limits.finish(self._clock.now(), self._clock.monotonic()):
            self._on_crossing(slot, crossing)
        reading = await self._read(watched.group)
        # One thread reads in order, so a reading begun at the end of the container is taken by now.
        if watched.end:
            watched.end.cancel()
        return reading.after(watched.last)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            next_round = self._clock.monotonic() + self._interval
            await self._sample(list(self._slots), full=True)
            while (left := next_round - self._clock.monotonic()) > 0:
                near = [slot for slot, watched in self._slots.items() if watched.near_limit]
                await self._clock.sleep(min(left, NEAR_LIMIT_SECONDS) if near else left)
                if near and self._clock.monotonic() < next_round:
                    await self._sample(near, full=False)

    def close(self) -> None:
        """Let go of the reading thread, without waiting for it."""
        for watched in self._slots.values():
            if watched.end:
                watched.end.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, group: SlotGroup) -> Reading:
        return await asyncio.get_running_loop().run_in_executor(self._thread, group.read)

    async def _read_at_end(self, watched: _Slot) -> None:
        """Read once more when the container's last process has ended.

        What only its own group tells goes with it some ten milliseconds later, long before its engine says so. On a
        host too busy for that, the last sample stands: up to a second's throttled time is missing then.
        """
        number = await asyncio.get_running_loop().run_in_executor(self._thread, watched.group.first_process)
        if number is not None and await _has_ended(number):
            watched.last = (await self._read(watched.group)).after(watched.last)

    async def _sample(self, slots: Iterable[SlotId], *, full: bool) -> None:
        for slot in slots:
            watched = self._slots.get(slot)
            if watched is None or self._clock.monotonic() - watched.begin < FIRST_SAMPLE_SECONDS:
                continue
            reading = await self._read(watched.group)
            # It may have ended meanwhile: `finish` has then told all there is to tell.
            if self._slots.get(slot) is watched:
                self._take(slot, watched, reading, full=full)

    def _take(self, slot: SlotId, watched: _Slot, seen: Reading, *, full: bool) -> None:
        reading = seen.over(watched.last)
        now, cpu = self._clock.monotonic(), reading.usage.cpu_usec
        if full and cpu is not None and not seen.ended:
            if watched.counted:
                since, before = watched.counted
                rate = milli_cores(cpu - before, now - since)
                reading = replace(reading, usage=replace(reading.usage, cpu_milli_cores=rate))
            watched.counted = now, cpu
        watched.last = reading
        if not watched.oom_told and _killed_at_limit(reading, watched):
            watched.oom_told = True
            log.warning("the kernel killed a process at the memory limit", slot=slot, kills=reading.oom_kills)
            self._on_oom(slot, reading.oom_kills or 0)
        sample = Sample(now, self._clock.now(), reading.usage.working_set_bytes, cpu)
        for crossing in watched.soft_limits.feed(sample):
            self._on_crossing(slot, crossing)
        if full:
            self._on_usage(slot, reading.usage)


async def _has_ended(number: int) -> bool:
    """Return once a process has ended; false at once where that can not be waited for (pidfd_open(2), kernel 5.3)."""
    try:
        process = os.pidfd_open(number)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)
    return True


def _killed_at_limit(reading: Reading, watched: _Slot) -> bool:
    """Whether a kill was the limit's and not the host's: the counters count both."""
    if not reading.oom_kills:
        return False
    if watched.group.version == "v2":
        return reading.limit_hits != 0
    peak = reading.usage.peak_memory_bytes
    return peak is None or peak >= PEAK_SHARE * watched.limits.memory_hard_bytes
