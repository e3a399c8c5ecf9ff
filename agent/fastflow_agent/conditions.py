"""What an operator should know of this agent, sent with every heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog

from fastflow_agent.clock import Clock

log = structlog.get_logger(__name__)


class ConditionType(StrEnum):
    """Stable words."""

    RUNTIME_UNAVAILABLE = "RuntimeUnavailable"
    DOCKER_UNAVAILABLE = "DockerUnavailable"
    IMAGE_MISSING = "ImageMissing"
    DISK_FULL = "DiskFull"
    DATA_FOLDER_LOST = "DataFolderLost"
    UNCONFINED = "Unconfined"
    QUARANTINED = "Quarantined"
    ORPHANS = "OrphanedAttempts"
    STRAY_CONTAINERS = "StrayContainers"
    PROTOCOL_MISMATCH = "ProtocolMismatch"


BLOCKING = frozenset(
    {
        ConditionType.RUNTIME_UNAVAILABLE,
        ConditionType.DOCKER_UNAVAILABLE,
        ConditionType.DISK_FULL,
        ConditionType.DATA_FOLDER_LOST,
        ConditionType.QUARANTINED,
    }
)
"""Conditions under which the agent can take no run. A missing image is none: its runs fail and say how to mend it."""


@dataclass(frozen=True)
class Condition:
    """One condition: what is wrong, what to do, and since when (UTC)."""

    type: ConditionType
    message: str
    since: datetime

    @property
    def blocks_placement(self) -> bool:
        """Whether the agent gets no new runs meanwhile."""
        return self.type in BLOCKING


class Conditions:
    """The conditions that hold now."""

    def __init__(self, clock: Clock, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when something begins or ceases to hold, or its message changes."""
        self._clock = clock
        self._changed = changed
        self._held: dict[ConditionType, Condition] = {}

    def hold(self, kind: ConditionType, message: str) -> None:
        """Say that `kind` holds; `since` stays that of the first time."""
        held = self._held.get(kind)
        if held is None:
            log.warning("condition holds", condition=kind.value, message=message)
        self._held[kind] = Condition(kind, message, held.since if held else self._clock.now())
        if held is None or held.message != message:
            self._changed()

    def clear(self, kind: ConditionType) -> None:
        """Say that `kind` holds no longer."""
        if self._held.pop(kind, None):
            log.info("condition is over", condition=kind.value)
            self._changed()

    def holds(self, kind: ConditionType) -> bool:
        """Whether `kind` holds now."""
        return kind in self._held

    def all(self) -> list[Condition]:
        """What holds, oldest first."""
        return sorted(self._held.values(), key=lambda condition: condition.since)
