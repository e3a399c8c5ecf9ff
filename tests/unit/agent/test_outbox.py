import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.facts import ContainerGone, Event
from fastflow_agent.model import AttemptKey
from fastflow_agent.reconcile import AttemptNumber, number
from fastflow_agent.stream.outbox import (
    EVENTS_IN_FLIGHT,
    EVENTS_PER_MESSAGE,
    EventsDue,
    GoodbyeDue,
    HeartbeatDue,
    Outbox,
    TelemetryDue,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = AttemptKey("run", 1, "token")


class Journals:
    """Unacknowledged events of attempts."""

    def __init__(self) -> None:
        self.events: dict[AttemptKey, list[Event]] = {}

    def add(self, key: AttemptKey, count: int) -> None:
        events = self.events.setdefault(key, [])
        first = events[-1].sequence + 1 if events else 1
        events += [Event(sequence, NOW, ContainerGone()) for sequence in range(first, first + count)]

    def __call__(self, attempt: AttemptNumber) -> tuple[AttemptKey, list[Event]] | None:
        return next(((key, events) for key, events in self.events.items() if number(key) == attempt), None)


def _opened(journals: Journals) -> Outbox:
    outbox = Outbox(journals)
    outbox.begin()
    outbox.open_events(list(journals.events))
    return outbox


async def _sequences(outbox: Outbox) -> list[int]:
    async with asyncio.timeout(60):
        due = await outbox.next()
    assert isinstance(due, EventsDue)
    return [event.sequence for _, event in due.events]


async def _is_empty(outbox: Outbox) -> bool:
    waiting = asyncio.ensure_future(outbox.next())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    empty = not waiting.done()
    waiting.cancel()
    return empty


async def test_control_goes_before_bulk() -> None:
    journals = Journals()
    journals.add(KEY, 1)
    outbox = _opened(journals)
    outbox.sampled(KEY, NOW, Usage())
    outbox.ask_heartbeat()
    kinds = [type(await outbox.next()) for _ in range(3)]
    assert kinds == [HeartbeatDue, EventsDue, TelemetryDue]
    outbox.ask_heartbeat()
    outbox.say_goodbye()
    assert isinstance(await outbox.next(), GoodbyeDue)


async def test_events_wait_until_the_desired_state_is_known() -> None:
    journals = Journals()
    journals.add(KEY, 2)
    outbox = Outbox(journals)
    outbox.begin()
    outbox.attempt_changed(KEY)
    assert await _is_empty(outbox)
    outbox.open_events([KEY])
    assert await _sequences(outbox) == [1, 2]


async def test_an_event_is_sent_once_on_a_stream_and_again_on_the_next() -> None:
    journals = Journals()
    journals.add(KEY, 2)
    outbox = _opened(journals)
    assert await _sequences(outbox) == [1, 2]
    journals.add(KEY, 1)
    outbox.attempt_changed(KEY)
    assert await _sequences(outbox) == [3]
    outbox.begin()
    outbox.open_events([KEY])
    assert await _sequences(outbox) == [1, 2, 3]


async def test_a_gap_is_closed_from_where_the_control_plane_stands() -> None:
    journals = Journals()
    journals.add(KEY, 4)
    outbox = _opened(journals)
    await outbox.next()
    outbox.rewind(KEY, 2)
    assert await _sequences(outbox) == [3, 4]


async def test_a_backlog_is_sent_only_as_fast_as_it_is_acknowledged() -> None:
    journals = Journals()
    journals.add(KEY, EVENTS_IN_FLIGHT + 50)
    outbox = _opened(journals)
    assert await _sequences(outbox) == list(range(1, EVENTS_IN_FLIGHT + 1))
    assert await _is_empty(outbox)
    del journals.events[KEY][:10]
    outbox.acknowledged(number(KEY))
    assert await _sequences(outbox) == list(range(EVENTS_IN_FLIGHT + 1, EVENTS_IN_FLIGHT + 11))


async def test_one_message_holds_a_bounded_number_of_events_of_several_attempts() -> None:
    journals = Journals()
    keys = [AttemptKey(f"run-{index}", 1, "token") for index in range(3)]
    for key in keys:
        journals.add(key, 150)
    outbox = _opened(journals)
    sent: list[tuple[AttemptKey, int]] = []
    while len(sent) < 450:
        due = await outbox.next()
        assert isinstance(due, EventsDue)
        assert len(due.events) <= EVENTS_PER_MESSAGE
        sent += [(key, event.sequence) for key, event in due.events]
    assert sorted(sent) == sorted((key, sequence) for key in keys for sequence in range(1, 151))
    assert await _is_empty(outbox)


async def test_only_the_newest_sample_waits() -> None:
    outbox = _opened(Journals())
    for pids in (1, 2, 3):
        outbox.sampled(KEY, NOW, Usage(pids=pids))
    due = await outbox.next()
    assert isinstance(due, TelemetryDue)
    assert [used.pids for _, _, used in due.samples] == [3]
    assert await _is_empty(outbox)


@pytest.mark.parametrize("seen", [True, False], ids=["after its last acknowledgement", "before it"])
async def test_nothing_is_kept_of_attempts_that_came_and_went_on_one_stream(seen: bool) -> None:
    journals = Journals()
    outbox = _opened(journals)
    for _ in range(2):
        # Were it kept how far the first was sent, nothing of the second would be.
        journals.add(KEY, 3)
        outbox.attempt_changed(KEY)
        assert await _sequences(outbox) == [1, 2, 3]
        if seen:
            journals.events[KEY].clear()
        else:
            del journals.events[KEY]
        outbox.acknowledged(number(KEY))
        assert await _is_empty(outbox)
        journals.events.pop(KEY, None)


async def test_an_attempt_that_is_gone_is_skipped() -> None:
    outbox = _opened(Journals())
    outbox.attempt_changed(KEY)
    assert await _is_empty(outbox)


async def test_the_same_attempt_under_another_token_sends_its_own_events_from_the_first() -> None:
    journals = Journals()
    journals.add(KEY, 3)
    outbox = _opened(journals)
    assert await _sequences(outbox) == [1, 2, 3]
    newer = replace(KEY, claim_token="newer")
    del journals.events[KEY]
    journals.add(newer, 2)
    outbox.attempt_changed(newer)
    due = await outbox.next()
    assert isinstance(due, EventsDue)
    assert [(key, event.sequence) for key, event in due.events] == [(newer, 1), (newer, 2)]
    assert await _is_empty(outbox)


async def test_nothing_is_remembered_of_what_was_sent_of_an_attempt_that_is_gone() -> None:
    journals = Journals()
    journals.add(KEY, 3)
    outbox = _opened(journals)
    assert await _sequences(outbox) == [1, 2, 3]
    del journals.events[KEY]
    outbox.attempt_changed(KEY)
    assert await _is_empty(outbox)
    journals.add(KEY, 1)
    outbox.attempt_changed(KEY)
    assert await _sequences(outbox) == [1]
