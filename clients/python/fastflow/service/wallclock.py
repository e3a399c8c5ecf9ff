"""The time of day as a label that keeps order, whatever is done to the host's clock."""

import threading
import time
from collections.abc import Callable

SLEW = 0.9
"""Speed of the label, against real time, while it is ahead of a clock that was set back: it never goes back, it never
stands still, and an hour is made up for in ten."""


class WallClock:
    """Microseconds since 1970-01-01 UTC. Never goes back within a process; a step forward is taken at once."""

    def __init__(
        self, wall_ns: Callable[[], int] | None = None, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns or (lambda: time.time_ns())
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._moment = monotonic_ns()
        self._last = self._wall_ns()

    def now(self) -> int:
        """Returns the time; may be called from any thread."""
        with self._lock:
            wall, moment = self._wall_ns(), self._monotonic_ns()
            passed, self._moment = moment - self._moment, moment
            self._last = wall if wall >= self._last else max(wall, self._last + int(passed * SLEW))
            return self._last // 1000
