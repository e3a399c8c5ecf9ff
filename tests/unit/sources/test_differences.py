"""What differs between two snapshots, as people read it."""

import os
from pathlib import Path

import pytest
from fastflow_controlplane.errors import InvalidArgument, NotFound
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.differences import MAX_COMPARED_BYTES, MAX_DIFF_BYTES
from fastflow_controlplane.sources.repository import SnapshotRepository

from tests.unit.sources.conftest import make


async def test_a_changed_line_is_a_unified_diff(catalog: Catalog, root: Path) -> None:
    folder = make(root / "p", main="one\ntwo\n")
    before = await catalog.snapshot("p")
    (folder / "main.py").write_text("one\n2\n")
    after = await catalog.snapshot("p")
    text = await catalog.diff(before.tree, after.tree)
    assert "--- a/main.py\n+++ b/main.py\n" in text
    assert "-two\n+2\n" in text
    assert await catalog.diff(after.tree, after.tree) == ""


async def test_binary_and_large_files_are_only_named(catalog: Catalog, root: Path) -> None:
    folder = make(root / "p")
    (folder / "data").write_bytes(b"\0\1")
    (folder / "large.txt").write_text("a\n")
    before = await catalog.snapshot("p")
    (folder / "data").write_bytes(b"\0\2")
    (folder / "large.txt").write_text("b" * (MAX_COMPARED_BYTES + 1))
    after = await catalog.snapshot("p")
    text = await catalog.diff(before.tree, after.tree)
    assert "Binary files a/data and b/data differ\n" in text
    assert "Large files a/large.txt and b/large.txt differ (up to 4 MiB)\n" in text


async def test_large_files_are_not_read_to_be_compared(catalog: Catalog, root: Path, data_dir: Path) -> None:
    folder = make(root / "p", main="one\n")
    (folder / "large.txt").write_text("a\n" * MAX_COMPARED_BYTES)
    before = await catalog.snapshot("p")
    (folder / "large.txt").rename(folder / "moved.txt")
    (folder / "main.py").write_text("two\n")
    (folder / "huge.txt").write_text("b\n" * MAX_COMPARED_BYTES)
    after = await catalog.snapshot("p")
    snapshots = SnapshotRepository(data_dir / "snapshots.git")
    for name in {str(snapshots.folder(after.tree).tree[path].id) for path in ("moved.txt", "huge.txt")}:
        # Its header can be read, and no more.
        file = snapshots.path / "objects" / name[:2] / name[2:]
        file.chmod(0o600)
        file.write_bytes(file.read_bytes()[:100] + b"\xff" * 1000)
    text = await catalog.diff(before.tree, after.tree)
    assert "-one\n+two\n" in text
    assert "Large files a/huge.txt and b/huge.txt differ (up to 8 MiB)\n" in text
    assert "Large files a/large.txt and b/moved.txt differ (up to 8 MiB)\n" in text


async def test_a_file_that_was_moved_and_changed_is_shown_as_that(catalog: Catalog, root: Path) -> None:
    folder = make(root / "p")
    (folder / "old.py").write_text("".join(f"line {number}\n" for number in range(50)))
    before = await catalog.snapshot("p")
    (folder / "new.py").write_text((folder / "old.py").read_text() + "last\n")
    (folder / "old.py").unlink()
    text = await catalog.diff(before.tree, (await catalog.snapshot("p")).tree)
    assert "rename from old.py\nrename to new.py\n" in text
    assert "+last\n" in text


async def test_a_diff_is_bounded_and_says_so(catalog: Catalog, root: Path) -> None:
    folder = make(root / "p")
    before = await catalog.snapshot("p")
    (folder / "many.txt").write_text("".join(f"{os.urandom(20).hex()}\n" for _ in range(20_000)))
    text = await catalog.diff(before.tree, (await catalog.snapshot("p")).tree)
    assert len(text.encode()) < MAX_DIFF_BYTES + 100
    assert text.endswith("... more differs: only 256 KiB are shown\n")


async def test_code_that_is_gone_is_told(catalog: Catalog, root: Path) -> None:
    make(root / "p")
    known = await catalog.snapshot("p")
    with pytest.raises(NotFound, match="no longer there"):
        await catalog.diff(known.tree, "1" * 40)


async def test_a_plain_folder_refuses_a_ref(catalog: Catalog, root: Path) -> None:
    make(root / "p")
    await catalog.refresh()
    with pytest.raises(InvalidArgument, match="no Git repository"):
        await catalog.snapshot("p", ref="main")
