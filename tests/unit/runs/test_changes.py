"""Waiting for changes of a run."""

import asyncio

from fastflow_controlplane.runs.changes import Changes


async def test_a_waiter_wakes_for_its_run_alone() -> None:
    changes = Changes()
    waiting = asyncio.create_task(changes.wait("a", changes.count))
    await asyncio.sleep(0)
    changes.notify("b")
    await asyncio.sleep(0)
    assert not waiting.done()
    changes.notify("a")
    assert await waiting == changes.count


async def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    changes = Changes()
    seen = changes.count
    changes.notify("a")
    await changes.wait("a", seen)


async def test_a_forgotten_change_wakes_once_too_often_rather_than_never() -> None:
    changes = Changes(remembered=2)
    seen = changes.count
    for run in ("a", "b", "c", "d"):
        changes.notify(run)
    await changes.wait("a", seen)


async def test_a_waiter_that_gives_up_leaves_nothing_behind() -> None:
    changes = Changes()
    waiting = asyncio.create_task(changes.wait("a", changes.count))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert changes._waiters == {}
