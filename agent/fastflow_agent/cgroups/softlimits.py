"""Soft limits: when a slot rises above one and when it is below it again. Pure; they never limit anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Literal

from fastflow_agent.facts import SoftLimitCrossed
from fastflow_agent.model import Limits

CPU_WINDOW_SECONDS = 5.0
"""CPU is judged by its average over this time: shorter bursts, an import say, are how programs are."""

CLEAR_SHARE = 0.9
"""A warning is cleared below this share of the limit, so that use that hovers at the limit is one warning, not many."""


@dataclass(frozen=True)
class Sample:
    """One moment of a slot: `monotonic` in seconds and `time` as its label (UTC); use in bytes and microseconds."""

    monotonic: float
    time: datetime
    working_set_bytes: int | None
    cpu_usec: int | None


class SoftLimits:
    """Watches one slot. Each crossing has one number, from 1; its raising and its clearing are told under it."""

    def __init__(self, limits: Limits, earlier: Iterable[SoftLimitCrossed] = ()) -> None:
        """`earlier` are the crossings told before the agent was restarted; those still raised go on."""
        told = {crossing.crossing: crossing for crossing in earlier}
        self._last = max(told, default=0)
        self._cpu: deque[Sample] = deque()
        raised = {crossing.kind: crossing for crossing in told.values() if crossing.clear_time is None}
        self._memory_watch = _Watch("MEMORY", limits.memory_soft_bytes, raised.get("MEMORY"))
        self._cpu_watch = _Watch("CPU", limits.cpu_soft_milli_cores, raised.get("CPU"))

    def feed(self, sample: Sample) -> list[SoftLimitCrossed]:
        """Take one sample, later than those before; returns what was raised or cleared by it."""
        memory = self._judge(self._memory_watch, sample.working_set_bytes, sample)
        cpu = self._judge(self._cpu_watch, self._average_cpu(sample), sample)
        return list(chain(memory, cpu))

    def finish(self, time: datetime, monotonic: float) -> list[SoftLimitCrossed]:
        """Clear what is still raised: the slot ended at `time`, `monotonic` by the clock of the samples."""
        return [watch.clear(time, monotonic) for watch in (self._memory_watch, self._cpu_watch) if watch.raised]

    def _judge(self, watch: _Watch, value: int | None, sample: Sample) -> Iterable[SoftLimitCrossed]:
        if value is None or watch.limit == 0:
            return
        if watch.raised:
            watch.peak = max(watch.peak, value)
            if value < watch.limit * CLEAR_SHARE:
                yield watch.clear(sample.time, sample.monotonic)
        elif value > watch.limit:
            self._last += 1
            yield watch.rise(self._last, value, sample)

    def _average_cpu(self, sample: Sample) -> int | None:
        """Milli-cores over the window; None until the slot has been seen for that long."""
        if sample.cpu_usec is None:
            return None
        self._cpu.append(sample)
        while len(self._cpu) > 1 and sample.monotonic - self._cpu[1].monotonic >= CPU_WINDOW_SECONDS:
            self._cpu.popleft()
        first = self._cpu[0]
        seconds = sample.monotonic - first.monotonic
        if seconds < CPU_WINDOW_SECONDS or first.cpu_usec is None:
            return None
        return milli_cores(sample.cpu_usec - first.cpu_usec, seconds)


class _Watch:
    """One limit (0 = none), and the crossing that is raised at the moment."""

    def __init__(self, kind: Literal["MEMORY", "CPU"], limit: int, raised: SoftLimitCrossed | None) -> None:
        self.kind = kind
        self.limit = limit
        self.raised = raised
        self.peak = raised.peak if raised else 0
        self._since: float | None = None

    def rise(self, number: int, value: int, sample: Sample) -> SoftLimitCrossed:
        self.peak, self._since = value, sample.monotonic
        self.raised = SoftLimitCrossed(number, self.kind, self.limit, value, raise_time=sample.time)
        return self.raised

    def clear(self, time: datetime, monotonic: float) -> SoftLimitCrossed:
        assert self.raised is not None
        time = max(time, self.raised.raise_time)
        # Raised by the process before this one, which did not write down when by this clock, the labels have to do.
        by_labels = (time - self.raised.raise_time).total_seconds()
        above = by_labels if self._since is None else monotonic - self._since
        cleared = replace(self.raised, peak=self.peak, clear_time=time, seconds_above=round(above, 3))
        self.raised = None
        return cleared


def milli_cores(cpu_usec: int, seconds: float) -> int:
    """CPU time used within a time, in thousandths of a core; more than 1000 where several cores worked."""
    return round(cpu_usec / seconds / 1000) if seconds > 0 else 0
