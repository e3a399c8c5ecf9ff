"""How many preparations work at once, and whose turn is next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

AT_ONCE = 2
"""Preparations that work at once on one host: each may take a core and gigabytes, which no placement reckons with."""

SLOW_SECONDS = 600.0
"""A preparation that takes longer holds up no other any more: it hangs, has a slow line or compiles something large,
and which of these it is can not be seen from outside. It goes on, in the end until its time limit."""

MOST_AT_ONCE = 4
"""With slow ones and one ahead of runs."""


class Later(Protocol):
    """Calls something after so many seconds, as the loop's `call_later` does."""

    def __call__(self, seconds: float, callback: Callable[[], object], /) -> asyncio.TimerHandle:
        """Returns what cancels it."""


@dataclass(eq=False)
class _Turn:
    digest: str
    given: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    slow: bool = False


class Turns:
    """Gives turns to environments: first to those that are `urgent`, then to who has waited longest.

    `at_once` that are urgent work at once, and slow ones do not count; what is not urgent begins only where fewer than
    that work in all, and takes no turn from what is. `urgent` is asked when there is a turn to give: by then a run may
    wait for what was to be ahead of all runs. `changed` is called when `ahead` may have changed. Who waits for a turn
    is to hold nothing that others need.
    """

    def __init__(
        self, urgent: Callable[[str], bool], changed: Callable[[], None], later: Later, at_once: int = AT_ONCE
    ) -> None:
        self._urgent = urgent
        self._at_once = at_once
        self._changed = changed
        self._later = later
        self._working: list[_Turn] = []
        self._waiting: list[_Turn] = []

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[None]:
        """Waits for a turn for an environment, which lasts as long as the block."""
        turn = _Turn(digest)
        self._waiting.append(turn)
        self.look()
        timer: asyncio.TimerHandle | None = None
        try:
            if not turn.given.done():
                log.info("an environment waits for its turn", environment=digest, waiting=len(self._waiting))
            await turn.given
            timer = self._later(SLOW_SECONDS, lambda: self._pass(turn))
            yield
        finally:
            if timer is not None:
                timer.cancel()
            # One that gives up may have been given its turn at that very moment.
            for turns in (self._working, self._waiting):
                if turn in turns:
                    turns.remove(turn)
            self.look()

    def look(self) -> None:
        """Gives the turns there are to give; to be called when what is urgent has changed."""
        for turn in self._in_order():
            # Who was cancelled goes only in its own next step.
            if not turn.given.done() and self._is_room_for(turn):
                self._waiting.remove(turn)
                self._working.append(turn)
                turn.given.set_result(None)
        self._changed()

    def ahead(self) -> dict[str, int]:
        """Of each environment here: how many are prepared before it; 0 = it is being prepared."""
        working = dict.fromkeys((turn.digest for turn in self._working), 0)
        return working | {turn.digest: len(working) + place for place, turn in enumerate(self._in_order())}

    def _in_order(self) -> list[_Turn]:
        return sorted(self._waiting, key=lambda turn: not self._urgent(turn.digest))

    def _is_room_for(self, turn: _Turn) -> bool:
        if not self._urgent(turn.digest):
            return len(self._working) < self._at_once
        counted = [each for each in self._working if not each.slow and self._urgent(each.digest)]
        return len(counted) < self._at_once and len(self._working) < MOST_AT_ONCE

    def _pass(self, turn: _Turn) -> None:
        turn.slow = True
        log.warning("an environment takes long to be prepared and holds up no other", environment=turn.digest)
        self.look()
