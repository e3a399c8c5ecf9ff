"""When sources are synced, and who shares a sync."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import NotFound
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchProcess, Workplace
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address
from fastflow_controlplane.sources.syncing import Fetching, SyncService
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.syncs import SyncRecord, SyncTrigger

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS

INTERVAL = 60.0
PATIENCE_SECONDS = 30.0


@dataclass
class World:
    origin: Origin
    clock: ManualClock
    service: SyncService
    faults: list[Exception]
    """What the next sync meets on its way."""

    async def records(self) -> tuple[SyncRecord, ...]:
        return (await self.service.syncs("git", page_size=50)).syncs

    async def until(self, condition: Callable[[tuple[SyncRecord, ...]], bool]) -> tuple[SyncRecord, ...]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if condition(found := await self.records()):
                    return found
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    origin = Origin(tmp_path / "origin.git")
    origin.push({"a/main.py": ""})
    store = Store(f"sqlite:///{tmp_path / 'fastflow.db'}")
    store.open()
    await store.start()
    clock = ManualClock()
    source = GitSource("git", origin.url, "", Mirror(tmp_path / "copy.git"), DEFAULTS)
    catalog = Catalog({"git": source}, tmp_path, set, clock)
    remote = Remote("git", parse_address(origin.url))
    process = FetchProcess(remote, Workplace(tmp_path / "copy.git", tmp_path / "home"), PATIENCE_SECONDS)

    faults: list[Exception] = []

    async def credentials() -> Credentials:
        if faults:
            raise faults.pop()
        return Credentials()

    service = SyncService(store, clock, catalog, {"git": Fetching(process, credentials, "")}, INTERVAL)
    running = asyncio.create_task(service.run())
    world = World(origin, clock, service, faults)
    await world.until(bool)
    yield world
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await catalog.close()
    await store.close()


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
