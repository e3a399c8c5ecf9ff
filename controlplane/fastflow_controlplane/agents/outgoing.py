"""What waits to be sent on one stream: bounded, in order, ended by one last message."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Outgoing(Generic[T]):
    """A bounded queue with a single taker. What `finish` leaves overtakes everything that still waits."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._waiting: deque[T] = deque()
        self._last: T | None = None
        self._room = asyncio.Event()
        self._some = asyncio.Event()
        self.finished = asyncio.Event()

    async def put(self, item: T) -> None:
        """Queues an item once there is room; drops it after `finish`."""
        while len(self._waiting) >= self._bound and not self.finished.is_set():
            self._room.clear()
            await self._room.wait()
        if not self.finished.is_set():
            self._waiting.append(item)
            self._some.set()

    async def take(self) -> tuple[T | None, bool]:
        """Returns the next item and False, or at the end what `finish` left and True."""
        while not self._waiting and not self.finished.is_set():
            self._some.clear()
            await self._some.wait()
        if self.finished.is_set():
            return self._last, True
        item = self._waiting.popleft()
        self._room.set()
        return item, False

    def finish(self, last: T | None) -> None:
        """Ends the queue with `last`, or without another message; only the first call counts."""
        if not self.finished.is_set():
            self._last = last
            self.finished.set()
            self._room.set()
            self._some.set()
