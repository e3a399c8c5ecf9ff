"""Work whose end is waited for."""

import asyncio
import threading

from fastflow.finishing import finish


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
