"""Work that several wait for is done once, and not for nobody."""

import asyncio

import pytest
from fastflow_agent.singleflight import SingleFlight


class Work:
    """Work that ends when `gate` opens."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_share_one_piece_of_work_and_its_result() -> None:
    flights, work = SingleFlight[int](), Work()
    callers = [asyncio.create_task(flights.do("same", work)) for _ in range(3)]
    other = asyncio.create_task(flights.do("other", work))
    await settle()
    work.gate.set()
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert await other == 2
    assert await flights.do("same", work) == 3


async def test_a_caller_that_leaves_does_not_stop_the_work_of_the_others() -> None:
    flights, work = SingleFlight[int](), Work()
    first, second = (asyncio.create_task(flights.do("same", work)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    work.gate.set()
    assert await second == 1
    assert work.cancelled == 0


async def test_work_nobody_waits_for_is_stopped_and_can_be_begun_again() -> None:
    flights, work = SingleFlight[int](), Work()
    callers = [asyncio.create_task(flights.do("same", work)) for _ in range(2)]
    await settle()
    for caller in callers:
        caller.cancel()
    await settle()
    assert work.cancelled == 1
    work.gate.set()
    assert await flights.do("same", work) == 2


async def test_a_failure_reaches_all_who_wait_and_none_who_comes_later() -> None:
    flights = SingleFlight[int]()
    gate = asyncio.Event()

    async def fail() -> int:
        await gate.wait()
        raise ValueError("no")

    callers = [asyncio.create_task(flights.do("same", fail)) for _ in range(2)]
    await settle()
    gate.set()
    for caller in callers:
        with pytest.raises(ValueError, match="no"):
            await caller
    assert await flights.do("same", _succeed) == 1


async def _succeed() -> int:
    return 1
