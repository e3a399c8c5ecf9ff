"""Code on its way to an agent: real archives, real gRPC, and what may go wrong with both."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.client import channel_options, open_channel
from fastflow.pipelines.bundle import PARTIAL_PREFIX, Bundle, digest_hex, pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundles import LEASE_SECONDS, SIZE_LIMIT, BundleFault, Bundles
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


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    source = Source()
    server = grpc.aio.server(options=channel_options())
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(source, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    folder = tmp_path / "bundles"
    clock = HandClock()
    bundles = Bundles(folder, channel, clock=clock, backoff=Backoff(0.01, 0.05))
    yield World(source, server, bundles, folder, channel, clock)
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
    with pytest.raises(BundleFault) as caught:
        await world.bundles.ensure(bundle.digest, bundle.size)
    found = hashlib.sha256(b"X" + world.source.archives[bundle.digest][1:]).hexdigest()
    size = bundle.size
    assert (
        f"{bundle.digest} can not be fetched: {size} of {size} bytes arrived, with the digest sha256:{found} (3 times)"
        in str(caught.value)
    )
    assert "see to the disk of the control plane's data folder" in str(caught.value)
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
    assert world.names() == {path.name}


def packed(world: World, folder: Path, number: int) -> Bundle:
    """Code of about 100 kB, different for each number."""
    code = folder / f"code-{number}"
    code.mkdir()
    (code / "main.py").write_text(f"print({number})\n")
    (code / "data").write_bytes(bytes([number]) * 100_000)
    return world.source.add(code)


def name_of(bundle: Bundle) -> str:
    return digest_hex(bundle.digest)


ROOM_FOR_TWO = 250_000


async def test_code_used_longest_ago_goes_when_there_is_too_much(world: World, tmp_path: Path) -> None:
    first, second, third = (packed(world, tmp_path, number) for number in range(3))
    world.restart(ROOM_FOR_TWO)
    for bundle in (first, second, first, third):
        await world.use(bundle)
    await world.bundles.prune()
    assert world.names() == {name_of(first), name_of(third)}
    assert {path.name for path in world.folder.glob("*.used")} == {f"{name}.used" for name in world.names()}


async def test_the_last_use_is_remembered_by_the_next_agent(world: World, tmp_path: Path) -> None:
    first, second, third = (packed(world, tmp_path, number) for number in range(3))
    for bundle in (first, second, first):
        await world.use(bundle)
    world.restart(ROOM_FOR_TWO)
    await world.use(third)
    await world.bundles.prune()
    assert world.names() == {name_of(first), name_of(third)}


async def test_code_a_slot_uses_stays_however_little_room_there_is(world: World, tmp_path: Path) -> None:
    first, second = (packed(world, tmp_path, number) for number in range(2))
    await world.use(first)
    world.restart(size_limit=0)
    world.bundles.pin(first.digest, SLOT)
    world.bundles.pin(first.digest, OTHER_SLOT)
    world.bundles.unpin(SLOT)
    await world.use(second)
    await world.bundles.prune()
    assert world.names() == {name_of(first)}
    world.bundles.unpin(OTHER_SLOT)
    await world.bundles.prune()
    assert world.names() == set()


async def test_code_just_handed_out_stays_until_it_can_be_pinned(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.restart(size_limit=0)
    await world.bundles.ensure(bundle.digest, bundle.size)
    world.clock.passed += LEASE_SECONDS - 1
    await world.bundles.prune()
    assert world.names() == {name_of(bundle)}
    world.clock.passed += 1
    await world.bundles.prune()
    assert world.names() == set()


async def test_nothing_goes_while_containers_live_whose_code_is_not_known(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.restart(size_limit=0)
    world.bundles.removal_allowed = False
    await world.use(bundle)
    await world.bundles.prune()
    assert world.names() == {name_of(bundle)}
    world.bundles.removal_allowed = True
    await world.bundles.prune()
    assert world.names() == set()


async def test_code_of_a_thousand_runs_is_on_the_disk_once(world: World, tmp_path: Path) -> None:
    bundle = packed(world, tmp_path, 1)
    slots = [SlotId(f"{number:016x}") for number in range(1000)]
    for slot in slots:
        world.bundles.pin(bundle.digest, slot)
    paths = await asyncio.gather(*(world.bundles.ensure(bundle.digest, bundle.size) for _ in slots))
    assert set(paths) == {world.folder / name_of(bundle)}
    assert world.source.fetches == 1
    used = sum(path.stat().st_size for path in world.folder.rglob("*") if path.is_file())
    assert used < 1.1 * bundle.size


def rewritten(file: Path) -> None:
    file.chmod(0o644)
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"hello", b"other"))
    # As thorough as an intruder may be: what `ls` shows is as it was.
    file.chmod(0o444)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(file: Path) -> None:
    file.parent.chmod(0o755)
    file.unlink()


def joined(file: Path) -> None:
    file.parent.chmod(0o755)
    (file.parent / "extra.py").write_text("new")


def cut(file: Path) -> None:
    file.chmod(0o644)
    os.truncate(file, 10)


@pytest.mark.parametrize("change", [rewritten, removed, joined, cut])
@pytest.mark.parametrize("restarted", [False, True])
async def test_code_changed_on_the_disk_is_noticed_and_fetched_again(
    world: World, code: Path, change: Callable[[Path], None], restarted: bool
) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    change(path / "main.py")
    if restarted:
        world.restart()
    assert await world.use(bundle) == path
    assert (path / "main.py").read_bytes() == (code / "main.py").read_bytes()
    assert not (path / "extra.py").exists()
    assert world.source.fetches == 2
    await world.bundles.prune()
    assert world.names() == {path.name}
    assert not list(world.folder.glob(".*"))


async def test_damaged_code_is_not_taken_from_the_slot_that_uses_it(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    world.bundles.pin(bundle.digest, SLOT)
    mounted = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    inside = Path(f"/proc/self/fd/{mounted}")
    try:
        removed(path / "main.py")
        await world.use(bundle)
        await world.bundles.prune()
        assert [entry.name for entry in inside.iterdir()] == ["package"]
        world.bundles.unpin(SLOT)
        await world.bundles.prune()
        assert list(inside.iterdir()) == []
    finally:
        os.close(mounted)
    assert (path / "main.py").exists()


async def test_whole_code_is_not_fetched_again_by_the_next_agent(world: World, code: Path) -> None:
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    (code / "link").symlink_to("package/data.bin")
    bundle = world.source.add(code)
    await world.bundles.ensure(bundle.digest, bundle.size)
    world.restart()
    await world.bundles.ensure(bundle.digest, bundle.size)
    assert world.source.fetches == 1
