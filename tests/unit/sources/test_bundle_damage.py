"""Bundles that a disk changed at equal size: they are noticed when they are sent, and written anew from their code."""

import io
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastflow.pipelines.bundle import Bundle, digest_of
from fastflow_controlplane.errors import DataLoss, NotFound, Unavailable
from fastflow_controlplane.sources.bundles import BundleFile
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.model import PinnedCode, RunCode

from tests.origins import Origin
from tests.unit.sources.conftest import Followed, follow, make
from tests.unit.sources.test_git_damage import damage, pushed_over

PIECE = 1024


def on_disk(data_dir: Path, pinned: PinnedCode) -> Path:
    return data_dir / "bundles" / "sha256" / pinned.bundle_digest.removeprefix("sha256:")


def flip(file: Path, offset: int = 600) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


async def read(file: BundleFile) -> bytes:
    """As an agent is sent it."""
    found = b""
    while piece := await file.read(PIECE):
        found += piece
    return found


async def sent(catalog: Catalog, pinned: PinnedCode) -> bytes:
    async with await catalog.open_bundle(pinned.bundle_digest) as file:
        return await read(file)


def is_whole(content: bytes, pinned: PinnedCode) -> bool:
    return digest_of(io.BytesIO(content)) == pinned.bundle_digest


def runs_of(*codes: PinnedCode, tree: str = "") -> Callable[[str], Awaitable[RunCode | None]]:
    async def code_of_runs(digest: str) -> RunCode | None:
        found = [code for code in codes if code.bundle_digest == digest]
        return RunCode(Bundle(digest, found[0].bundle_size), tree or found[0].tree) if found else None

    return code_of_runs


async def test_a_flipped_byte_is_noticed_before_the_last_piece_and_the_next_one_who_asks_gets_it_whole(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    flip(on_disk(data_dir, pinned))
    assert await catalog.snapshot("p") == pinned, "by its size nothing is wrong"
    async with await catalog.open_bundle(pinned.bundle_digest) as file:
        for _ in range((pinned.bundle_size - 1) // PIECE):
            await file.read(PIECE)
        with pytest.raises(
            DataLoss, match=r"is damaged on the disk of the control plane: .* written anew when"
        ) as caught:
            await file.read(PIECE)
    assert pinned.bundle_digest in str(caught.value)
    assert is_whole(await sent(catalog, pinned), pinned)


async def test_a_byte_of_the_last_or_the_only_piece_is_noticed_as_well(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    flip(on_disk(data_dir, pinned), offset=-1)
    async with await catalog.open_bundle(pinned.bundle_digest) as file:
        with pytest.raises(DataLoss):
            await file.read(pinned.bundle_size * 2)


async def test_the_code_of_a_run_from_a_folder_that_was_edited_since_is_written_anew(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    folder = make(root / "p", "print(1)\n")
    first = await catalog.snapshot("p")
    (folder / "main.py").write_text("print(2)\n")
    await catalog.snapshot("p")
    catalog.code_of_runs = runs_of(first)
    flip(on_disk(data_dir, first))
    with pytest.raises(DataLoss):
        await sent(catalog, first)
    assert is_whole(await sent(catalog, first), first)


async def test_the_code_of_a_run_that_was_pushed_over_is_written_anew(followed: Followed, data_dir: Path) -> None:
    followed.origin.push({"p/main.py": "print(1)\n"})
    await followed.sync()
    first = await followed.catalog.snapshot("p")
    followed.origin.push({"p/main.py": "print(2)\n"}, force=True)
    await followed.sync()
    followed.catalog.code_of_runs = runs_of(first)
    flip(on_disk(data_dir, first))
    with pytest.raises(DataLoss):
        await sent(followed.catalog, first)
    assert is_whole(await sent(followed.catalog, first), first)


async def test_code_whose_repository_is_damaged_too_comes_with_the_next_sync(origin: Origin, tmp_path: Path) -> None:
    _, commit, _, new = await pushed_over(origin, tmp_path)
    async with follow(origin, tmp_path) as followed:
        pinned = await followed.catalog.snapshot("a", commit)
        origin.push({"a/main.py": "3"})
        await followed.sync()
    on_disk(tmp_path, pinned).unlink()
    damage(new)
    async with follow(origin, tmp_path) as again:
        again.catalog.code_of_runs = runs_of(pinned)
        with pytest.raises(Unavailable, match="its copy is damaged and is fetched anew at the next sync"):
            await sent(again.catalog, pinned)
        await again.sync()
        assert is_whole(await sent(again.catalog, pinned), pinned)


async def test_code_that_no_source_has_any_more_is_told_with_what_to_do(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    (root / "p" / "main.py").write_text("print(2)\n")
    await catalog.snapshot("p")
    on_disk(data_dir, pinned).unlink()
    catalog.code_of_runs = runs_of(pinned, tree="0" * 40)
    with pytest.raises(NotFound, match=r"no source has its code any more \(tree 0{40}\): run the pipeline anew"):
        await catalog.open_bundle(pinned.bundle_digest)


async def test_a_bundle_that_was_written_anew_stays_whoever_else_still_reads_the_damaged_one(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    flip(on_disk(data_dir, pinned))
    async with await catalog.open_bundle(pinned.bundle_digest) as slow:
        with pytest.raises(DataLoss):
            await sent(catalog, pinned)
        assert is_whole(await sent(catalog, pinned), pinned)
        with pytest.raises(DataLoss):
            await read(slow)
    assert on_disk(data_dir, pinned).exists()


async def test_no_bundle_is_read_or_hashed_on_the_event_loop(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    work, threads = BundleFile._next, []

    def watched(file: BundleFile, limit: int) -> bytes:
        threads.append(threading.current_thread())
        return work(file, limit)

    monkeypatch.setattr(BundleFile, "_next", watched)
    await sent(catalog, pinned)
    assert threads
    assert threading.main_thread() not in threads
