import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fastflow_agent.agent import run_agent
from fastflow_agent.settings import AgentSettings

from tests.integration.agent_harness.controlplane import ScriptedControlPlane


class RunningAgent:
    """Agents on one data folder, one after the other, in this process."""

    def __init__(self, address: str, folder: Path, env_dir: Path) -> None:
        self.folder = folder
        self._settings = AgentSettings.load().model_copy(
            update={
                "controlplane": address,
                "data_dir": folder,
                "env_dir": env_dir,
                "agent_name": "worker-1",
                "runtime": "process",
                "labels": {"zone": "a"},
                "slots": 3,
                "disk_reserve": "0",
                "reconnect_initial": 0.05,
                "reconnect_maximum": 0.5,
            }
        )
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start an agent."""
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(run_agent(self._settings, self._stopping))

    async def stop(self) -> None:
        """Stop it as SIGTERM does."""
        if self._task is not None:
            self._stopping.set()
            async with asyncio.timeout(60):
                await self._task
            self._task = None

    def slots(self) -> list[Path]:
        """Slot folders on disk."""
        return list((self.folder / "slots").glob("*"))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - files tell nobody that they changed
                await asyncio.sleep(0.01)


@pytest.fixture
async def controlplane(tmp_path: Path) -> AsyncIterator[ScriptedControlPlane]:
    folder = tmp_path / "controlplane"
    folder.mkdir()
    async with ScriptedControlPlane(folder) as made:
        yield made


@pytest.fixture
async def agent(controlplane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[RunningAgent]:
    env_dir = Path(f"/dev/shm/fastflow-test-{secrets.token_hex(4)}")
    made = RunningAgent(controlplane.address, tmp_path / "agent", env_dir)
    made.start()
    try:
        yield made
    finally:
        await made.stop()
        shutil.rmtree(env_dir, ignore_errors=True)
