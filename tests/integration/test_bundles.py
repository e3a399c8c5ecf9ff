"""Code on its way to an agent: real archives, real gRPC, and what may go wrong with both."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.client import channel_options, open_channel
from fastflow.pipelines.bundle import PARTIAL_PREFIX, Bundle, pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundles import BundleFault, Bundles
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer

PIECE = 1000


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

    async def FetchBundle(  # noqa: N802
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


@dataclass
class World:
    """An agent's bundles, and the control plane they come from."""

    source: Source
    server: grpc.aio.Server
    bundles: Bundles
    folder: Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    source = Source()
    server = grpc.aio.server(options=channel_options())
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(source, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    folder = tmp_path / "bundles"
    bundles = Bundles(folder, channel, backoff=Backoff(0.01, 0.05))
    yield World(source, server, bundles, folder)
    await channel.close(None)
    await server.stop(None)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "main.py").write_text("print('hello')\n" * 200)
    (code / "package" / "data.bin").write_bytes(bytes(range(256)) * 20)
    return code


async def test_code_is_fetched_unpacked_and_readable_by_all_and_writable_by_none(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    assert path == world.folder / bundle.digest.removeprefix("sha256:")
    assert (path / "main.py").read_bytes() == (code / "main.py").read_bytes()
    assert (path / "package" / "data.bin").read_bytes() == bytes(range(256)) * 20
    for each in (path, *path.rglob("*")):
        assert each.stat().st_mode & 0o222 == 0
        assert each.stat().st_mode & 0o444 == 0o444


async def test_code_is_fetched_once(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.source.available.clear()
    together = [asyncio.create_task(world.bundles.ensure(bundle.digest, bundle.size)) for _ in range(5)]
    await asyncio.sleep(0.05)
    world.source.available.set()
    assert len(set(await asyncio.gather(*together))) == 1
    await world.bundles.ensure(bundle.digest, bundle.size)
    assert world.source.fetches == 1


@pytest.mark.parametrize("fault", [cut_off, altered, with_a_piece_missing, longer])
async def test_code_that_arrives_damaged_is_fetched_again(world: World, code: Path, fault: Pieces) -> None:
    bundle = world.source.add(code)
    world.source.faults = [fault, fault]
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    assert (path / "main.py").exists()
    assert world.source.fetches == 3


async def test_code_that_never_arrives_whole_is_a_fault_that_says_so(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.source.faults = [altered] * 3
    with pytest.raises(BundleFault, match=f"the code {bundle.digest} can not be fetched: {bundle.size} bytes arrived"):
        await world.bundles.ensure(bundle.digest, bundle.size)
    assert list(world.folder.iterdir()) == []


async def test_code_the_control_plane_does_not_have_is_a_fault_at_once(world: World) -> None:
    with pytest.raises(BundleFault, match="NOT_FOUND: no such bundle"):
        await world.bundles.ensure(f"sha256:{'0' * 64}", 10)
    assert world.source.fetches == 1


async def test_what_is_no_digest_reaches_no_file(world: World) -> None:
    with pytest.raises(BundleFault, match="is not a digest"):
        await world.bundles.ensure("sha256:../../etc", 10)


async def test_an_archive_that_is_none_of_ours_is_refused(world: World) -> None:
    archive = b"no archive" * 200
    digest = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    world.source.archives[digest] = archive
    with pytest.raises(BundleFault, match="the code can not be unpacked"):
        await world.bundles.ensure(digest, len(archive))
    assert list(world.folder.iterdir()) == []


async def test_a_control_plane_out_of_reach_is_waited_for(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    attempts = 0

    async def away(archive: bytes) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
        nonlocal attempts
        attempts += 1
        if attempts <= 5:
            raise Away
        async for piece in whole(archive):
            yield piece

    world.source.faults = [away] * 6
    await world.bundles.ensure(bundle.digest, bundle.size)
    assert attempts == 6


async def test_what_a_dead_agent_left_half_unpacked_is_removed(world: World, code: Path) -> None:
    remains = world.folder / f"{PARTIAL_PREFIX}abc"
    remains.mkdir(parents=True)
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    assert list(world.folder.iterdir()) == [path]
