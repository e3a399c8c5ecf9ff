"""The Docker runtime keeps the contract of runtimes."""

from collections.abc import AsyncIterator

import pytest
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions

from tests.slots import RuntimeContract


@pytest.fixture
async def successor(options: DockerOptions) -> AsyncIterator[DockerRuntime]:
    """The runtime of the next agent process."""
    runtime = DockerRuntime(options)
    yield runtime
    await runtime.aclose()


@pytest.fixture
def owner(options: DockerOptions) -> int:
    """The user programs run as."""
    return options.container_uid


class TestDockerRuntime(RuntimeContract):
    """Slots are containers."""
