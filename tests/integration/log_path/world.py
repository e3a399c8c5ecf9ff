"""The log path as a whole: a spool on one side, files on the other, real gRPC between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc.aio
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.client import open_channel
from fastflow.ids import new_id
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.shipper import Shipper, ShipSettings
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.ingest import IngestSettings, LogIngest
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.logs.uploads import Rejection
from fastflow_controlplane.runs.model import AttemptKey as StoredKey
from fastflow_controlplane.server import server_options

from tests.ports import HeldPort

MIB = 1024 * 1024


@dataclass
class Attempts:
    """The attempts the control plane knows; those not in `tokens` it does not."""

    tokens: dict[tuple[str, int], str] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)

    async def admit(self, key: StoredKey) -> Rejection:
        token = self.tokens.get((key.run_id, key.attempt))
        if token is None:
            return Rejection.UNKNOWN_ATTEMPT
        return Rejection.NONE if token == key.claim_token else Rejection.BAD_TOKEN

    async def sealed(self, key: StoredKey, end: int) -> None:
        self.ends[key.run_id, key.attempt] = end


class Gateway(AgentGatewayServicer):
    """The control plane's end of the stream. `damage` may change what arrives."""

    def __init__(self, ingest: LogIngest) -> None:
        super().__init__(sessions=cast(Any, None), ingest=ingest, catalog=cast(Any, None))
        self.damage: Callable[[gateway_pb2.UploadLogsRequest], gateway_pb2.UploadLogsRequest] = lambda request: request

    async def UploadLogs(self, request_iterator: AsyncIterable[gateway_pb2.UploadLogsRequest], context: Any) -> None:
        async def arriving() -> AsyncIterator[gateway_pb2.UploadLogsRequest]:
            async for request in request_iterator:
                yield self.damage(request)

        await super().UploadLogs(arriving(), context)


class ControlPlane:
    """Starts and stops like the real one; its files stay."""

    def __init__(self, folder: Path, attempts: Attempts, settings: IngestSettings) -> None:
        self.folder = folder
        self.attempts = attempts
        self.settings = settings
        self._port = HeldPort()
        self._server: grpc.aio.Server
        self.store: FileLogStore
        self.gateway: Gateway

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port.number}"

    async def start(self) -> None:
        self.store = FileLogStore(self.folder)
        self.gateway = Gateway(LogIngest(self.store, self.attempts, self.settings))
        self._server = grpc.aio.server(options=server_options())
        gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(self.gateway, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)
        await self.store.aclose()

    def close(self) -> None:
        """Gives its port back."""
        self._port.close()

    async def log(self, key: AttemptKey) -> bytes:
        async with self.store.open(LogKey(key.run_id, key.attempt)) as log:
            return await log.read(0, max(log.end, 1))


class Agent:
    """Ships spools; may be killed and started again over the same files."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        self.losses: list[LogLoss] = []
        self.told: list[LogLoss] = []
        """Losses that the control plane has, as it may before a log is sealed."""
        self.until_told = asyncio.Event()
        self.until_told.set()
        self.spool_quota = 1 << 30
        self.log_limit = 0
        self.masks: tuple[bytes, ...] = ()
        self.settings = ShipSettings(idle_after=0.1)

    async def start(self) -> None:
        self._channel = open_channel(self._address, own_connection=True)
        self.shipper = Shipper(self._channel, backoff=Backoff(0.02, 0.1), settings=self.settings)
        self._running = asyncio.create_task(self.shipper.run())

    async def kill(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._channel.close(None)

    def file(self, key: AttemptKey) -> Path:
        return self._folder / f"{key.run_id}.{key.attempt}.log"

    def ship(self, key: AttemptKey, durable_offset: int = 0) -> Spool:
        path = self.file(key)
        path.touch()
        spool = Spool.open(
            path,
            start_offset=durable_offset,
            masks=self.masks,
            log_limit=self.log_limit,
            spool_quota=self.spool_quota,
        )
        self.shipper.add(key, spool, durable_offset, self.losses.append)
        return spool

    async def seal(self, key: AttemptKey) -> int:
        async with asyncio.timeout(60):
            return await self.shipper.seal(key, self._tell_losses)

    async def _tell_losses(self) -> None:
        if self.losses:
            await self.until_told.wait()
        self.told = list(self.losses)


@dataclass
class World:
    """One agent and one control plane."""

    controlplane: ControlPlane
    agent: Agent
    attempts: Attempts

    def key(self) -> AttemptKey:
        """A new attempt that both sides know."""
        key = AttemptKey(new_id(), 1, "token")
        self.attempts.tokens[key.run_id, key.attempt] = "token"
        return key


def lines(count: int, seed: int = 1) -> bytes:
    """Output of a program: lines, a very long one, and bytes that are no text."""
    source = random.Random(seed)
    middle = source.randbytes(300_000).replace(b"\n", b"")
    text = [b"%06d %s\n" % (index, source.randbytes(30).hex().encode()) for index in range(count)]
    return b"".join([*text[: count // 2], middle, b"\xff\xfe\n", *text[count // 2 :], b"no newline at the end"])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # sizes of files and offsets tell nobody when they change
            await asyncio.sleep(0.01)


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def open_files(folder: Path) -> list[str]:
    """Files below `folder` that this process has open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return [target for each in descriptors if (target := _target(each)).startswith(str(folder))]


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


async def write_slowly(path: Path, data: bytes, pieces: int = 40) -> None:
    step = len(data) // pieces + 1
    for start in range(0, len(data), step):
        write(path, data[start : start + step])
        await asyncio.sleep(0.01)
