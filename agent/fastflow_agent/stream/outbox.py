"""What waits to be written on the stream: control before bulk, and bounded by its nature.

Nothing is queued per message. Events are taken from the attempts' journals when it is their turn, of telemetry only
the newest sample of each attempt is kept, and a heartbeat is only ever asked for once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.facts import Event
from fastflow_agent.model import AttemptKey
from fastflow_agent.reconcile import AttemptNumber, number

EVENTS_PER_MESSAGE = 200
"""Events sent at once; their acknowledgement is one commit of the control plane."""

EVENTS_IN_FLIGHT = 200
"""Events of one attempt sent ahead of their acknowledgement: a backlog must not flood the control plane."""


@dataclass(frozen=True)
class HeartbeatDue:
    """A heartbeat is to be written."""


@dataclass(frozen=True)
class EventsDue:
    """Events that were not sent on this stream yet."""

    events: Sequence[tuple[AttemptKey, Event]]


@dataclass(frozen=True)
class TelemetryDue:
    """Newest samples."""

    samples: Sequence[tuple[AttemptKey, datetime, Usage]]


@dataclass(frozen=True)
class PreheatDue:
    """There is news of environments that are prepared ahead."""


@dataclass(frozen=True)
class GoodbyeDue:
    """The last message."""


Due = HeartbeatDue | EventsDue | PreheatDue | TelemetryDue | GoodbyeDue

Unacknowledged = Callable[[AttemptNumber], tuple[AttemptKey, Sequence[Event]] | None]
"""Key and unacknowledged events of an attempt, in order; None if the attempt is not here any more."""


class Outbox:
    """Filled by the agent at any time, emptied by the one writer of the stream that lives."""

    def __init__(self, unacknowledged: Unacknowledged) -> None:
        self._unacknowledged = unacknowledged
        self._filled = asyncio.Event()
        self._sent: dict[AttemptNumber, tuple[AttemptKey, int]] = {}
        self._changed: dict[AttemptNumber, None] = {}
        self._telemetry: dict[AttemptNumber, tuple[AttemptKey, datetime, Usage]] = {}
        self._heartbeat = False
        self._goodbye = False
        self._preheat = False
        self._events_open = False

    def begin(self) -> None:
        """A new stream: nothing was sent on it, and events wait for `open_events`."""
        self._sent.clear()
        self._telemetry.clear()
        self._heartbeat = self._goodbye = self._preheat = self._events_open = False

    def open_events(self, all_attempts: Sequence[AttemptKey]) -> None:
        """Desired state is complete: what the control plane does not know may be sent, of all attempts."""
        self._events_open = True
        self._changed.update(dict.fromkeys(map(number, all_attempts)))
        self._filled.set()

    def attempt_changed(self, key: AttemptKey) -> None:
        """The attempt has new events, or is not here any more."""
        self._changed[number(key)] = None
        self._filled.set()

    def acknowledged(self, attempt: AttemptNumber) -> None:
        """Events of the attempt are settled, so that more of them may go."""
        self._changed[attempt] = None
        self._filled.set()

    def rewind(self, key: AttemptKey, sequence: int) -> None:
        """The control plane misses events above `sequence`."""
        self._sent[number(key)] = key, sequence
        self._changed[number(key)] = None
        self._filled.set()

    def sampled(self, key: AttemptKey, time: datetime, used: Usage) -> None:
        """A sample; it replaces one that was not sent yet, and may be lost."""
        if self._events_open:
            self._telemetry[number(key)] = (key, time, used)
            self._filled.set()

    def ask_heartbeat(self) -> None:
        """A heartbeat is due."""
        self._heartbeat = True
        self._filled.set()

    def preheat_changed(self) -> None:
        """There is something to report of environments that are prepared ahead."""
        self._preheat = True
        self._filled.set()

    def say_goodbye(self) -> None:
        """Let the next message be the last, before anything else."""
        self._goodbye = True
        self._filled.set()

    async def next(self) -> Due:
        """What to write next; waits until there is something."""
        while True:
            self._filled.clear()
            due = self._take()
            if due is not None:
                return due
            await self._filled.wait()

    def _take(self) -> Due | None:
        if self._goodbye:
            return GoodbyeDue()
        if self._heartbeat:
            self._heartbeat = False
            return HeartbeatDue()
        if self._events_open and (events := self._take_events()):
            return EventsDue(events)
        if self._preheat and self._events_open:
            self._preheat = False
            return PreheatDue()
        if self._telemetry:
            samples = list(self._telemetry.values())
            self._telemetry.clear()
            return TelemetryDue(samples)
        return None

    def _take_events(self) -> list[tuple[AttemptKey, Event]]:
        batch: list[tuple[AttemptKey, Event]] = []
        while self._changed and len(batch) < EVENTS_PER_MESSAGE:
            attempt = next(iter(self._changed))
            found = self._unacknowledged(attempt)
            if found is None:
                self._sent.pop(attempt, None)
            if found is None or not found[1]:
                del self._changed[attempt]
                # Nothing is under way. A stream may last for months, and attempts come and go.
                self._sent.pop(attempt, None)
                continue
            key, unacknowledged = found
            whose, sent = self._sent.get(attempt, (key, 0))
            if whose != key:
                # Of an assignment under another token, which is gone: this one's events are numbered anew.
                sent = 0
            stop = unacknowledged[0].sequence + EVENTS_IN_FLIGHT
            ready = [event for event in unacknowledged if sent < event.sequence < stop]
            room = EVENTS_PER_MESSAGE - len(batch)
            if len(ready) <= room:
                # Changed again by the next event, or by an acknowledgement that lets more go.
                del self._changed[attempt]
            batch += [(key, event) for event in ready[:room]]
            if ready:
                self._sent[attempt] = key, ready[:room][-1].sequence
        return batch
