"""Whose a name is that several sources have, also while one of them was not read yet."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import NotFound, Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.model import Contents
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.remote import Credentials
from fastflow_controlplane.sources.repository import SnapshotRepository
from fastflow_controlplane.sources.source import Source

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, Runs, at_rest, follow, make


class Slow(GitSource):
    """A Git source that is read only once `go` is set."""

    def __init__(self, data: Path, url: str) -> None:
        super().__init__("git", Upstream(url), "", Mirror(data / "repository.git"), DEFAULTS)
        self.go = threading.Event()

    def scan(self) -> Contents:
        self.go.wait()
        return super().scan()


def moved_to(url: str, data: Path) -> Slow:
    """The source of which `data` has a copy, set to `url` and read at once."""
    moved = Slow(data, url)
    moved.go.set()
    return moved


@pytest.fixture
def restarted(root: Path, data_dir: Path) -> Callable[[Source], Catalog]:
    """Makes the catalog of a source and, after it, a folder, which alone was read."""
    make(root / "p", main="folder")
    make(root / "q")

    def catalog(first: Source) -> Catalog:
        folder = MountedFolder(root, SnapshotRepository(data_dir / "snapshots.git"), DEFAULTS, at_rest())
        return Catalog({"first": first, "local": folder}, data_dir, set, Runs().code, ManualClock())

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
    moved = moved_to("/elsewhere", data_dir)
    catalog = restarted(moved)
    await catalog.refresh()
    with pytest.raises(Unavailable, match=r'may be one of the source "first", .* its url was changed from'):
        await catalog.snapshot("p")
    await catalog.close()


@pytest.mark.parametrize("back", [False, True], ids=["moved", "moved back"])
async def test_a_run_is_refused_also_after_a_first_fetch_from_another_url_that_was_not_taken_into_use_and_a_restart(
    restarted: Callable[[Source], Catalog], origin: Origin, tmp_path: Path, data_dir: Path, back: bool
) -> None:
    other = Origin(tmp_path / "other.git")
    for upstream in (origin, other):
        upstream.push({"p/main.py": "git"})
    async with follow(origin, data_dir) as followed:
        await followed.sync()
    fetched = (other, origin) if back else (other,)
    for upstream in fetched:
        async with follow(upstream, data_dir) as dying:
            newest = await dying.process.fetch(Credentials())
    moved = moved_to(fetched[-1].url, data_dir)
    catalog = restarted(moved)
    await catalog.refresh()
    why = "its url or branch was changed and changed back" if back else "its url was changed from"
    with pytest.raises(Unavailable, match=rf'may be one of the source "first", .* {why}'):
        await catalog.snapshot("p")
    moved.advance(newest)
    assert (await catalog.snapshot("p")).commit == newest
    await catalog.close()


async def test_a_source_of_which_nothing_was_in_use_holds_up_no_other_once_its_url_is_changed(
    restarted: Callable[[Source], Catalog], origin: Origin, data_dir: Path
) -> None:
    origin.push({"p/main.py": "git"})
    async with follow(origin, data_dir) as dying:
        await dying.process.fetch(Credentials())
    moved = moved_to("/elsewhere", data_dir)
    catalog = restarted(moved)
    assert (await catalog.snapshot("p")).pipeline == "p"
    await catalog.close()


async def test_of_a_pipeline_that_is_not_there_a_source_that_was_not_read_yet_is_named(
    restarted: Callable[[Source], Catalog], data_dir: Path
) -> None:
    catalog = restarted(moved_to("/nowhere", data_dir))
    with pytest.raises(NotFound, match=r'no pipeline "z"; the source "first" was not read yet .* sources show first`$'):
        await catalog.snapshot("z")
    with pytest.raises(NotFound, match=r'did you mean "p".*; the source "first" was not read yet and may have it'):
        catalog.get("pp")
    await catalog.close()


async def test_a_source_that_was_never_synced_holds_up_no_other(
    restarted: Callable[[Source], Catalog], data_dir: Path
) -> None:
    catalog = restarted(moved_to("/nowhere", data_dir))
    assert (await catalog.snapshot("p")).pipeline == "p"
    await catalog.close()
