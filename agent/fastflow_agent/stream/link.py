"""Keeps one stream to the control plane open, for as long as the agent lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
import structlog
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff

from fastflow_agent.clock import Clock
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.stream.outbox import Outbox
from fastflow_agent.stream.session import NoCommonProtocol, Refused, Session, SessionHost, StreamBroken

log = structlog.get_logger(__name__)

REFUSED_SECONDS = 15.0
"""Wait after a refusal: its cause is an operator's to remove, and asking more often would only fill logs. Well below
`lost_after`, so that an agent is back in time once the control plane was upgraded."""

STARTUP_SECONDS = 5.0
"""For so long after its own start an agent does not complain: host or `ffctl up` start both programs at once."""


class Link:
    """Opens a stream, lives on it, and opens another when it breaks. What runs goes on meanwhile."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...],
        host: SessionHost,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        backoff: Backoff,
        opening: Callable[[], tuple[gateway_pb2.Hello, list[gateway_pb2.InventoryPage]]],
    ) -> None:
        """`opening` gives the first messages of a stream, as things stand then."""
        self._stub = gateway_pb2_grpc.AgentGatewayServiceStub(channel)
        self._metadata = metadata
        self._host = host
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._backoff = backoff
        self._opening = opening
        self._began = clock.monotonic()

    async def run(self, stopping: asyncio.Event) -> None:
        """Return after Goodbye, once `stopping` is set."""
        while not stopping.is_set():
            delay = await self._session(stopping)
            if stopping.is_set():
                return
            waited = asyncio.ensure_future(self._clock.sleep(delay))
            stop = asyncio.ensure_future(stopping.wait())
            try:
                await asyncio.wait({waited, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waited.cancel()
                stop.cancel()

    async def _session(self, stopping: asyncio.Event) -> float:
        """Live on one stream; returns how long to wait before the next."""
        call = self._stub.Connect(metadata=self._metadata)  # type: ignore[call-arg]  # stubs want an iterator; we write
        session = Session(call, self._host, self._outbox, self._conditions, self._clock)
        try:
            await session.run(*self._opening(), stopping)
            return 0.0
        except Refused as refusal:
            if isinstance(refusal, NoCommonProtocol):
                self._conditions.hold(ConditionType.PROTOCOL_MISMATCH, str(refusal))
            log.error("the control plane refuses this agent", reason=str(refusal))
            return REFUSED_SECONDS
        except StreamBroken as broken:
            if session.synced:
                self._backoff.reset()
            delay = self._backoff.next()
            self._explain(broken, delay)
            return delay

    def _explain(self, broken: StreamBroken, delay: float) -> None:
        if self._clock.monotonic() - self._began < STARTUP_SECONDS:
            log.info("waiting for the control plane to answer", retry_seconds=round(delay, 2))
        else:
            log.warning("no connection to the control plane", reason=str(broken), retry_seconds=round(delay, 2))
