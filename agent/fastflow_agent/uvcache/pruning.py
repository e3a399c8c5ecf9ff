"""Which generations go by age and by size. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Weighed:
    """A generation: `size` are the bytes it adds to all newer ones, `last_use` (seconds since 1970) is that of any
    environment that no newer one holds."""

    number: int
    size: int
    last_use: float


@dataclass(frozen=True)
class Stock:
    """The stock: `size` are all its bytes, `alone` those of them that no generation with an environment has."""

    number: int
    size: int
    alone: int


def judge(
    weighed: Sequence[Weighed], stock: Stock | None, kept: Container[int], *, oldest_use: float, limit: int
) -> tuple[int, ...]:
    """Decides which go. What is `kept` stays, whatever its age and size.

    Environments go that were used before `oldest_use`. The stock goes once more than half of it is of no environment: a
    new one is begun with what is prepared next. While the rest has more than `limit` bytes, the stock goes, which only
    saves fetching again, then the environments that were used longest ago, but for the one used last.
    """
    gone = [each.number for each in weighed if each.number not in kept and each.last_use < oldest_use]
    left = sorted((each for each in weighed if each.number not in gone), key=lambda each: each.last_use)
    size = sum(each.size for each in left) + (stock.alone if stock else 0)
    if stock and stock.number not in kept and (size > limit or stock.alone * 2 > stock.size):
        gone.append(stock.number)
        size -= stock.alone
    for each in left[:-1]:
        if size > limit and each.number not in kept:
            gone.append(each.number)
            size -= each.size
    return tuple(gone)
