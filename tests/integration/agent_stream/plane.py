"""A control plane that a test starts, stops and asks."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastflow.agent.v1 import attempts_pb2, desired_pb2
from fastflow.client import open_channel
from fastflow.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
)
from fastflow_controlplane.logs.files import log_file
from fastflow_controlplane.server import serve
from fastflow_controlplane.settings import ControlPlaneSettings

from tests.integration.agent_stream.scripted_agent import PATIENCE, ScriptedAgent
from tests.ports import HeldPort

RUN = desired_pb2.DESIRED_ACTION_RUN
STOP = desired_pb2.DESIRED_ACTION_STOP
FORGET = desired_pb2.DESIRED_ACTION_FORGET
ORPHAN = desired_pb2.DESIRED_ACTION_ORPHAN
WAIT = desired_pb2.DESIRED_ACTION_WAIT


class ControlPlane:
    """A control plane on a folder, which can be started again, and a client of it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._port = HeldPort()
        self.address = f"127.0.0.1:{self._port.number}"
        self._settings = settings
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        channel = open_channel(self.address)
        self.channel = channel
        self.runs = runs_pb2_grpc.RunServiceStub(channel)
        self.agents = agents_pb2_grpc.AgentServiceStub(channel)
        self.secrets = secrets_pb2_grpc.SecretServiceStub(channel)

    def log_file(self, key: attempts_pb2.AttemptKey) -> Path:
        """Where the output of an attempt is."""
        return log_file(self._folder / "data" / "logs", key.run_id, key.attempt)

    @property
    def key_file(self) -> Path:
        """What it seals values with."""
        return self._folder / "data" / "secret.key"

    def pipeline(self, name: str, metadata: str = "{}") -> None:
        folder = self._folder / "pipelines" / name
        folder.mkdir(parents=True)
        (folder / "main.py").write_text("print(1)\n")
        (folder / "pipeline.json").write_text(metadata)

    async def start(self) -> None:
        settings = ControlPlaneSettings(
            listen=self.address,
            data_dir=self._folder / "data",
            pipelines_dir=self._folder / "pipelines",
            **self._settings,
        )
        self._stopping = asyncio.Event()
        ready = asyncio.Event()
        self._task = asyncio.create_task(serve(settings, self._stopping, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiting.cancel()
            await self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._stopping.set()
            await self._task
            self._task = None

    async def close(self) -> None:
        """Ends the client, and gives the port back."""
        await self.channel.close(None)
        self._port.close()

    async def create(self, pipeline: str = "hello", **fields: Any) -> runs_pb2.Run:
        request = runs_pb2.CreateRunRequest(pipeline=pipeline, **fields)
        return (await self.runs.CreateRun(request, wait_for_ready=True, timeout=PATIENCE)).run

    async def run(self, run_id: str) -> runs_pb2.Run:
        return (await self.runs.GetRun(runs_pb2.GetRunRequest(id=run_id), wait_for_ready=True, timeout=PATIENCE)).run

    async def agent(self, name: str = "worker-1") -> agents_pb2.Agent:
        return (await self.agents.GetAgent(agents_pb2.GetAgentRequest(name=name), timeout=PATIENCE)).agent

    async def cancel(self, run_id: str) -> None:
        await self.runs.CancelRun(runs_pb2.CancelRunRequest(id=run_id), timeout=PATIENCE)

    async def set_secret(self, name: str, value: bytes) -> None:
        request = secrets_pb2.SetSecretRequest(name=name, value=value, all_pipelines=True)
        await self.secrets.SetSecret(request, timeout=PATIENCE)


Start = Callable[..., Awaitable[ControlPlane]]
Agent = Callable[..., Awaitable[ScriptedAgent]]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for something that no message announces."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - nothing tells when another process is so far
            await asyncio.sleep(0.02)
