"""Sessions of agents."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.duplicates import Duplicates
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.agents.unreported import Unreported
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.queries.cluster import Leadership

from tests.unit.agents.streams import BrokenStore, NoSecrets, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = BrokenStore(f"sqlite:///{tmp_path}/fastflow.db")
    store.open()
    await store.start()
    clock, changes = ManualClock(), Changes()
    settings = ControlPlaneSettings(data_dir=tmp_path)
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    registry = AgentRegistry(store, clock, settings, scheduler)
    logs = FileLogStore(tmp_path / "logs")
    unreported = Unreported(store, clock, logs, changes, scheduler, registry, settings.orphan_grace)
    assignments = Assignments(store, clock, NoSecrets(), logs, changes, scheduler, registry, unreported, 1, 10.0)
    parts = SessionParts(
        store=store,
        clock=clock,
        settings=settings,
        leadership=Leadership(new_id(), 1),
        registry=registry,
        duplicates=Duplicates(registry, clock, settings),
        assignments=assignments,
        preheat=Preheat(False, lambda name: None, registry),
        scheduler=scheduler,
        changes=changes,
        version="test",
    )
    yield World(store, clock, registry, AgentSessions(parts), parts, {}, logs, unreported)
    await logs.aclose()
    await store.close()
