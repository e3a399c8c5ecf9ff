"""Brings the output of all attempts to the control plane, over one stream on a channel of its own.

One task looks at the spools and keeps them within their bounds, whether there is a connection or not. While there is
one, a second task sends and a third hears the answers. Nothing is buffered between them: what is to be sent stands in
the spools, and what was sent can be read there again until it is acknowledged. Bytes go out in turns, so that a loud
run delays a quiet one by no more than a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import structlog
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff

from fastflow_agent.logs.growth import Growth
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.shipment import Shipment
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[gateway_pb2.UploadLogsRequest, gateway_pb2.UploadLogsResponse]

log = structlog.get_logger(__name__)


async def _at_once() -> None:
    pass


@dataclass(frozen=True)
class ShipSettings:
    """How output is shipped. Bytes and seconds.

    `chunk_bytes` is one message: measured, 256 KiB cost both sides least for each byte. `batch_chunks` go out before
    it is the next run's turn. `poll` is how often spools are looked at while any of them grows. `idle_after` is
    how long none has to grow until the kernel is asked to tell; where it can not, they are looked at each `idle_poll`:
    a fifth of the time within which a line is to be seen. `round_interval` is how often a spool that rests is looked
    at closely, and loses what was acknowledged. `total_quota` is what may wait in all spools together.
    """

    chunk_bytes: int = 256 * 1024
    batch_chunks: int = 4
    poll: float = 0.02
    idle_poll: float = 0.04
    idle_after: float = 1.0
    round_interval: float = 1.0
    threads: int = 2
    total_quota: int = 2**62


class Shipper:
    """Ships the logs of all attempts of this agent. Use from one event loop.

    `metadata` goes with the stream (the cluster's token).
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        metadata: tuple[tuple[str, str], ...] = (),
        backoff: Backoff | None = None,
        settings: ShipSettings | None = None,
    ) -> None:
        self._stub = gateway_pb2_grpc.AgentGatewayServiceStub(channel)
        self._metadata = metadata
        self._backoff = backoff or Backoff(0.2, 5.0)
        self._settings = settings or ShipSettings()
        self._shipments: dict[tuple[str, int], Shipment] = {}
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._call: Call | None = None
        self._wake = asyncio.Event()
        self._look_now = asyncio.Event()
        self._threads = ThreadPoolExecutor(self._settings.threads, "spool")

    async def run(self) -> None:
        """Ships until cancelled. Failures of the connection are its own matter and end nothing."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tend(), name="look at spools")
                tasks.create_task(self._stay_connected(), name="ship logs")
        finally:
            self._threads.shutdown(wait=False)

    def hold(self, *, cut: bool = False) -> None:
        """Opens no stream until `go_on`: it is not known yet whether this control plane may judge logs.

        A stream that lives goes on, unless it is to be `cut`. Spools are kept within their bounds meanwhile.
        """
        self._allowed.clear()
        if cut and self._call is not None:
            self._call.cancel()

    def go_on(self) -> None:
        """Ships again."""
        self._allowed.set()

    def add(
        self,
        key: AttemptKey,
        spool: Spool,
        durable_offset: int,
        on_loss: Callable[[LogLoss], None],
        on_backlog: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """Ships `spool` from `durable_offset` on. `on_loss` is called on the event loop for each loss found.

        `on_backlog` is called for a spool that pauses, at each look: bytes that wait, and how many may.
        """
        shipment = Shipment(
            key, spool, durable_offset, on_loss, on_backlog, threads=self._threads, cursor=durable_offset
        )
        self._shipments[key.run_id, key.attempt] = shipment
        self._look_now.set()
        self._wake.set()

    def durable(self, key: AttemptKey) -> int:
        """Returns the offset below which the control plane has everything on its disk."""
        return self._shipments[key.run_id, key.attempt].durable

    async def seal(self, key: AttemptKey, until_losses_told: Callable[[], Awaitable[None]] = _at_once) -> int:
        """Ships what is left and ends the log; call it once nobody writes any more. Returns the end offset.

        `until_losses_told` returns once the control plane has each loss that `on_loss` was called with: until then the
        log stays open. Waits as long as it takes. A log the control plane refuses for good, since it does not know the
        attempt or has sealed its log already, ends where the control plane left it.
        """
        shipment = self._shipments[key.run_id, key.attempt]
        shipment.sealing = True
        self._wake.set()
        telling = asyncio.create_task(self._tell_losses(shipment, until_losses_told))
        try:
            return await asyncio.shield(shipment.sealed)
        finally:
            telling.cancel()
            await asyncio.wait([telling])

    async def _tell_losses(self, shipment: Shipment, until_told: Callable[[], Awaitable[None]]) -> None:
        while True:
            await shipment.owing.wait()
            await until_told()
            shipment.owing.clear()
            self._wake.set()

    async def remove(self, key: AttemptKey) -> None:
        """Ships the log no further and closes its spool. The files stay."""
        shipment = self._shipments.pop((key.run_id, key.attempt), None)
        if shipment is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, shipment.spool.close)

    # Looking at the spools.

    async def _tend(self) -> None:
        clock = asyncio.get_running_loop().time
        with self._growth() as growth:
            last_growth = last_round = clock()
            while True:
                self._look_now.clear()
                if not self._shipments:
                    await self._look_now.wait()
                now = clock()
                # A spool that rests costs one system call, and gets a closer look from time to time.
                closely = now - last_round >= self._settings.round_interval
                last_round = now if closely else last_round
                if await self._look(closely):
                    last_growth = now
                    self._wake.set()
                if now - last_growth <= self._settings.idle_after:
                    await asyncio.sleep(self._settings.poll)
                else:
                    await self._rest(growth)

    @contextmanager
    def _growth(self) -> Iterator[Growth | None]:
        try:
            growth = Growth(self._look_now.set)
        except OSError as error:
            log.warning("the kernel can not tell when logs grow: they are looked at all the time", error=str(error))
            yield None
            return
        try:
            yield growth
        finally:
            growth.close()

    async def _rest(self, growth: Growth | None) -> None:
        """Waits until some spool grows or is added, or it is time for a closer look."""
        if growth is None:
            await asyncio.sleep(self._settings.idle_poll)
            return
        try:
            for shipment in self._shipments.values():
                growth.arm(shipment.spool.fileno())
        except OSError as error:
            log.debug("a log can not be watched", error=str(error))
            await asyncio.sleep(self._settings.idle_poll)
            return
        # Looked at after being armed: what came before is not told.
        if all(shipment.spool.size() == shipment.size for shipment in self._shipments.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.round_interval):
                    await self._look_now.wait()

    async def _look(self, closely: bool) -> bool:
        grew = False
        self._share_quota()
        for name, shipment in tuple(self._shipments.items()):
            # It may have been removed, and its spool closed, while another one was waited for.
            if self._shipments.get(name) is shipment:
                size = shipment.spool.size()
                changed = size != shipment.size
                grew |= changed
                shipment.size = size
                if changed or closely:
                    await self._keep_within_bounds(shipment, closely)
                if shipment.spool.pauses:
                    shipment.on_backlog(shipment.spool.backlog(size), shipment.spool.quota)
        return grew

    def _share_quota(self) -> None:
        """Lets the largest backlogs give way while all together are too large."""
        waiting = [shipment.spool.backlog(shipment.size) for shipment in self._shipments.values() if shipment.size > 0]
        level = fair_level(waiting, self._settings.total_quota)
        for shipment in self._shipments.values():
            shipment.spool.share(level)

    async def _keep_within_bounds(self, shipment: Shipment, closely: bool) -> None:
        if shipment.spool.wants_care(shipment.size):
            await shipment.care()
        if closely and shipment.durable > shipment.acknowledged:
            await shipment.acknowledge()
        if closely and shipment.resting:
            shipment.resting = False
            self._wake.set()

    # The stream.

    async def _stay_connected(self) -> None:
        told = ""
        while True:
            if not self._shipments:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._allowed.wait()
            failure = await self._connection()
            delay = self._backoff.next()
            # Said once: a control plane may be away for days.
            (log.info if failure != told else log.debug)("log stream ended", reason=failure, retry=round(delay, 2))
            told = failure
            await asyncio.sleep(delay)

    async def _connection(self) -> str:
        """Ships over one stream until it breaks; returns why it did."""
        call: Call = self._stub.UploadLogs(metadata=self._metadata)  # type: ignore[call-arg]  # stubs want an iterator; we write
        self._call = call
        for shipment in self._shipments.values():
            shipment.start_over()
        tasks = [
            asyncio.create_task(self._hear(call), name="hear log answers"),
            asyncio.create_task(self._send(call), name="send logs"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, _STREAM_ENDED):
                raise result
        return next((_describe(each) for each in results if isinstance(each, grpc.aio.AioRpcError)), "closed")

    async def _send(self, call: Call) -> None:
        chunk = self._settings.chunk_bytes
        while True:
            self._wake.clear()
            sent = False
            for shipment in tuple(self._shipments.values()):
                for message in await shipment.messages(chunk, chunk * self._settings.batch_chunks):
                    await call.write(message)
                    sent = True
            if not sent:
                await self._wake.wait()

    async def _hear(self, call: Call) -> None:
        async for answer in call:
            self._backoff.reset()
            shipment = self._shipments.get((answer.run_id, answer.attempt))
            if shipment is not None:
                await shipment.heard(answer)
                self._wake.set()


def fair_level(amounts: Sequence[int], total: int) -> int:
    """Returns the level to which the largest of `amounts` have to be cut so that they add up to at most `total`."""
    left = total
    for number, amount in enumerate(ascending := sorted(amounts)):
        share = left // (len(ascending) - number)
        if amount > share:
            return share
        left -= amount
    return 2**62


_STREAM_ENDED = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)
"""What grpc.aio raises from a stream that is over, depending on who noticed first."""


def _describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
