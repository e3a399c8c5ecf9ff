"""Code on its way to an agent: real archives, real gRPC, and what may go wrong with both."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
from fastflow.agent.v1 import gateway_pb2
from fastflow.backoff import Backoff
from fastflow.pipelines.bundle import Bundle, pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundles import SIZE_LIMIT, Bundles
from fastflow_agent.clock import Clock
from fastflow_agent.model import SlotId
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer

PIECE = 1000
SLOT, OTHER_SLOT = SlotId("0" * 16), SlotId("1" * 16)


class Away(Exception):
    """The control plane is not ready."""


Pieces = Callable[[bytes], AsyncIterator[gateway_pb2.FetchBundleResponse]]


async def whole(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
    for offset in range(0, len(archive), PIECE):
        data = archive[offset : offset + PIECE]
        yield gateway_pb2.FetchBundleResponse(offset=offset, data=data, total_size=len(archive))


async def cut_off(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
    async for piece in whole(archive[: len(archive) // 2]):
        yield piece


async def altered(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
    async for piece in whole(b"X" + archive[1:]):
        yield piece


async def with_a_piece_missing(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
    async for piece in whole(archive):
        if piece.offset != PIECE:
            yield piece


async def longer(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
    async for piece in whole(archive + b"more" * PIECE):
        yield piece


class Source(AgentGatewayServicer):
    """A control plane that has some bundles; `faults` are how it serves the first requests."""

    def __init__(self) -> None:
        super().__init__(*cast(Any, (None, None, None)))
        self.archives: dict[str, bytes] = {}
        self.faults: list[Pieces] = []
        self.fetches = 0
        self.available = asyncio.Event()
        self.available.set()

    async def FetchBundle(
        self, request: gateway_pb2.FetchBundleRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
        """See the protocol."""
        self.fetches += 1
        await self.available.wait()
        if request.digest not in self.archives:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such bundle")
        serve = self.faults.pop(0) if self.faults else whole
        try:
            async for piece in serve(self.archives[request.digest]):
                yield piece
        except Away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")

    def add(self, code: Path) -> Bundle:
        """Packs a folder."""
        sink = io.BytesIO()
        bundle = pack(read_code(DiskFolder(code)), sink)
        self.archives[bundle.digest] = sink.getvalue()
        return bundle


class HandClock(Clock):
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return self.passed

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.passed)


@dataclass
class World:
    """An agent's bundles, and the control plane they come from."""

    source: Source
    server: grpc.aio.Server
    bundles: Bundles
    folder: Path
    channel: grpc.aio.Channel
    clock: HandClock

    def restart(self, size_limit: int = SIZE_LIMIT) -> None:
        """Another agent takes over."""
        backoff = Backoff(0.01, 0.05)
        self.bundles = Bundles(self.folder, self.channel, size_limit=size_limit, clock=self.clock, backoff=backoff)

    async def use(self, bundle: Bundle) -> Path:
        """A run that is over long before the next."""
        path = await self.bundles.ensure(bundle.digest, bundle.size)
        self.clock.passed += 1000.0
        return path

    def names(self) -> set[str]:
        """Code on the disk, and nothing that is hidden beside it."""
        return {path.name for path in self.folder.iterdir() if path.is_dir()}
