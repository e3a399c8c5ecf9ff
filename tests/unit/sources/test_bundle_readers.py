"""Agents that go away while code is opened for them or sent to them."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fastflow_controlplane.sources.bundles import BundleFile, BundleStore
from fastflow_controlplane.sources.catalog import Catalog

from tests.unit.sources.conftest import make


class HeldBack:
    """Work in a thread that has begun and goes on only once whoever asked for it went away; `results` of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.results: list[Any] = []
        self._begun, self._go_on = threading.Event(), threading.Event()
        work = getattr(owner, name)

        def work_slowly(*arguments: Any) -> Any:
            self._begun.set()
            self._go_on.wait(60)
            self.results.append(work(*arguments))
            return self.results[-1]

        monkeypatch.setattr(owner, name, work_slowly)

    async def leave(self, asking: asyncio.Task[Any]) -> None:
        """Cancels `asking` while the work goes on, and returns once both are over."""
        await asyncio.to_thread(self._begun.wait, 60)
        asking.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._go_on.set()
        await asyncio.wait([asking])
        assert asking.cancelled()


async def test_what_is_opened_for_an_agent_that_went_away_is_closed(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    opening = HeldBack(monkeypatch, BundleStore, "_open")
    await opening.leave(asyncio.create_task(catalog.open_bundle(pinned.bundle_digest)))
    assert [file._file.closed for file in opening.results] == [True]


async def test_what_is_read_for_an_agent_that_went_away_is_closed_after_that(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    reading = HeldBack(monkeypatch, BundleFile, "_next")

    async def send() -> None:
        async with await catalog.open_bundle(pinned.bundle_digest) as file:
            await file.read(10)

    await reading.leave(asyncio.create_task(send()))
    assert [len(piece) for piece in reading.results] == [10]
