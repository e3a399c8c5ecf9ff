"""How many preparations work at once, and whose turn is next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

AT_ONCE = 2
"""Preparations that work at once on one host: each may take a core and gigabytes, which no placement reckons with. One
of them may be ahead of runs, so that another is left for what a run waits for."""


class Turns:
    """Gives turns to `at_once` environments: first to those that are `urgent`, then to who has waited longest.

    `urgent` is asked when there is a turn to give: by then a run may wait for what was to be ahead of all runs. Who
    waits for a turn is to hold nothing that others need.
    """

    def __init__(self, urgent: Callable[[str], bool], at_once: int = AT_ONCE) -> None:
        self._urgent = urgent
        self._free = at_once
        self._waiting: dict[asyncio.Future[None], str] = {}

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[None]:
        """Waits for a turn for an environment, which lasts as long as the block."""
        await self._take(digest)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, digest: str) -> None:
        if self._free:
            self._free -= 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting[given] = digest
        try:
            await given
        except asyncio.CancelledError:
            self._waiting.pop(given, None)
            if not given.cancelled():
                # It was given at the very moment.
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        given = min(self._waiting, key=lambda each: not self._urgent(self._waiting[each]), default=None)
        if given is None:
            self._free += 1
        else:
            del self._waiting[given]
            given.set_result(None)
