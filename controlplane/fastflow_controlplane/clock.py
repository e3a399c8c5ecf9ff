"""Clocks, passed in wherever time matters, so that tests move time instead of waiting for it.

Two clocks on purpose: `now` is a label for people (UTC, may leap forward), `monotonic` decides liveness and deadlines.
"""

import asyncio
import heapq
import itertools
import time
from typing import Protocol

from fastflow.service.wallclock import WallClock

MICROSECONDS = 1_000_000
"""Microseconds per second: stored times and durations are integers of microseconds."""


class Clock(Protocol):
    """What the control plane knows about time."""

    def now(self) -> int:
        """Wall clock, in microseconds since 1970-01-01 UTC. Never goes back, but may leap forward."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` of monotonic time."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        self._wall = WallClock()

    def now(self) -> int:
        """See `Clock.now`."""
        return self._wall.now()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until `advance` moves it: both clocks at once, sleepers woken in order."""

    def __init__(self, now: int = 1_700_000_000 * MICROSECONDS, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> int:
        """See `Clock.now`."""
        return self._now

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Moves time on, and lets every task woken by it run before returning."""
        await _let_tasks_run()
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, woken = heapq.heappop(self._sleepers)
            self._move_to(max(moment, self._monotonic))
            if not woken.done():
                woken.set_result(None)
            await _let_tasks_run()
        self._move_to(end)
        await _let_tasks_run()

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forth or back, as an operator does; nobody wakes of it."""
        self._now += round(seconds * MICROSECONDS)

    def _move_to(self, monotonic: float) -> None:
        self._now += round((monotonic - self._monotonic) * MICROSECONDS)
        self._monotonic = monotonic


async def _let_tasks_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
