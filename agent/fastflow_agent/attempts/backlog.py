"""How much output of one attempt waits on this host, for those who freeze its program for it."""

from __future__ import annotations

import asyncio

DRAINED_SHARE = 4
"""A backlog counts as drained below this part of the quota, so that a program is not frozen again at once."""


class Backlog:
    """What the shipper said last."""

    def __init__(self, *, paused: bool) -> None:
        self.paused = paused
        """Whether the program is frozen for it."""
        self.over: bool | None = None
        """Whether more waits than may; None while that is not known."""
        self.waiting = 0
        self.peak = 0
        """The most that waited since it became too much."""
        self.quota = 0
        self._changed = asyncio.Event()

    def tell(self, waiting: int, quota: int) -> None:
        """Take how many bytes wait, and how many may."""
        over = waiting > (quota // DRAINED_SHARE if self.paused else quota)
        self.waiting, self.quota = waiting, quota
        self.peak = max(self.peak, waiting) if over else 0
        if over is not self.over:
            self.over = over
            self._changed.set()

    async def changed(self) -> None:
        """Return once `over` has changed since the last look at it (`seen`)."""
        await self._changed.wait()

    def seen(self) -> None:
        """Somebody looks at `over` now."""
        self._changed.clear()
