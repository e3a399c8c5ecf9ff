"""When the control plane worked: the only time in which a run waits in its queue."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Uptime:
    """A time in which the control plane, and its database, were seen to work again and again. Microseconds UTC."""

    start: int
    end: int


def since(uptimes: Iterable[Uptime], usec: int) -> int | None:
    """Returns the moment from which on there were `usec` microseconds of the uptimes; None = there were not so many.

    The uptimes come newest first.
    """
    for uptime in uptimes:
        length = uptime.end - uptime.start
        if length >= usec:
            return uptime.end - usec
        usec -= length
    return None
