"""What differs between two snapshots, as people read it."""

import os
from pathlib import Path

import pytest
from fastflow_controlplane.errors import InvalidArgument, NotFound
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.differences import MAX_COMPARED_BYTES, MAX_DIFF_BYTES

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
