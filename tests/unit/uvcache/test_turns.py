"""Whose turn it is to be prepared."""

import asyncio

import pytest
from fastflow_agent.uvcache.turns import AT_ONCE, Turns


class Queue:
    """Environments that wait for a turn, each in a task of its own."""

    def __init__(self, at_once: int = 1) -> None:
        self.urgent: set[str] = set()
        self.began: list[str] = []
        self.turns = Turns(self.urgent.__contains__, at_once)
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._work(name))
            await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def _work(self, name: str) -> None:
        async with self.turns.turn(name):
            self.began.append(name)
            await self._ends[name].wait()


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


async def test_a_turn_ends_with_an_error_in_it() -> None:
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


def test_more_than_one_works_so_that_none_holds_up_all() -> None:
    assert AT_ONCE > 1
