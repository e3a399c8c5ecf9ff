"""What an operator should know of the control plane itself: which of its parts can not work at present, and why.

A part finds out by itself that it fails, and is then looked at each second until it works again, whether or not
anybody asks something of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from fastflow_controlplane.clock import Clock
from fastflow_controlplane.disk import DISK_FULL
from fastflow_controlplane.errors import FastFlowError, Unavailable

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
"""How often a part that fails is tried again; costs nothing while all parts work."""

DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
"""`ErrorInfo.reason` of what fails because the database does."""


def is_told(error: FastFlowError) -> bool:
    """Whether a condition tells of it: then whoever is refused for it, again and again, needs no entry in our log."""
    return error.reason in (DISK_FULL, DATABASE_UNAVAILABLE)


async def repeat(clock: Clock, seconds: float, work: Callable[[], Awaitable[None]], complaint: str) -> None:
    """Does `work` after each pause of `seconds` until cancelled, also after it raised Unavailable.

    That goes into our log as `complaint`, unless a condition tells of it.
    """
    while True:
        await clock.sleep(seconds)
        try:
            await work()
        except Unavailable as error:
            if not is_told(error):
                log.warning(complaint, why=error.message)


class Part(StrEnum):
    """What can fail by itself."""

    DATABASE = "database"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a part can not work: `reason` as in ErrorInfo ("DISK_FULL"), and a message for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PartCondition:
    """A problem that holds, since when (microseconds UTC)."""

    part: Part
    problem: Problem
    since: int

    @property
    def type(self) -> str:
        """The stable word of `fastflow.v1.Condition`, for example "DiskFull"."""
        return "".join(word.capitalize() for word in self.problem.reason.split("_"))

    @property
    def message(self) -> str:
        """What is wrong, where, and what to do."""
        return self.problem.message

    @property
    def blocks_placement(self) -> bool:
        """Whether runs wait meanwhile; without logs they need not, for agents keep the output."""
        return self.part is Part.DATABASE


class Watched(Protocol):
    """A part as it is looked at."""

    @property
    def problem(self) -> Problem | None:
        """Why it does not work at present; None = it works."""

    async def recheck(self) -> None:
        """Where there is a problem, tries whether it still holds."""


class Conditions:
    """The conditions that hold now."""

    def __init__(self, parts: Mapping[Part, Watched], clock: Clock) -> None:
        self._parts = parts
        self._clock = clock
        self._held: dict[Part, PartCondition] = {}
        self.changed = asyncio.Event()
        """Set when a part begins or ceases to fail; for one listener, who clears it."""

    def all(self) -> list[PartCondition]:
        """What holds now."""
        for part, watched in self._parts.items():
            self._note(part, watched.problem)
        return list(self._held.values())

    async def watch(self) -> None:
        """Looks after failing parts until cancelled."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Looks once."""
        await asyncio.gather(*(watched.recheck() for watched in self._parts.values()))
        self.all()

    def _note(self, part: Part, problem: Problem | None) -> None:
        held = self._held.get(part)
        if problem == (held.problem if held else None):
            return
        if problem is None:
            del self._held[part]
        else:
            self._held[part] = PartCondition(part, problem, held.since if held else self._clock.now())
        self.changed.set()
