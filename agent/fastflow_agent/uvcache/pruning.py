"""Which generations go by age and by size. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Weighed:
    """A generation: `size` are the bytes it adds to all newer ones, `uses` when (seconds since 1970) each environment
    was used last that no newer one holds."""

    number: int
    size: int
    uses: tuple[float, ...]

    @property
    def last_use(self) -> float:
        """The last of `uses`; 0 without one."""
        return max(self.uses, default=0.0)


@dataclass(frozen=True)
class Verdict:
    """What is to go, and whether the newest generation is to be copied no further."""

    gone: tuple[int, ...] = ()
    close: bool = False


def judge(weighed: Sequence[Weighed], kept: Container[int], *, oldest_use: float, limit: int) -> Verdict:
    """Decides on all generations, ascending by number. What is `kept` stays, whatever its age and size.

    One whose environments were all used before `oldest_use` goes. If the rest has more than `limit` bytes, those used
    longest ago go until it has not; but never the newest, which is closed instead: what is prepared next begins a new
    line, and only with that there is it one of those that may go. It is closed as well once half of what it holds is
    not used any more.
    """
    gone = [each.number for each in weighed if each.number not in kept and each.uses and each.last_use < oldest_use]
    left = [each for each in weighed if each.number not in gone]
    size = sum(each.size for each in left)
    for each in sorted(left[:-1], key=lambda each: each.last_use):
        if size > limit and each.number not in kept:
            gone.append(each.number)
            size -= each.size
    newest = left[-1] if left else None
    unused = sum(use < oldest_use for use in newest.uses) if newest else 0
    return Verdict(tuple(gone), newest is not None and (size > limit or unused * 2 > len(newest.uses)))
