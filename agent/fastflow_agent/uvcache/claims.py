"""Who uses which generation now. Pure, but for the clock it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastflow_agent.model import SlotId
from fastflow_agent.uvcache.generations import Held

LEASE_SECONDS = 60.0
"""A generation just handed out is not removed for this long: its new user needs a moment to pin it."""


class Claims:
    """Pins of slots, leases of what was just handed out, and what preparations work with. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pins: dict[SlotId, int] = {}
        self._leases: dict[int, float] = {}
        self._held: Counter[int] = Counter()

    def pin(self, number: int, slot: SlotId) -> None:
        """Keeps a generation while `slot` uses it. A slot pins one; pinning again replaces."""
        self._pins[slot] = number

    def unpin(self, slot: SlotId) -> bool:
        """Ends the use by `slot`; false if there is none."""
        return self._pins.pop(slot, None) is not None

    def pinned(self, slot: SlotId) -> int | None:
        """What `slot` uses."""
        return self._pins.get(slot)

    def lease(self, number: int) -> None:
        """Keeps a generation for LEASE_SECONDS."""
        self._leases[number] = self._clock() + LEASE_SECONDS

    @contextmanager
    def holding(self, held: Held | None) -> Iterator[None]:
        """Keeps a generation meanwhile, if one is given."""
        numbers = [] if held is None else [held.number]
        self._held.update(numbers)
        try:
            yield
        finally:
            self._held.subtract(numbers)

    def kept(self) -> frozenset[int]:
        """The generations that somebody uses now."""
        now = self._clock()
        self._leases = {number: until for number, until in self._leases.items() if until > now}
        return frozenset((*self._pins.values(), *self._leases, *+self._held))
