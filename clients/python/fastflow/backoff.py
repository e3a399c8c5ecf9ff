"""Waiting times between attempts to reach a peer."""

import random
from collections.abc import Callable


class Backoff:
    """Exponential growth with full jitter, so that many clients do not return in step.

    Times are in seconds. `uniform(low, high)` is injectable for tests.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(
        self,
        initial: float,
        maximum: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._uniform = uniform
        self._failures = 0

    def next(self) -> float:
        """Returns how long to wait before the next attempt, between a tenth of the ceiling and the ceiling."""
        ceiling = min(self._maximum, self._initial * 2**self._failures)
        # The exponent stops growing at the ceiling: a peer away for days must not overflow a float.
        if ceiling < self._maximum:
            self._failures += 1
        return self._uniform(ceiling / 10, ceiling)

    def reset(self) -> None:
        """Starts over, after a success."""
        self._failures = 0
