"""An event loop on which the same steps do the same each time, so that an example that failed fails again."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class StepLoop(asyncio.SelectorEventLoop):
    """Does itself what is meant for a thread, and can tell when nothing is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._called = 0

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """See `asyncio.AbstractEventLoop.call_soon`."""
        self._called += 1
        return super().call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """Has `func` called by the loop itself."""

        async def call() -> T:
            return func(*args)

        return self.create_task(call())

    async def settle(self) -> None:
        """Returns once all tasks wait for something that nobody in this process does by itself."""
        quiet = 0
        while quiet < 2:
            before = self._called
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._called == before + 1 else 0


def settled() -> "asyncio._CoroutineLike[None]":
    """See `StepLoop.settle`, of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StepLoop)
    return loop.settle()
