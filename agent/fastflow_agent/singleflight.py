"""Work that several wait for and that is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Joins callers that ask for the same at the same time; work nobody waits for any more is cancelled."""

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Task[T]] = {}
        self._waiting: dict[str, int] = {}
        self._under_way: set[asyncio.Task[T]] = set()

    async def do(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Returns what `work` returns or raises what it raises; `key` says what is the same."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(work(), name=f"once: {key}")
            self._under_way.add(flight)
            flight.add_done_callback(self._under_way.discard)
            # Of work that was cancelled nobody asks how it ended.
            flight.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(flight)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._flights[key]
                flight.cancel()

    async def idle(self) -> None:
        """Returns once no work is under way; work that was cancelled may take its time to clear up."""
        while self._under_way:
            await asyncio.wait(self._under_way)
