"""One attempt's log on its way to the control plane: what to send of it next, and what an answer means for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import google_crc32c
import structlog
from fastflow.agent.v1 import attempts_pb2, gateway_pb2
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import PUNCH_BYTES, Spool
from fastflow_agent.model import AttemptKey

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class Shipment:
    """One attempt's log. Whatever its disk refuses, it rests and goes on later: no method raises OSError.

    `durable` is the offset below which the control plane has everything on its disk, `size` the file's size at the last
    look, `cursor` what to send next, `dry` the file's size at which there was nothing. `resting` is true from a failure
    of the disk while there was something to send, until somebody sets it to false; `fault` is what the disk said.
    `owing` is set while the control plane may not have each loss that was found: who reads a log that is complete has
    to see what is missing in it, so it is not sealed before. Found are all of them once its end is `acknowledged`.
    `threads` do what may wait for the disk. `sealed` is done once the log has ended, with its end offset.
    """

    key: AttemptKey
    spool: Spool
    durable: int
    on_loss: Callable[[LogLoss], None]
    on_backlog: Callable[[int, int], None]
    threads: Executor
    cursor: int = 0
    window_end: int | None = None
    asked: bool = False
    size: int = -1
    dry: int | None = None
    acknowledged: int = 0
    sealing: bool = False
    end: int | None = None
    seal_sent: bool = False
    stopped_at: int | None = None
    resting: bool = False
    fault: str = ""
    owing: asyncio.Event = field(default_factory=asyncio.Event)
    taking: threading.Lock = field(default_factory=threading.Lock)
    sealed: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        # An earlier agent, or its disk, may have found some.
        self.owing.set()

    def start_over(self) -> None:
        """Forget what was sent: a new stream begins with asking where the control plane stands."""
        self.cursor = self.durable
        self.window_end = self.dry = None
        self.asked = self.seal_sent = False

    # On the worker's disk.

    async def care(self) -> None:
        """Keep the spool within its bounds."""
        try:
            await self._in_thread(self.spool.care)
        except OSError as error:
            self._complain(error)

    async def acknowledge(self) -> None:
        """Let what the control plane has leave this disk."""
        durable = self.durable
        try:
            await self._in_thread(lambda: self.spool.acknowledged(durable))
        except OSError as error:
            # What was not punched out is with what is acknowledged next; at the end the whole file goes.
            self._complain(error)
        self.acknowledged = max(self.acknowledged, durable)

    async def _in_thread(self, operation: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()

        def work() -> T:
            try:
                return operation()
            finally:
                # From here, since who waits for the result may be cancelled, and the operation may have failed. One at
                # a time: what another operation found is on its way when this one returns.
                with self.taking:
                    for loss in self.spool.take_losses():
                        loop.call_soon_threadsafe(self._lose, loss)

        return await loop.run_in_executor(self.threads, work)

    def _lose(self, loss: LogLoss) -> None:
        self.owing.set()
        self.on_loss(loss)

    def _complain(self, error: OSError) -> None:
        # Once: a full disk may last for days.
        say = log.debug if self.fault == str(error) else log.error
        say("a log can not be read or kept within its bounds", run=self.key.run_id, error=str(error))
        self.fault = str(error)

    # On the stream.

    async def messages(self, chunk_bytes: int, batch_bytes: int) -> list[gateway_pb2.UploadLogsRequest]:
        """What it may send in its turn: `batch_bytes` of output at most, `chunk_bytes` in one message."""
        if self.resting or self.sealed.done():
            return []
        try:
            return await self._messages(chunk_bytes, batch_bytes)
        except OSError as error:
            self.resting = True
            self._complain(error)
            return []

    async def _messages(self, chunk_bytes: int, batch_bytes: int) -> list[gateway_pb2.UploadLogsRequest]:
        key = attempts_pb2.AttemptKey(
            run_id=self.key.run_id, attempt=self.key.attempt, claim_token=self.key.claim_token
        )
        if not self.asked:
            self.asked = True
            return [gateway_pb2.UploadLogsRequest(chunk=gateway_pb2.LogChunk(key=key, offset=self.durable))]
        if self.window_end is None:
            return []
        if self.sealing and self.end is None:
            self.end = await self._in_thread(self.spool.finish)
        if self.end is not None and self.spool.has_gaps and self.acknowledged < self.durable:
            await self.acknowledge()
        end = self.end if self.stopped_at is None else self.stopped_at
        if end is not None:
            # Of a log that was cut while nobody looked, an earlier agent had delivered more than is here.
            end = max(end, self.durable)
        if self.sealing and end is not None and self.cursor >= end:
            if self.seal_sent or self.owing.is_set() or (self.spool.has_gaps and self.acknowledged < end):
                return []
            self.seal_sent = True
            return [gateway_pb2.UploadLogsRequest(seal=gateway_pb2.LogSeal(key=key, end_offset=end))]
        room = min(self.window_end - self.cursor, batch_bytes)
        if room <= 0 or self.stopped_at is not None or (self.end is None and self.size == self.dry):
            return []
        return await self._load(key, room, chunk_bytes)

    async def _load(
        self, key: attempts_pb2.AttemptKey, room: int, chunk_bytes: int
    ) -> list[gateway_pb2.UploadLogsRequest]:
        size, start = self.size, self.cursor
        # No further than was there at the last look: chasing a writer byte for byte would make tiny messages.
        chasing = self.end is None and size > start
        stop = min(start + room, size) if chasing else start + room
        messages: list[gateway_pb2.UploadLogsRequest] = []

        def load() -> int:
            cursor = start
            while cursor < stop:
                piece = self.spool.read(cursor, min(chunk_bytes, stop - cursor))
                if piece is None:
                    break
                if isinstance(piece, bytes):
                    chunk = gateway_pb2.LogChunk(key=key, offset=cursor, data=piece, crc32c=google_crc32c.value(piece))
                    messages.append(gateway_pb2.UploadLogsRequest(chunk=chunk))
                    cursor += len(piece)
                else:
                    gap = gateway_pb2.LogGap(key=key, offset=cursor, bytes=piece.end - cursor)
                    messages.append(gateway_pb2.UploadLogsRequest(gap=gap))
                    cursor = piece.end
            return cursor

        cursor = await self._in_thread(load)
        # An answer that sends the cursor back while this was read, or while it is sent, must win.
        if self.cursor != start:
            return []
        self.cursor = cursor
        if cursor < start + room:
            self.dry = size
        return messages

    async def heard(self, answer: gateway_pb2.UploadLogsResponse) -> None:
        """Take the control plane's answer."""
        if self.sealed.done():
            return
        rejection = answer.rejection
        if rejection in (gateway_pb2.LOG_REJECTION_UNKNOWN_ATTEMPT, gateway_pb2.LOG_REJECTION_BAD_TOKEN):
            name = gateway_pb2.LogRejection.Name(rejection)
            log.warning("the control plane refuses a log", run=self.key.run_id, reason=name)
            self.sealed.set_result(self.durable)
            return
        first = self.window_end is None
        self.durable = answer.durable_offset
        if first:
            # Nothing is sent before: an earlier agent may have delivered more than is here now.
            await self.acknowledge()
        self.window_end = answer.window_end
        if self.durable:
            reach(AgentPoint.LOG_ACKNOWLEDGED)
        if first or rejection == gateway_pb2.LOG_REJECTION_CORRUPT:
            self.cursor, self.dry, self.seal_sent = answer.durable_offset, None, False
        if rejection == gateway_pb2.LOG_REJECTION_MISMATCH and self.stopped_at is None:
            self.stopped_at = self.cursor = answer.durable_offset
            self.seal_sent = False
            message = "the log differs from what was delivered before; it ends here, and later output was not kept"
            self._lose(LogLoss("TAMPERED", answer.durable_offset, None, message))
        if self.durable - self.acknowledged >= PUNCH_BYTES or answer.sealed:
            await self.acknowledge()
        if answer.sealed:
            self.sealed.set_result(answer.durable_offset)
