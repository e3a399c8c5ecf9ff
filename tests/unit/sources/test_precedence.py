"""Whose a name is that several sources have, also while one of them was not read yet."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.model import Contents
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.repository import SnapshotRepository
from fastflow_controlplane.sources.source import Source

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, at_rest, follow, make


class Slow(GitSource):
    """A Git source that is read only once `go` is set."""

    def __init__(self, data: Path, url: str) -> None:
        super().__init__("git", Upstream(url), "", Mirror(data / "repository.git"), DEFAULTS)
        self.go = threading.Event()

    def scan(self) -> Contents:
        self.go.wait()
        return super().scan()


@pytest.fixture
def restarted(root: Path, data_dir: Path) -> Callable[[Source], Catalog]:
    """Makes the catalog of a source and, after it, a folder, which alone was read."""
    make(root / "p", main="folder")
    make(root / "q")

    def catalog(first: Source) -> Catalog:
        folder = MountedFolder(root, SnapshotRepository(data_dir / "snapshots.git"), DEFAULTS, at_rest())
        return Catalog({"first": first, "local": folder}, data_dir, set, ManualClock())

    data_dir.mkdir()
    return catalog


async def test_a_run_waits_for_an_earlier_source_that_may_have_its_pipeline(
    restarted: Callable[[Source], Catalog], origin: Origin, data_dir: Path
) -> None:
    commit = origin.push({"p/main.py": "git"})
    async with follow(origin, data_dir) as followed:
        await followed.sync()
    source = Slow(data_dir, origin.url)
    catalog = restarted(source)
    await catalog.readers["local"].refresh()
    waiting = [asyncio.create_task(catalog.snapshot(name)) for name in ("p", "q")]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    source.go.set()
    of_both, of_one = await asyncio.gather(*waiting)
    assert (of_both.commit, of_one.commit) == (commit, "")
    await catalog.close()


async def test_a_run_is_refused_while_an_earlier_source_can_not_be_read(
    restarted: Callable[[Source], Catalog], tmp_path: Path, data_dir: Path
) -> None:
    away = tmp_path / "away"
    catalog = restarted(MountedFolder(away, SnapshotRepository(data_dir / "away.git"), DEFAULTS, at_rest()))
    await catalog.refresh()
    with pytest.raises(Unavailable, match='may be one of the source "first", which could not be read since the start:'):
        await catalog.snapshot("p")
    make(away / "p", main="first")
    assert (await catalog.snapshot("p")).tree == catalog.get("p").tree
    assert catalog.get("p").source == str(away)
    away.rename(tmp_path / "away again")
    assert (await catalog.snapshot("q")).pipeline == "q", "what it had last is known now"
    await catalog.close()


async def test_a_run_is_refused_while_an_earlier_source_with_another_url_was_not_synced(
    restarted: Callable[[Source], Catalog], origin: Origin, data_dir: Path
) -> None:
    origin.push({"p/main.py": "git"})
    async with follow(origin, data_dir) as followed:
        await followed.sync()
    moved = Slow(data_dir, "/elsewhere")
    moved.go.set()
    catalog = restarted(moved)
    await catalog.refresh()
    with pytest.raises(Unavailable, match=r'may be one of the source "first", .* its url was changed from'):
        await catalog.snapshot("p")
    await catalog.close()


async def test_a_source_that_was_never_synced_holds_up_no_other(
    restarted: Callable[[Source], Catalog], data_dir: Path
) -> None:
    never = Slow(data_dir, "/nowhere")
    never.go.set()
    catalog = restarted(never)
    assert (await catalog.snapshot("p")).pipeline == "p"
    await catalog.close()
