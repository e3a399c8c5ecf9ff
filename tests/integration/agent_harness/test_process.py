"""The agent as a process of its own: signals, exit codes, and the hold on its data folder."""

import asyncio
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.program import Program
from tests.integration.agent_harness.controlplane import ScriptedControlPlane

WAITS_FOR_ANSWERS = """
from functools import partial
from fastflow_agent import __main__, agent
from fastflow_agent.runtime.docker_options import DockerTimes
day = 86400.0
times = DockerTimes(probe=1.0, question=day, action=day, image_look=day)
agent.DockerOptions = partial(agent.DockerOptions, times=times)
__main__.main()
"""
"""An agent whose questions to the engine wait for a day, so whatever waits for one of them does not end in a test."""


@pytest.fixture
async def settings(controlplane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    env_dir = Path(f"/dev/shm/fastflow-test-{secrets.token_hex(4)}")
    yield {
        "FASTFLOW_CONTROLPLANE": controlplane.address,
        "FASTFLOW_DATA_DIR": str(tmp_path / "agent"),
        "FASTFLOW_ENV_DIR": str(env_dir),
        "FASTFLOW_RUNTIME": "process",
    }
    shutil.rmtree(env_dir, ignore_errors=True)


def _agent(settings: dict[str, str], log: Path) -> Program:
    return Program(["fastflow-agent", "run"], log, settings)


async def test_sigterm_says_goodbye_and_exits_with_zero(
    controlplane: ScriptedControlPlane, settings: dict[str, str], tmp_path: Path
) -> None:
    agent = _agent(settings, tmp_path / "agent.log")
    agent.start()
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full()
    await stream.until_applied(1)
    ending = asyncio.create_task(asyncio.to_thread(agent.stop))
    assert await stream.next("goodbye") is not None
    stream.end()
    assert await ending == 0


async def test_an_agent_without_a_control_plane_still_stops_at_once(
    controlplane: ScriptedControlPlane, settings: dict[str, str], tmp_path: Path
) -> None:
    await controlplane.stop()
    agent = _agent(settings, tmp_path / "agent.log")
    agent.start()
    await asyncio.to_thread(agent.wait_for_log, "waiting for the control plane to answer")
    assert await asyncio.to_thread(agent.stop) == 0


async def test_a_second_agent_on_the_same_data_folder_is_told_who_has_it(
    controlplane: ScriptedControlPlane, settings: dict[str, str], tmp_path: Path
) -> None:
    first = _agent(settings, tmp_path / "first.log")
    first.start()
    await controlplane.stream()
    second = _agent(settings, tmp_path / "second.log")
    second.start()
    await asyncio.to_thread(second.wait_for_log, f"process {first.pid}")
    async with asyncio.timeout(60):
        while second.alive:  # noqa: ASYNC110 - its end tells nobody
            await asyncio.sleep(0.02)
    assert second.stop() == 1
    assert first.alive
    assert await asyncio.to_thread(first.stop) == 0


async def test_an_engine_that_hangs_blocks_placement_and_neither_the_agent_nor_its_end(
    controlplane: ScriptedControlPlane, settings: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "docker.sock"))
        # Connections are made and never looked at.
        hung.listen(128)
        changes = {"FASTFLOW_RUNTIME": "docker", "FASTFLOW_DOCKER_HOST": f"unix://{tmp_path / 'docker.sock'}"}
        agent = _agent({**settings, **changes}, tmp_path / "agent.log")
        agent.command = [sys.executable, "-c", WAITS_FOR_ANSWERS, "run"]
        agent.start()
        stream = await controlplane.stream()
        await stream.welcome()
        await stream.full()
        heartbeat = await stream.until_applied(1)
        held = {condition.type: condition for condition in heartbeat.conditions}
        assert held["DockerUnavailable"].blocks_placement
        ending = asyncio.create_task(asyncio.to_thread(agent.stop))
        assert await stream.next("goodbye") is not None
        stream.end()
        assert await ending == 0
