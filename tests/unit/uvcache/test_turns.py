"""Whose turn it is to be prepared."""

import asyncio
from collections.abc import Callable

import pytest
from fastflow_agent.uvcache.turns import AT_ONCE, MOST_AT_ONCE, SLOW_SECONDS, Turns
from structlog.testing import capture_logs


class Queue:
    """Environments that wait for a turn, each in a task of its own."""

    def __init__(self, at_once: int = 1) -> None:
        self.urgent: set[str] = set()
        self.began: list[str] = []
        self.told: list[dict[str, int]] = []
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object], asyncio.TimerHandle]] = []
        self.turns = Turns(self.urgent.__contains__, self._tell, self._later, at_once)
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._work(name))
            await settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await settle()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for when, callback, timer in [*self.timers]:
            if when <= self.now and not timer.cancelled():
                timer.cancel()
                callback()
        await settle()

    def _tell(self) -> None:
        self.told.append(self.turns.ahead())

    def _later(self, seconds: float, callback: Callable[[], object], /) -> asyncio.TimerHandle:
        timer = asyncio.get_running_loop().call_later(3600, lambda: None)
        self.timers.append((self.now + seconds, callback, timer))
        return timer

    async def _work(self, name: str) -> None:
        async with self.turns.turn(name):
            self.began.append(name)
            await self.ends[name].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_work_at_once_and_the_others_in_the_order_they_came() -> None:
    queue = Queue(at_once=2)
    await queue.come("a", "b", "c", "d")
    assert queue.began == ["a", "b"]
    await queue.end("b")
    assert queue.began == ["a", "b", "c"]
    await queue.end("a")
    await queue.end("c")
    await queue.end("d")
    assert queue.began == ["a", "b", "c", "d"]
    await queue.come("e", "f", "g")
    assert queue.began[4:] == ["e", "f"]


async def test_what_a_run_waits_for_goes_first_though_it_became_so_while_it_waited() -> None:
    queue = Queue()
    await queue.come("a", "b", "c", "d")
    queue.urgent |= {"c", "d"}
    await queue.end("a")
    await queue.end("c")
    queue.urgent.clear()
    await queue.end("d")
    assert queue.began == ["a", "c", "d", "b"]


async def test_who_fails_or_gives_up_leaves_the_turn_to_the_next() -> None:
    queue = Queue()
    await queue.come("a", "b", "c", "d")
    queue.tasks["b"].cancel()
    await settle()
    queue.tasks["a"].cancel()
    await settle()
    assert queue.began == ["a", "c"]
    queue.tasks["c"].cancel()
    await settle()
    await queue.end("d")
    await queue.come("e")
    assert queue.began == ["a", "c", "d", "e"]


async def test_a_turnends_with_an_error_in_it() -> None:
    queue = Queue()

    async def fail() -> None:
        async with queue.turns.turn("a"):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await fail()
    await queue.come("b")
    assert queue.began == ["b"]


async def test_a_turn_given_to_one_who_gives_up_at_that_moment_is_not_lost() -> None:
    queue = Queue()
    await queue.come("a", "b", "c")
    queue.tasks["a"].cancel()
    # One step each: the end of a gives the turn to b, which is cancelled before it is told.
    await asyncio.sleep(0)
    queue.tasks["b"].cancel()
    await settle()
    assert queue.began == ["a", "c"]
    await queue.end("c")
    await queue.come("d")
    assert queue.began == ["a", "c", "d"]


async def test_a_turn_is_not_given_to_one_who_has_given_up_but_was_not_told_yet() -> None:
    queue = Queue()
    await queue.come("a", "b", "c")
    queue.ends["a"].set()
    # It takes its step after the end of a.
    queue.tasks["b"].cancel()
    await settle()
    await queue.tasks["a"]
    assert queue.began == ["a", "c"]
    await queue.end("c")
    await queue.come("d")
    assert queue.began == ["a", "c", "d"]


async def test_what_waits_for_its_turn_is_told_in_the_log() -> None:
    queue = Queue()
    with capture_logs() as entries:
        await queue.come("a", "b", "c")
    assert [(entry["environment"], entry["waiting"]) for entry in entries] == [("b", 1), ("c", 2)]


async def test_what_is_ahead_of_runs_takes_no_turn_of_what_a_run_waits_for() -> None:
    queue = Queue(at_once=2)
    await queue.come("ahead")
    queue.urgent |= {"a", "b", "c"}
    await queue.come("a", "b", "c")
    assert queue.began == ["ahead", "a", "b"]
    await queue.end("a")
    assert queue.began == ["ahead", "a", "b", "c"]


async def test_what_becomes_urgent_while_it_waits_gets_the_turn_there_is_at_once() -> None:
    queue = Queue()
    await queue.come("ahead", "another")
    assert queue.began == ["ahead"]
    queue.urgent.add("another")
    queue.turns.look()
    await settle()
    assert queue.began == ["ahead", "another"]


async def test_what_hangs_holds_up_others_for_ten_minutes_only() -> None:
    queue = Queue(at_once=2)
    names = [f"env-{number}" for number in range(6)]
    queue.urgent |= set(names)
    await queue.come(*names)
    await queue.pass_time(SLOW_SECONDS - 1)
    assert queue.began == names[:2]
    await queue.pass_time(1)
    assert queue.began == names[:4]
    await queue.pass_time(SLOW_SECONDS)
    assert len(queue.began) == MOST_AT_ONCE, "so many may hang that no more are begun"
    await queue.end("env-0")
    assert queue.began == names[:5]


async def test_what_ended_in_time_frees_its_turn_once() -> None:
    queue = Queue()
    queue.urgent |= {"a", "b", "c"}
    await queue.come("a", "b", "c")
    await queue.pass_time(SLOW_SECONDS - 1)
    await queue.end("a")
    await queue.pass_time(SLOW_SECONDS - 1)
    assert queue.began == ["a", "b"]


async def test_it_is_known_how_many_are_before_each_and_every_change_is_told() -> None:
    queue = Queue(at_once=2)
    await queue.come("a", "b", "c", "d")
    assert queue.told[-1] == {"a": 0, "b": 0, "c": 2, "d": 3}
    queue.urgent.add("d")
    queue.turns.look()
    await settle()
    assert queue.told[-1] == {"a": 0, "b": 0, "d": 0, "c": 3}
    queue.tasks["a"].cancel()
    await settle()
    assert queue.told[-1] == {"b": 0, "d": 0, "c": 2}


def test_more_than_one_works_so_that_none_holds_up_all() -> None:
    assert AT_ONCE > 1
