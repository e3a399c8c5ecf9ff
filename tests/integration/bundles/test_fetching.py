"""Code is fetched whole, once, and again where it does not arrive as it was sent."""

import asyncio
import hashlib
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import pytest
from fastflow.agent.v1 import gateway_pb2
from fastflow.pipelines.bundle import PARTIAL_PREFIX
from fastflow_agent.bundles import BundleFault

from tests.integration.bundles.world import Away, Pieces, World, altered, cut_off, longer, whole, with_a_piece_missing


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


async def test_a_fetch_that_nobody_waits_for_any_more_leaves_no_file_open(
    world: World, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = world.source.add(code)
    make, begun, go_on = tempfile.TemporaryFile, threading.Event(), threading.Event()
    made: list[IO[bytes]] = []

    def make_slowly(**where: Any) -> IO[bytes]:
        begun.set()
        go_on.wait(60)
        made.append(make(**where))
        return made[0]

    monkeypatch.setattr(tempfile, "TemporaryFile", make_slowly)
    waiting = asyncio.create_task(world.bundles.ensure(bundle.digest, bundle.size))
    await asyncio.to_thread(begun.wait, 60)
    (fetching,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("once: "))
    waiting.cancel()
    await asyncio.wait([waiting])
    go_on.set()
    await asyncio.wait([fetching])
    assert [file.closed for file in made] == [True]
