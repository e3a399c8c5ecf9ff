"""Bundles that a disk changed at equal size: they are noticed when they are sent, and written anew from their code."""

import io
import os
import threading
from pathlib import Path

import pygit2
import pytest
from fastflow.pipelines.bundle import digest_of
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import DataLoss, NotFound, Unavailable
from fastflow_controlplane.sources.bundles import BundleFile
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.mirror import Mirror
from fastflow_controlplane.sources.model import PinnedCode
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.repository import SnapshotRepository

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, Followed, Runs, at_rest, follow, make, on_disk
from tests.unit.sources.packs import damage, packs, pushed_over

PIECE = 1024


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


async def damaged(catalog: Catalog, root: Path, data_dir: Path, offset: int = 600) -> PinnedCode:
    """Code whose bundle has another byte at `offset` by now."""
    make(root / "p")
    pinned = await catalog.snapshot("p")
    flip(on_disk(data_dir, pinned), offset)
    return pinned


async def edited_since(catalog: Catalog, root: Path) -> PinnedCode:
    """Code whose folder has other code by now."""
    folder = make(root / "p")
    pinned = await catalog.snapshot("p")
    (folder / "main.py").write_text("print(2)\n")
    await catalog.snapshot("p")
    return pinned


def spoil(repository: Path, content: bytes) -> None:
    """Makes a file that a repository keeps unreadable."""
    digest = str(pygit2.hash(content))
    file = repository / "objects" / digest[:2] / digest[2:]
    file.unlink()
    file.write_bytes(b"spoilt")


def catalog_of_both(kind: type[MountedFolder], first: Path, second: Path, data_dir: Path, runs: Runs) -> Catalog:
    """The catalog of two plain folders, of which the first is of a `kind`."""
    data_dir.mkdir()
    sources = {
        name: kind(root, SnapshotRepository(data_dir / f"{name}.git"), DEFAULTS, at_rest())
        for name, kind, root in (("first", kind, first), ("second", MountedFolder, second))
    }
    return Catalog(sources, data_dir, set, runs.code, ManualClock())


async def assert_mended(catalog: Catalog, pinned: PinnedCode) -> None:
    """Who asks first is told of the damage, who asks next is sent all of it."""
    with pytest.raises(DataLoss):
        await sent(catalog, pinned)
    assert is_whole(await sent(catalog, pinned), pinned)


async def test_a_flipped_byte_is_noticed_before_the_last_piece_and_the_next_one_who_asks_gets_it_whole(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    pinned = await damaged(catalog, root, data_dir)
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
    pinned = await damaged(catalog, root, data_dir, offset=-1)
    async with await catalog.open_bundle(pinned.bundle_digest) as file:
        with pytest.raises(DataLoss):
            await file.read(pinned.bundle_size * 2)


async def test_the_code_of_a_run_from_a_folder_that_was_edited_since_is_written_anew(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    pinned = await edited_since(catalog, root)
    runs.add(pinned)
    flip(on_disk(data_dir, pinned))
    await assert_mended(catalog, pinned)


async def test_the_code_of_a_run_that_was_pushed_over_is_written_anew(followed: Followed, data_dir: Path) -> None:
    followed.origin.push({"p/main.py": "print(1)\n"})
    await followed.sync()
    first = await followed.catalog.snapshot("p")
    followed.origin.push({"p/main.py": "print(2)\n"}, force=True)
    await followed.sync()
    followed.runs.add(first)
    flip(on_disk(data_dir, first))
    await assert_mended(followed.catalog, first)


async def test_code_whose_repository_is_damaged_too_comes_with_the_next_sync(origin: Origin, tmp_path: Path) -> None:
    _, commit, _, new = await pushed_over(origin, tmp_path)
    async with follow(origin, tmp_path) as followed:
        pinned = await followed.catalog.snapshot("a", commit)
        origin.push({"a/main.py": "3"})
        await followed.sync()
    on_disk(tmp_path, pinned).unlink()
    damage(new)
    async with follow(origin, tmp_path) as again:
        again.runs.add(pinned)
        with pytest.raises(Unavailable, match="its copy is damaged and is fetched anew at the next sync"):
            await sent(again.catalog, pinned)
        await again.sync()
        assert is_whole(await sent(again.catalog, pinned), pinned)


async def test_code_that_no_source_has_any_more_is_told_with_what_to_do(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    pinned = await edited_since(catalog, root)
    on_disk(data_dir, pinned).unlink()
    runs.add(pinned, tree="0" * 40)
    with pytest.raises(NotFound, match=r"no source has its code any more \(tree 0{40}\): run the pipeline anew"):
        await catalog.open_bundle(pinned.bundle_digest)


async def test_damaged_code_of_one_run_costs_no_other_run_its_code(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    folder = make(root / "p")
    pinned = []
    for number in range(3):
        (folder / "main.py").write_text(f"print({number})\n")
        pinned.append(await catalog.snapshot("p"))
    runs.add(*pinned)
    for code in pinned:
        on_disk(data_dir, code).unlink()
    spoil(data_dir / "snapshots.git", b"print(0)\n")
    for _ in range(2):
        with pytest.raises(NotFound, match=r"its code is damaged in the pipelines folder .*: run the pipeline anew"):
            await sent(catalog, pinned[0])
    for code in pinned[1:]:
        assert is_whole(await sent(catalog, code), code)


async def test_damage_of_the_code_in_use_costs_no_earlier_run_its_code_and_is_mended_at_once(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    earlier = await edited_since(catalog, root)
    current = await catalog.snapshot("p")
    runs.add(earlier, current)
    for code in (earlier, current):
        on_disk(data_dir, code).unlink()
    spoil(data_dir / "snapshots.git", b"print(2)\n")
    assert is_whole(await sent(catalog, current), current)
    assert is_whole(await sent(catalog, earlier), earlier)


async def test_damaged_code_that_a_folder_does_not_hold_any_more_is_told_without_a_word_of_syncs(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    folder = make(root / "p")
    pinned = await catalog.snapshot("p")
    runs.add(pinned)
    (folder / "main.py").write_text("print(2)\n")
    on_disk(data_dir, pinned).unlink()
    spoil(data_dir / "snapshots.git", b"print(1)\n")
    with pytest.raises(
        Unavailable, match=r"is damaged, and is not in the folder any more; run the pipeline anew"
    ) as told:
        await sent(catalog, pinned)
    assert "sync" not in str(told.value)
    await catalog.refresh()
    with pytest.raises(NotFound, match="its code is damaged in the pipelines folder"):
        await sent(catalog, pinned)


async def test_all_is_fetched_anew_once_for_damaged_code_that_the_remote_has_no_more(
    origin: Origin, tmp_path: Path
) -> None:
    async with follow(origin, tmp_path) as followed:
        origin.push({"a/main.py": "1", "a/data": os.urandom(10_000)})
        await followed.sync()
        (old,) = packs(tmp_path)
        origin.push({"a/main.py": "2"})
        await followed.sync()
        pinned = await followed.catalog.snapshot("a")
        origin.push({"a/main.py": "3"}, force=True)
        await followed.sync()
    on_disk(tmp_path, pinned).unlink()
    damage(old)
    async with follow(origin, tmp_path) as again:
        again.runs.add(pinned)
        await again.catalog.refresh()
        for _ in range(2):
            with pytest.raises(Unavailable, match="its copy is damaged and is fetched anew at the next sync"):
                await sent(again.catalog, pinned)
        await again.sync()
        for _ in range(2):
            with pytest.raises(NotFound, match=r'its code is damaged in the source "git" .*: run the pipeline anew'):
                await sent(again.catalog, pinned)
        assert not Mirror(again.source.objects).is_damaged


async def test_a_bundle_that_one_source_can_not_give_comes_from_another_that_has_its_code(
    root: Path, tmp_path: Path, data_dir: Path, runs: Runs
) -> None:
    for folder in (root, tmp_path / "copy"):
        make(folder / "p")
    catalog = catalog_of_both(MountedFolder, root, tmp_path / "copy", data_dir, runs)
    await catalog.refresh()
    pinned = await catalog.snapshot("p")
    assert pinned.tree == catalog.readers["second"].contents.snapshots["p"].tree
    on_disk(data_dir, pinned).unlink()
    spoil(data_dir / "first.git", b"print(1)\n")
    assert is_whole(await sent(catalog, pinned), pinned)
    await catalog.close()


class Hangs(MountedFolder):
    """A folder that is not to be asked for code."""

    def holds(self, tree: str) -> bool:
        pytest.fail("it hangs, as it did when it was looked at")


async def test_a_source_that_can_not_be_read_holds_up_no_bundle_that_another_can_give(
    root: Path, tmp_path: Path, data_dir: Path, runs: Runs
) -> None:
    away = make(tmp_path / "away" / "q", "print('q')\n").parent
    catalog = catalog_of_both(Hangs, away, root, data_dir, runs)
    await catalog.refresh()
    pinned = await edited_since(catalog, root)
    runs.add(pinned)
    on_disk(data_dir, pinned).unlink()
    away.rename(tmp_path / "further away")
    await catalog.refresh()
    assert is_whole(await sent(catalog, pinned), pinned)
    await catalog.close()


async def test_a_bundle_that_was_written_anew_stays_whoever_else_still_reads_the_damaged_one(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    pinned = await damaged(catalog, root, data_dir)
    async with await catalog.open_bundle(pinned.bundle_digest) as slow:
        await assert_mended(catalog, pinned)
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
