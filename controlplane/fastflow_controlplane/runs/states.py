"""The states of runs and attempts, and who may move them: one table, used by every write.

A run mirrors its newest attempt. A write names its actor and target; `sources` gives the states from which the table
allows it, and the write compares-and-sets on them, so that whatever arrives late changes nothing.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from types import MappingProxyType


class RunState(StrEnum):
    """Names as in `fastflow.v1.RunState`, without prefix."""

    QUEUED = "QUEUED"
    ASSIGNED = "ASSIGNED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    LOST = "LOST"


class Reason(StrEnum):
    """What happened in particular. Names as in `fastflow.v1.Reason`, without prefix."""

    NONE = ""
    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    OOM_KILLED = "OOM_KILLED"
    IMAGE = "IMAGE"
    BUNDLE = "BUNDLE"
    ENVIRONMENT = "ENVIRONMENT"
    WRAPPER = "WRAPPER"
    CONTAINER_VANISHED = "CONTAINER_VANISHED"
    HOST_REBOOT = "HOST_REBOOT"
    REJECTED = "REJECTED"
    STATE_LOST = "STATE_LOST"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    TIMEOUT = "TIMEOUT"
    AGENT_LOST = "AGENT_LOST"
    PIPELINE_GONE = "PIPELINE_GONE"  # in rows of former versions
    QUEUE_DEADLINE = "QUEUE_DEADLINE"
    RUNTIME = "RUNTIME"
    DISK_FULL = "DISK_FULL"
    SECRET = "SECRET"
    AGENT_DRAINED = "AGENT_DRAINED"
    ABANDONED = "ABANDONED"


class Actor(StrEnum):
    """Who moves a run."""

    API = "API"
    SCHEDULER = "SCHEDULER"
    AGENT = "AGENT"
    REAPER = "REAPER"
    RETRY = "RETRY"


TERMINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT, RunState.LOST})
"""States that nothing leaves, except a run by a retry (which is a new attempt)."""

LIVE = (RunState.ASSIGNED, RunState.PREPARING, RunState.RUNNING, RunState.STOPPING)
"""States of an attempt that an agent answers for."""

TRANSITIONS: Mapping[tuple[RunState | None, RunState], Actor] = MappingProxyType(
    {
        (None, RunState.QUEUED): Actor.API,
        # No live attempt.
        (RunState.QUEUED, RunState.CANCELLED): Actor.API,
        # The agent is active and it fits.
        (RunState.QUEUED, RunState.ASSIGNED): Actor.SCHEDULER,
        (RunState.ASSIGNED, RunState.PREPARING): Actor.AGENT,
        # It says something else of what it waits for.
        (RunState.PREPARING, RunState.PREPARING): Actor.AGENT,
        # Could not start: placed elsewhere.
        (RunState.ASSIGNED, RunState.QUEUED): Actor.AGENT,
        (RunState.PREPARING, RunState.QUEUED): Actor.AGENT,
        # A permanent fault.
        (RunState.ASSIGNED, RunState.FAILED): Actor.AGENT,
        (RunState.PREPARING, RunState.FAILED): Actor.AGENT,
        # User code may run.
        (RunState.PREPARING, RunState.RUNNING): Actor.AGENT,
        # Saw that a stop is desired, or its own timeout.
        (RunState.ASSIGNED, RunState.STOPPING): Actor.AGENT,
        (RunState.PREPARING, RunState.STOPPING): Actor.AGENT,
        (RunState.RUNNING, RunState.STOPPING): Actor.AGENT,
        (RunState.RUNNING, RunState.SUCCEEDED): Actor.AGENT,
        (RunState.RUNNING, RunState.FAILED): Actor.AGENT,
        (RunState.STOPPING, RunState.CANCELLED): Actor.AGENT,
        (RunState.STOPPING, RunState.TIMED_OUT): Actor.AGENT,
        # A stop that lost to the exit keeps the real result.
        (RunState.STOPPING, RunState.SUCCEEDED): Actor.AGENT,
        (RunState.STOPPING, RunState.FAILED): Actor.AGENT,
        # The queue deadline.
        (RunState.QUEUED, RunState.FAILED): Actor.REAPER,
        # The agent was away for too long.
        (RunState.ASSIGNED, RunState.LOST): Actor.REAPER,
        (RunState.PREPARING, RunState.LOST): Actor.REAPER,
        (RunState.RUNNING, RunState.LOST): Actor.REAPER,
        (RunState.STOPPING, RunState.LOST): Actor.REAPER,
        # Of the run alone, in the transaction that ends the attempt.
        (RunState.FAILED, RunState.QUEUED): Actor.RETRY,
        (RunState.TIMED_OUT, RunState.QUEUED): Actor.RETRY,
        (RunState.LOST, RunState.QUEUED): Actor.RETRY,
    }
)
"""(from, to) → who moves it. From None = the run comes into being."""


@cache
def sources(actor: Actor, target: RunState) -> tuple[RunState, ...]:
    """Returns the states from which `actor` may move to `target`.

    Events may skip states, never go back: an agent whose journal says RUNNING may have passed PREPARING unseen. So a
    source counts from which the actor could have come here by its own steps.
    """
    found: set[RunState] = set()
    reached = {target}
    while reached:
        reached = {
            source
            for (source, to), mover in TRANSITIONS.items()
            if source is not None and to in reached and mover is actor and source not in found
        }
        found |= reached
    return tuple(state for state in RunState if state in found)


def allowed(actor: Actor, source: RunState, target: RunState) -> bool:
    """Returns whether `actor` may move a run or attempt from `source` to `target`."""
    return source in sources(actor, target)
