"""Code that no kept run was made of goes; the code of kept runs stays, whatever was pushed or edited since."""

import asyncio
import time
from pathlib import Path

import pytest
from fastflow_controlplane.errors import NotFound
from fastflow_controlplane.sources.bundles import PARTIAL_PREFIX
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.model import PinnedCode

from tests.unit.sources.conftest import Followed, Runs, catalog_of, make, on_disk

LATER = time.time() + 7200.0
"""Everything a test made was last used before this."""


def bundles(data_dir: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (data_dir / "bundles" / "sha256").iterdir()}


def objects(data_dir: Path) -> int:
    return len(list((data_dir / "snapshots.git" / "objects").glob("??/*")))


async def edited(catalog: Catalog, folder: Path, times: int) -> list[PinnedCode]:
    """The code of a pipeline that is edited again and again."""
    pinned = []
    for number in range(times):
        (folder / "main.py").write_text(f"print({number})\n")
        (folder / f"part{number}.py").write_text(f"part = {number}\n")
        pinned.append(await catalog.snapshot("p"))
    return pinned


async def test_of_a_folder_that_is_edited_again_and_again_only_code_of_kept_runs_stays(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    code = await edited(catalog, make(root / "p"), 20)
    grown = objects(data_dir)
    assert len(bundles(data_dir)) == 20
    kept = code[3]
    await catalog.prune({kept.bundle_digest}, {kept.tree}, LATER)
    assert bundles(data_dir) == {kept.bundle_digest, code[-1].bundle_digest}
    assert objects(data_dir) < grown / 2
    assert "-print(3)\n+print(19)" in await catalog.diff(kept.tree, code[-1].tree)
    with pytest.raises(NotFound):
        await catalog.open_bundle(code[4].bundle_digest)
    # What is current can be read as before, and what was removed comes back when the folder does.
    (root / "p" / "main.py").write_text("print(4)\n")
    for number in range(5, 20):
        (root / "p" / f"part{number}.py").unlink()
    again = await catalog.snapshot("p")
    assert again == code[4]
    async with await catalog.open_bundle(again.bundle_digest) as bundle:
        assert bundle.size == again.bundle_size
    assert await catalog.diff(kept.tree, again.tree)


async def test_a_damaged_tree_of_one_run_costs_no_other_run_its_code(
    catalog: Catalog, root: Path, data_dir: Path, runs: Runs
) -> None:
    spoilt, whole, _ = await edited(catalog, make(root / "p"), 3)
    file = data_dir / "snapshots.git" / "objects" / spoilt.tree[:2] / spoilt.tree[2:]
    file.unlink()
    file.write_bytes(b"spoilt")
    runs.add(whole)
    on_disk(data_dir, whole).unlink()
    # Another one, for this one remembers trees that it read.
    again = catalog_of(root, data_dir, runs=runs)
    await again.prune({spoilt.bundle_digest, whole.bundle_digest}, {spoilt.tree, whole.tree}, LATER)
    async with await again.open_bundle(whole.bundle_digest) as bundle:
        assert bundle.size == whole.bundle_size
    await again.close()


async def test_code_that_was_just_looked_up_stays_though_no_run_of_it_is_stored_yet(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    first, second, current = await edited(catalog, make(root / "p"), 3)
    since = time.time()
    await asyncio.sleep(0.02)  # the clock of the file system ticks each few milliseconds
    async with await catalog.open_bundle(second.bundle_digest):
        pass
    await catalog.prune((), (), since)
    assert bundles(data_dir) == {second.bundle_digest, current.bundle_digest}
    assert first.bundle_digest not in bundles(data_dir)


async def test_a_bundle_that_is_written_now_stays(catalog: Catalog, root: Path, data_dir: Path) -> None:
    make(root / "p")
    await catalog.snapshot("p")
    partial = data_dir / "bundles" / "sha256" / f"{PARTIAL_PREFIX}x"
    partial.touch()
    await catalog.prune((), (), LATER)
    assert partial.exists()


async def test_a_bundle_that_comes_under_its_name_meanwhile_holds_up_nothing(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    _, current = await edited(catalog, make(root / "p"), 2)
    for name in "ab":
        # There when the folder is listed, and not there when it is looked at.
        (data_dir / "bundles" / "sha256" / f"{PARTIAL_PREFIX}{name}").symlink_to(data_dir / "gone")
    await catalog.prune((), (), LATER)
    assert current.bundle_digest in bundles(data_dir)
    assert len(bundles(data_dir)) == 3


async def test_a_forced_push_takes_neither_code_nor_comparison_from_a_kept_run(
    followed: Followed, data_dir: Path
) -> None:
    followed.origin.push({"p/main.py": "print(1)\n"})
    await followed.sync()
    kept = await followed.catalog.snapshot("p")
    followed.origin.push({"p/main.py": "print(2)\n"}, force=True)
    await followed.sync()
    now = await followed.catalog.snapshot("p")
    await followed.catalog.prune({kept.bundle_digest}, {kept.tree}, LATER)
    async with await followed.catalog.open_bundle(kept.bundle_digest) as bundle:
        assert bundle.size == kept.bundle_size
    assert "-print(1)\n+print(2)" in await followed.catalog.diff(kept.tree, now.tree)
    await followed.catalog.prune((), (), LATER)
    with pytest.raises(NotFound):
        await followed.catalog.open_bundle(kept.bundle_digest)
    assert bundles(data_dir) == {now.bundle_digest}
