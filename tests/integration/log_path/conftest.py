from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow_controlplane.logs.ingest import IngestSettings

from tests.integration.log_path.world import MIB, Agent, Attempts, ControlPlane, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    attempts = Attempts()
    settings = IngestSettings(window=4 * MIB, sync_interval=0.02, retry_interval=0.05)
    controlplane = ControlPlane(tmp_path / "controlplane", attempts, settings)
    await controlplane.start()
    (tmp_path / "agent").mkdir()
    agent = Agent(tmp_path / "agent", controlplane.address)
    await agent.start()
    yield World(controlplane, agent, attempts)
    await agent.kill()
    await controlplane.stop()
    controlplane.close()
