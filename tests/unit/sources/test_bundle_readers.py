"""Agents that go away while code is opened for them or sent to them."""

import asyncio
import threading
from pathlib import Path

import pytest
from fastflow_controlplane.sources.bundles import BundleFile, BundleStore
from fastflow_controlplane.sources.catalog import Catalog

from tests.unit.sources.conftest import make


async def test_what_is_opened_for_an_agent_that_went_away_is_closed(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    begun, go_on = threading.Event(), threading.Event()
    opened: list[BundleFile] = []
    work = BundleStore._open

    def open_slowly(store: BundleStore, path: Path) -> BundleFile:
        begun.set()
        go_on.wait(60)
        opened.append(work(store, path))
        return opened[0]

    monkeypatch.setattr(BundleStore, "_open", open_slowly)
    asking = asyncio.create_task(catalog.open_bundle(pinned.bundle_digest))
    await asyncio.to_thread(begun.wait, 60)
    asking.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert [file._file.closed for file in opened] == [True]


async def test_what_is_read_for_an_agent_that_went_away_is_closed_after_that(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    begun, go_on = threading.Event(), threading.Event()
    read: list[bytes] = []
    work = BundleFile._next

    def read_slowly(file: BundleFile, limit: int) -> bytes:
        begun.set()
        go_on.wait(60)
        read.append(work(file, limit))
        return read[0]

    async def send() -> None:
        async with await catalog.open_bundle(pinned.bundle_digest) as file:
            await file.read(10)

    monkeypatch.setattr(BundleFile, "_next", read_slowly)
    sending = asyncio.create_task(send())
    await asyncio.to_thread(begun.wait, 60)
    sending.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([sending])
    assert sending.cancelled()
    assert [len(piece) for piece in read] == [10]
