"""The disk the uv cache lies on: worked on in threads, and changed by one at a time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastflow.finishing import finish

T = TypeVar("T")

THREADS = 4
"""Copying a large cache takes seconds; who only looks up an environment must not wait for it."""


class Disk:
    """`changing` is held by whoever changes which generations there are, or makes a copy of one."""

    def __init__(self, folder: Path, free_bytes: Callable[[Path], int]) -> None:
        self._folder = folder
        self._free_bytes = free_bytes
        self._threads = ThreadPoolExecutor(THREADS, "uvcache")
        self._begun: set[asyncio.Future[None]] = set()
        self.changing = asyncio.Lock()

    async def run(self, operation: Callable[[], T]) -> T:
        """Returns what `operation` returns or raises what it raises, off the event loop; waits for it if cancelled."""
        # Else whoever is cancelled gives up `changing`, or clears up, while it goes on.
        return await finish(asyncio.get_running_loop().run_in_executor(self._threads, operation))

    def begin(self, operation: Callable[[], None]) -> None:
        """Runs an operation that nobody waits for and that fails by nothing."""
        begun = asyncio.get_running_loop().run_in_executor(self._threads, operation)
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)

    async def settle(self) -> None:
        """Returns once all that was begun has ended."""
        if self._begun:
            await asyncio.wait(self._begun)

    async def free_bytes(self) -> int:
        """What there is room for. Raises OSError."""
        return await self.run(lambda: self._free_bytes(self._folder))


def free_bytes(folder: Path) -> int:
    """Room on the disk that `folder` lies on. Raises OSError."""
    return shutil.disk_usage(folder).free
