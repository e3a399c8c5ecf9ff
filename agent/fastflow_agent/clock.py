"""Time, passed in so that tests need not wait for it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from fastflow.service.wallclock import WallClock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """The host's clocks. `monotonic` measures (seconds), `now` labels (UTC)."""

    def __init__(self) -> None:
        self._wall = WallClock()

    def monotonic(self) -> float:
        """Seconds since the host was started; never goes back, and is the same for every process of one boot.

        Source: clock_gettime(2), CLOCK_MONOTONIC.
        """
        return time.monotonic()

    def now(self) -> datetime:
        """The wall clock: a label that never goes back, and the only time that outlives the process."""
        return _EPOCH + timedelta(microseconds=self._wall.now())

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)
