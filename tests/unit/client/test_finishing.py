"""Work whose end is waited for."""

import asyncio
import threading
from pathlib import Path

import pytest
from fastflow.finishing import finish, take_over


async def test_work_in_a_thread_is_waited_for_however_often_its_caller_is_cancelled() -> None:
    ended = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(None, ended.wait)
    caller = asyncio.create_task(finish(work))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    waits = not caller.done()
    ended.set()
    await asyncio.wait([caller])
    assert (waits, caller.cancelled(), work.done()) == (True, True, True)


async def test_what_a_thread_opens_is_closed_where_its_caller_was_cancelled(tmp_path: Path) -> None:
    go_on = threading.Event()
    file = (tmp_path / "file").open("w")

    def opened() -> object:
        go_on.wait(60)
        return file

    caller = asyncio.create_task(
        take_over(asyncio.get_running_loop().run_in_executor(None, opened), lambda _: file.close())
    )
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([caller])
    assert (caller.cancelled(), file.closed) == (True, True)


async def test_what_could_not_be_opened_is_not_closed_either() -> None:
    go_on = threading.Event()

    def refused() -> object:
        go_on.wait(60)
        raise OSError("no room")

    caller = asyncio.create_task(
        take_over(asyncio.get_running_loop().run_in_executor(None, refused), lambda _: pytest.fail("nothing is open"))
    )
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([caller])
    assert caller.cancelled()


async def test_what_is_opened_is_the_callers_to_close(tmp_path: Path) -> None:
    opening = asyncio.get_running_loop().run_in_executor(None, (tmp_path / "file").open, "w")
    with await take_over(opening, lambda file: file.close()) as file:
        assert not file.closed
