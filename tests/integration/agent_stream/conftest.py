from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent_stream.plane import Agent, ControlPlane, Start
from tests.integration.agent_stream.scripted_agent import ScriptedAgent


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a control plane with settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> ControlPlane:
            plane = ControlPlane(tmp_path, **settings)
            stack.push_async_callback(plane.close)
            plane.pipeline("hello")
            await plane.start()
            stack.push_async_callback(plane.stop)
            return plane

        yield start


@pytest.fixture
async def plane(start: Start) -> ControlPlane:
    """A control plane with standard settings."""
    return await start()


@pytest.fixture
async def agent_of(plane: ControlPlane) -> AsyncIterator[Agent]:
    """Makes agents of `plane`."""
    async with AsyncExitStack() as stack:

        async def make(name: str = "worker-1", **fields: Any) -> ScriptedAgent:
            return await stack.enter_async_context(ScriptedAgent(plane.address, name, **fields))

        yield make


@pytest.fixture
async def agent(agent_of: Agent) -> ScriptedAgent:
    """An agent of `plane`, not connected yet."""
    return await agent_of()
