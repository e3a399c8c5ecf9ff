"""Tells tasks that wait for a run that it changed. Nothing is queued per waiter, so a slow one only lags."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

REMEMBERED_RUNS = 1000
"""Runs whose last change is kept apart; for one that is forgotten a waiter wakes once too often, never too rarely.

What counts is how many change between the read of a run and the wait for it, which is a matter of milliseconds.
"""


class Changes:
    """Counts changes, over all runs, and wakes who waits for one run. Belongs to the event loop."""

    def __init__(self, remembered: int = REMEMBERED_RUNS) -> None:
        self._remembered = remembered
        self._count = 0
        self._forgotten_until = 0
        self._last: OrderedDict[str, int] = OrderedDict()
        self._watchers: Counter[str] = Counter()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    @property
    def count(self) -> int:
        """The number to pass to `wait`, taken before the run is read."""
        return self._count

    def notify(self, run_id: str) -> None:
        """Says that the run changed; call it after the commit."""
        self._count += 1
        self._last[run_id] = self._count
        self._last.move_to_end(run_id)
        if len(self._last) > self._remembered:
            _, self._forgotten_until = self._last.popitem(last=False)
        for waiter in self._waiters.pop(run_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    @contextmanager
    def watching(self, run_id: str) -> Iterator[None]:
        """Makes the run one of `watched`; enter it before the run is read."""
        self._watchers[run_id] += 1
        try:
            yield
        finally:
            self._watchers[run_id] -= 1
            if not self._watchers[run_id]:
                del self._watchers[run_id]

    def watched(self) -> list[str]:
        """Returns the runs that somebody watches, for changes that no write announces."""
        return list(self._watchers)

    async def wait(self, run_id: str, seen: int) -> int:
        """Returns once the run changed after the count `seen`, with the count to wait from next."""
        if self._last.get(run_id, self._forgotten_until) <= seen:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(run_id, set()).add(waiter)
            try:
                await waiter
            finally:
                waiting = self._waiters.get(run_id)
                if waiting is not None:
                    waiting.discard(waiter)
                    if not waiting:
                        del self._waiters[run_id]
        return self._count
