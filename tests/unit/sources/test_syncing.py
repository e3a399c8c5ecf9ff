"""When sources are synced, and who shares a sync."""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import NotFound, Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchProcess, Workplace
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.model import Contents
from fastflow_controlplane.sources.reader import ANSWER_SECONDS
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address
from fastflow_controlplane.sources.syncing import Fetching, SyncService
from fastflow_controlplane.store import connections
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.syncs import SyncRecord, SyncTrigger

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, PATIENCE_SECONDS, Runs, catalog_of, make

INTERVAL = 60.0


@dataclass
class World:
    origin: Origin
    clock: ManualClock
    source: GitSource
    process: FetchProcess
    catalog: Catalog
    service: SyncService
    faults: list[Exception]
    """What the next sync meets on its way."""

    async def records(self) -> tuple[SyncRecord, ...]:
        return (await self.service.syncs("git", page_size=50)).syncs

    async def until(self, condition: Callable[[tuple[SyncRecord, ...]], bool]) -> tuple[SyncRecord, ...]:
        return await eventually(self.records, condition)


T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], condition: Callable[[T], bool]) -> T:
    """Looks until what there is to see meets a condition."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if condition(found := await look()):
                return found
            await asyncio.sleep(0.01)


@asynccontextmanager
async def control_plane(origin: Origin, data: Path, answer_seconds: float = ANSWER_SECONDS) -> AsyncIterator[World]:
    """Follows `origin` from a start to an end of the control plane; all it keeps is in `data`."""
    clock = ManualClock()
    source = GitSource("git", Upstream(origin.url), "", Mirror(data / "copy.git"), DEFAULTS)
    catalog = Catalog({"git": source}, data, set, Runs().code, clock, answer_seconds)
    remote = Remote("git", parse_address(origin.url))
    process = FetchProcess(remote, Workplace(data / "copy.git", data / "home"), PATIENCE_SECONDS)

    faults: list[Exception] = []

    async def credentials() -> Credentials:
        if faults:
            raise faults.pop()
        return Credentials()

    fetching = Fetching(process, credentials, "", PATIENCE_SECONDS)
    async with running(data, clock, catalog, {"git": fetching}) as service:
        yield World(origin, clock, source, process, catalog, service, faults)


@asynccontextmanager
async def running(
    data: Path, clock: ManualClock, catalog: Catalog, fetching: Mapping[str, Fetching], *, synced: bool = True
) -> AsyncIterator[SyncService]:
    """Syncs the sources of a catalog; each was synced once, if that is to be waited for."""
    store = Store(f"sqlite:///{data / 'fastflow.db'}")
    store.open()
    await store.start()
    service = SyncService(store, clock, catalog, fetching, INTERVAL)
    task = asyncio.create_task(service.run())
    try:
        if synced:
            await eventually(service.list, lambda sources: not any(each.syncing or not each.newest for each in sources))
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await catalog.close()
        await store.close()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Holds the lock of a database, as another program can: nothing can be written."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
async def world(origin: Origin, tmp_path: Path) -> AsyncIterator[World]:
    origin.push({"a/main.py": ""})
    async with control_plane(origin, tmp_path) as world:
        yield world


async def test_a_source_is_synced_at_start_and_at_the_interval(world: World) -> None:
    (start,) = await world.records()
    assert (start.trigger, start.added) == (SyncTrigger.START, ("a",))
    commit = world.origin.push({"b/main.py": ""})
    await world.clock.advance(INTERVAL - 1)
    assert len(await world.records()) == 1
    await world.clock.advance(1)
    newest, _ = await world.until(lambda found: len(found) == 2)
    assert (newest.trigger, newest.added, newest.to_commit) == (SyncTrigger.INTERVAL, ("b",), commit)
    await world.clock.advance(INTERVAL)
    await world.until(lambda found: len(found) == 3)
    await world.clock.advance(INTERVAL)
    newest, *_ = await world.until(lambda found: found[0].repeat_count == 1)
    assert (newest.added, newest.error) == ((), "")


async def test_a_first_sync_under_way_is_no_error(origin: Origin, tmp_path: Path) -> None:
    origin.push({"a/main.py": ""})
    clock, may_fetch = ManualClock(), asyncio.Event()
    source = GitSource("git", Upstream(origin.url), "", Mirror(tmp_path / "copy.git"), DEFAULTS)
    catalog = Catalog({"git": source}, tmp_path, set, Runs().code, clock)
    remote = Remote("git", parse_address(origin.url))
    process = FetchProcess(remote, Workplace(tmp_path / "copy.git", tmp_path / "home"), PATIENCE_SECONDS)

    async def credentials() -> Credentials:
        await may_fetch.wait()
        return Credentials()

    fetching = Fetching(process, credentials, "", PATIENCE_SECONDS)
    async with running(tmp_path, clock, catalog, {"git": fetching}, synced=False) as service:
        found = await eventually(partial(service.get, "git"), lambda _: bool(catalog.condition))
        assert (found.syncing, found.error) == (True, "")
        shutil.rmtree(origin.path)
        may_fetch.set()
        found = await eventually(partial(service.get, "git"), lambda found: not found.syncing)
        assert "there is no repository at url" in found.error


async def test_who_asks_during_a_sync_shares_the_one_after_it(world: World) -> None:
    first = await world.service.sync("git")
    for _ in range(10):
        await asyncio.sleep(0)
    assert (await world.service.get("git")).syncing
    world.origin.push({"c/main.py": ""})
    later = await asyncio.gather(*(world.service.sync("git", wait=True) for _ in range(5)))
    assert len({each.id for each in later}) == 1
    assert later[0].id != first.id
    ended = await world.service.sync("git", sync_id=first.id)
    assert isinstance(ended, SyncRecord)
    assert [record.added for record in await world.records()].count(("c",)) == 1


async def test_a_sync_at_start_goes_on_from_the_commit_that_is_here(origin: Origin, tmp_path: Path) -> None:
    first = origin.push({"a/main.py": ""})
    async with control_plane(origin, tmp_path):
        pass
    second = origin.push({"b/main.py": ""})
    async with control_plane(origin, tmp_path) as world:
        start, _ = await world.records()
        assert (start.from_commit, start.to_commit, start.added) == (first, second, ("b",))


@pytest.mark.parametrize("restarts", [0, 1])
async def test_what_takes_long_to_read_is_read_to_its_end(origin: Origin, tmp_path: Path, restarts: int) -> None:
    first = origin.push({"a/main.py": ""})
    for _ in range(restarts):
        async with control_plane(origin, tmp_path):
            pass
    async with control_plane(origin, tmp_path, answer_seconds=0.0) as world:
        (start, *_) = await world.records()
        assert (start.to_commit, start.error) == (first, "")
        assert start.added == (() if restarts else ("a",))


class Held(GitSource):
    """A Git source whose next commit is read only once `go` is set."""

    go = threading.Event()
    begun = threading.Event()

    def advance(self, commit: str) -> Contents:
        self.begun.set()
        self.go.wait()
        return super().advance(commit)


async def test_nobody_waits_for_what_takes_long_to_read(origin: Origin, tmp_path: Path) -> None:
    commit = origin.push({"a/main.py": ""})
    source = Held("git", Upstream(origin.url), "", Mirror(origin.path), DEFAULTS)
    catalog = Catalog({"git": source}, tmp_path, set, Runs().code, ManualClock(), answer_seconds=0.0)
    reader = catalog.readers["git"]
    reading = asyncio.create_task(reader.take(partial(source.advance, commit), PATIENCE_SECONDS))
    await asyncio.to_thread(source.begun.wait)
    for _ in range(3):
        with pytest.raises(Unavailable, match="has not answered for 0 s"):
            await catalog.refresh()
        with pytest.raises(Unavailable, match="has not answered for 0 s"):
            await reader.prune((), 0.0)
    source.go.set()
    await reading
    assert (catalog.get("a").commit, catalog.condition) == (commit, "")
    await catalog.close()


async def test_what_was_read_too_late_for_its_sync_is_told_by_the_next(world: World) -> None:
    (start,) = await world.records()
    second = world.origin.push({"b/main.py": ""})
    world.source.advance(await world.process.fetch(Credentials()))
    await world.catalog.refresh()
    told = await world.service.sync("git", wait=True)
    assert isinstance(told, SyncRecord)
    assert (told.from_commit, told.to_commit, told.added) == (start.to_commit, second, ("b",))


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOCK_SECONDS", 0)


@pytest.mark.usefixtures("no_patience")
async def test_syncs_while_the_database_is_away_are_recorded_once_it_is_back(origin: Origin, tmp_path: Path) -> None:
    def repeats(times: int, newest: SyncRecord | None) -> bool:
        return newest is not None and not newest.added and newest.repeat_count == times

    async def newest() -> SyncRecord | None:
        return (await world.service.get("git")).newest

    origin.push({"a/main.py": ""})
    async with control_plane(origin, tmp_path) as world:
        with locked(tmp_path / "fastflow.db"):
            origin.push({"b/main.py": ""})
            first = await world.service.sync("git", wait=True)
            for times in range(3):
                await world.clock.advance(INTERVAL)
                await eventually(newest, partial(repeats, times))
            assert [record.added for record in await world.records()] == [("a",)]
            assert await world.service.sync("git", sync_id=first.id) == first
        origin.push({"c/main.py": ""})
        last = await world.service.sync("git", wait=True)
        found = await world.records()
        assert [(each.added, each.repeat_count) for each in found] == [(("c",), 0), ((), 2), (("b",), 0), (("a",), 0)]
        assert (found[0], found[2]) == (last, first)


@pytest.mark.usefixtures("no_patience")
async def test_a_change_of_a_folder_while_the_database_is_away_is_recorded_once_it_is_back(
    root: Path, data_dir: Path
) -> None:
    clock = ManualClock()
    async with running(data_dir, clock, catalog_of(root, data_dir), {}) as service:
        with locked(data_dir / "fastflow.db"):
            make(root / "p")
            told = await service.sync("folder", wait=True)
            assert isinstance(told, SyncRecord)
            assert (await service.syncs("folder", page_size=50)).syncs == ()
        await clock.advance(INTERVAL)
        page = await eventually(lambda: service.syncs("folder", page_size=50), lambda page: page.syncs != ())
    assert page.syncs == (told,)
    assert told.added == ("p",)


async def test_an_error_is_told_and_the_source_keeps_what_it_had(world: World) -> None:
    world.origin.delete("main")
    failed = await world.service.sync("git", wait=True)
    assert isinstance(failed, SyncRecord)
    assert failed.error == "the repository is empty: push a first commit"
    view = await world.service.get("git")
    assert (view.error, view.pipelines, view.commit is not None) == (failed.error, 1, True)
    world.origin.push({"a/main.py": ""})
    await world.service.sync("git", wait=True)
    assert (await world.service.get("git")).error == ""


async def test_a_fault_that_nobody_foresaw_ends_one_sync_and_nothing_else(world: World) -> None:
    world.faults.append(RuntimeError("of a library"))
    failed = await world.service.sync("git", wait=True)
    assert isinstance(failed, SyncRecord)
    assert failed.error.startswith("the control plane failed; its log tells more")
    again = await world.service.sync("git", wait=True)
    assert isinstance(again, SyncRecord)
    assert again.error == ""


async def test_what_is_not_there_is_not_found(world: World) -> None:
    with pytest.raises(NotFound, match='there is no source "gti"; did you mean "git"'):
        await world.service.get("gti")
    with pytest.raises(NotFound, match='there is no sync "x" of the source "git"'):
        await world.service.sync("git", sync_id="x")


async def test_a_changed_url_is_told_with_what_keeps_the_new_one_from_being_synced(
    origin: Origin, tmp_path: Path
) -> None:
    origin.push({"a/main.py": ""})
    async with control_plane(origin, tmp_path) as world:
        assert (await world.service.get("git")).pipelines == 1
    other = Origin(tmp_path / "other.git")
    url = other.url
    shutil.rmtree(other.path)
    async with control_plane(other, tmp_path) as world:
        shown = await world.service.get("git")
        assert (shown.place, shown.commit, shown.pipelines) == (url, None, 0)
        assert f"{url} can not be fetched: " in shown.error
        assert f"its url was changed from {origin.url} to {url}" in shown.error
        assert shown.newest is not None
        assert shown.newest.error == shown.error
