"""A run service around a real database, with a scripted catalog and no agent."""

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fastflow.pipelines.metadata import Limits, Metadata
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import FastFlowError, NotFound
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.model import PinnedCode
from fastflow_controlplane.store.engine import Store

from tests.contract.databases import database


@dataclass
class ScriptedCatalog:
    """Pipelines by name; `fail_with` is raised instead, where it is set.

    `code` is what all pipelines hold now; what they held once stays in `kept`.
    """

    metadata: dict[str, Metadata] = field(default_factory=lambda: {"hello": Metadata(Limits(1000, 2**30))})
    fail_with: FastFlowError | None = None
    condition: str = ""
    code: str = "0"
    kept: set[str] = field(default_factory=set)

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        if self.fail_with:
            raise self.fail_with
        digest = f"sha256:{self.code * 64}"
        self.kept.add(digest)
        commit = f"commit at {ref}" if ref else ""
        return PinnedCode(name, f"tree {self.code}", commit, digest, 10, self.metadata[name], "A <a@b>", "Begin")

    async def open_bundle(self, digest: str) -> AbstractAsyncContextManager[object]:
        if digest not in self.kept:
            raise NotFound(digest)
        return nullcontext()

    async def diff(self, before: str, after: str) -> str:
        if self.fail_with:
            raise self.fail_with
        return f"- {before}\n+ {after}\n"

    def get(self, name: str) -> object:
        if name not in self.metadata:
            raise NotFound(name)
        return self.metadata[name]


class ReversibleSealer:
    """Makes values unreadable at a glance; encryption has tests of its own."""

    def seal(self, data: bytes) -> bytes:
        return base64.b85encode(data)

    def open(self, sealed: bytes) -> bytes:
        return base64.b85decode(sealed)


@dataclass
class World:
    """All parts of runs, and the clock they go by."""

    store: Store
    clock: ManualClock
    changes: Changes
    catalog: ScriptedCatalog
    logs: FileLogStore
    scheduler: Scheduler
    registry: AgentRegistry
    settings: ControlPlaneSettings

    @property
    def service(self) -> RunService:
        return RunService(
            self.store,
            self.clock,
            self.settings,
            self.changes,
            self.catalog,
            ReversibleSealer(),
            self.logs,
            self.scheduler,
            self.registry,
        )

    @property
    def reaper(self) -> Reaper:
        return Reaper(self.store, self.clock, self.settings, self.changes, self.scheduler, self.registry, 1)

    def configure(self, **settings: float) -> None:
        """Changes settings; parts made afterwards go by them."""
        self.settings = self.settings.model_copy(update=settings)
        self.registry = AgentRegistry(self.store, self.clock, self.settings, self.scheduler)

    def limits(self, name: str, limits: Limits) -> None:
        """Gives a pipeline other limits."""
        self.catalog.metadata[name] = replace(self.catalog.metadata["hello"], limits=limits)


@pytest.fixture
def database_kind() -> str:
    """Which of DATABASES; modules whose tests are about what is stored say all of them."""
    return "sqlite"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    with database(database_kind, request, tmp_path) as url:
        yield url


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    store = Store(database_url)
    store.open()
    await store.start()
    clock, changes = ManualClock(), Changes()
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    settings = ControlPlaneSettings(data_dir=tmp_path)
    logs = FileLogStore(tmp_path / "logs")
    yield World(
        store,
        clock,
        changes,
        ScriptedCatalog(),
        logs,
        scheduler,
        AgentRegistry(store, clock, settings, scheduler),
        settings,
    )
    await logs.aclose()
    await store.close()
