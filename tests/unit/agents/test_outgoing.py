"""The bounded queue of one stream."""

import asyncio

from fastflow_controlplane.agents.outgoing import Outgoing


async def test_items_leave_in_order() -> None:
    outgoing: Outgoing[int] = Outgoing(8)
    for number in range(3):
        await outgoing.put(number)
    assert [await outgoing.take() for _ in range(3)] == [(0, False), (1, False), (2, False)]


async def test_who_fills_it_waits_for_room() -> None:
    outgoing: Outgoing[int] = Outgoing(1)
    await outgoing.put(1)
    second = asyncio.create_task(outgoing.put(2))
    await asyncio.sleep(0)
    assert not second.done()
    assert await outgoing.take() == (1, False)
    await second
    assert await outgoing.take() == (2, False)


async def test_the_last_word_overtakes_what_waits_and_frees_who_waits() -> None:
    outgoing: Outgoing[int] = Outgoing(1)
    await outgoing.put(1)
    blocked = asyncio.create_task(outgoing.put(2))
    await asyncio.sleep(0)
    outgoing.finish(99)
    outgoing.finish(100)
    await blocked
    assert await outgoing.take() == (99, True)


async def test_an_end_without_a_word_wakes_the_taker() -> None:
    outgoing: Outgoing[int] = Outgoing(1)
    taking = asyncio.create_task(outgoing.take())
    await asyncio.sleep(0)
    outgoing.finish(None)
    assert await taking == (None, True)
