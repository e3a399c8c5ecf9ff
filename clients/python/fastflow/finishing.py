"""Work that is not cut short where its caller is cancelled: whatever goes on in a thread goes on all the same."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def finish(work: asyncio.Future[T]) -> T:
    """Returns what `work` returns or raises what it raises, at its end, however often cancelled; then is cancelled.

    For what is to happen only after it: giving up a lock, clearing up what it makes.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        raise
    finally:
        # An exception that knows this frame, which knows the exception, would keep the file open until collected.
        del work


async def take_over(work: asyncio.Future[T], close: Callable[[T], object]) -> T:
    """As `finish`, for work that returns what is to be closed: where the caller is cancelled, this is done here.

    A thread that opens a file opens it all the same, and else for nobody.
    """
    try:
        return await finish(work)
    except asyncio.CancelledError:
        if not work.cancelled() and work.exception() is None:
            close(work.result())
        raise
    finally:
        del work
