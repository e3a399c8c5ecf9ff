"""Ids of runs: UUIDv7 text, so that they sort by time; people use the last eight hex digits."""

import secrets
import uuid
from collections.abc import Callable

from fastflow.service.wallclock import WallClock

SHORT_DIGITS = 8


_WALL = WallClock()


def new_id(now_ms: Callable[[], int] = lambda: _WALL.now() // 1000) -> str:
    """Returns a new UUIDv7 (RFC 9562, section 5.7) as lowercase text with dashes.

    `now_ms` gives milliseconds since the Unix epoch. The default's never go back, so that lists keep their order.
    """
    value = (now_ms() & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def short(run_id: str) -> str:
    """Returns the last eight hex digits. The first eight are a clock and collide."""
    return run_id[-SHORT_DIGITS:]
