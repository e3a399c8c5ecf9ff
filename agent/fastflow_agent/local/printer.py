"""Takes the output of a local run: what its spool gives goes to a descriptor at once, and counts as delivered then."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
"""What is read of a spool at once."""

POLL_SECONDS = 0.02
"""Between two looks at an output that has not grown: the agent's own pace."""

CARE_SECONDS = 1.0
"""Between two looks at whether a spool, whose reader may be slow, stays within its quota."""

STOP_SECONDS = 0.2
"""For how long a full pipe is waited for before it is asked whether anybody still wants the output."""


@dataclass(eq=False)
class _Log:
    spool: Spool
    on_loss: Callable[[LogLoss], None]
    cursor: int
    sealing: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Printer:
    """Writes logs to `descriptor` byte for byte. Use from one event loop.

    `on_written` gets what was written, `on_sealed` is called once a log is complete, `on_reader_left` when nobody
    reads any more, or with the reason if nothing can be written there. All of them on the event loop.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        on_written: Callable[[bytes], None],
        on_sealed: Callable[[], None],
        on_reader_left: Callable[[str], None],
    ) -> None:
        self._descriptor = descriptor
        self._on_written = on_written
        self._on_sealed = on_sealed
        self._on_reader_left = on_reader_left
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._logs: dict[AttemptKey, _Log] = {}
        self._unwanted = False
        self._threads = ThreadPoolExecutor(2, "printer")

    def add(
        self,
        key: AttemptKey,
        spool: Spool,
        durable_offset: int,
        on_loss: Callable[[LogLoss], None],
        on_backlog: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """See `Shipper.add`. `on_backlog` is never called: no control plane is away."""
        log = self._logs[key] = _Log(spool, on_loss, durable_offset)
        log.tasks = [asyncio.create_task(self._print(log)), asyncio.create_task(self._care(log))]

    def durable(self, key: AttemptKey) -> int:
        """See `Shipper.durable`."""
        return self._logs[key].cursor

    async def seal(self, key: AttemptKey, until_losses_told: Callable[[], Awaitable[None]] | None = None) -> int:
        """See `Shipper.seal`. `until_losses_told` is not waited for: losses are shown when the run has ended."""
        log = self._logs[key]
        log.sealing.set()
        await asyncio.shield(log.tasks[0])
        return log.cursor

    async def remove(self, key: AttemptKey) -> None:
        """See `Shipper.remove`."""
        if (log := self._logs.pop(key, None)) is None:
            return
        for task in log.tasks:
            task.cancel()
        await asyncio.wait(log.tasks)
        await asyncio.get_running_loop().run_in_executor(self._threads, log.spool.close)

    def give_up(self) -> None:
        """Write no more: what is still to come is not wanted."""
        self._unwanted = True

    def close(self) -> None:
        """Let go of the threads, without waiting for them."""
        self._unwanted = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _print(self, log: _Log) -> None:
        end: int | None = None
        while end is None or log.cursor < end:
            if end is None and log.sealing.is_set():
                end = await self._with(log, log.spool.finish)
            piece = await self._with(log, lambda: log.spool.read(log.cursor, CHUNK_BYTES))
            if isinstance(piece, bytes):
                await self._write(piece)
                log.cursor += len(piece)
            elif piece is not None:
                log.cursor = piece.end
            elif end is None:
                await asyncio.sleep(POLL_SECONDS)
                continue
            else:
                break
            await self._with(log, partial(log.spool.acknowledged, log.cursor))
        self._on_sealed()

    async def _care(self, log: _Log) -> None:
        while True:
            await asyncio.sleep(CARE_SECONDS)
            if log.spool.wants_care(log.spool.size()):
                await self._with(log, log.spool.care)

    async def _write(self, data: bytes) -> None:
        if self._unwanted:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._write_all, data)
        except OSError as error:
            self._unwanted = True
            # EIO: the terminal was closed.
            left = error.errno in (errno.EPIPE, errno.EIO)
            self._on_reader_left("" if left else f"the output can not be written: {error.strerror}")
            return
        self._on_written(data)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._unwanted:
            # Up to PIPE_BUF bytes fit without blocking once poll says that there is room (pipe(7)).
            if self._room.poll(STOP_SECONDS * 1000):
                view = view[os.write(self._descriptor, view[: select.PIPE_BUF]) :]

    async def _with(self, log: _Log, work: Callable[[], T]) -> T:
        """Call a method of the spool, and tell the losses it found."""
        result = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        for loss in log.spool.take_losses():
            log.on_loss(loss)
        return result
