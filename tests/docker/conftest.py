"""The runner image, and a Docker runtime with slots of its own."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.release import environments_folder

from tests.cluster.reruns import Index
from tests.slots import Workshop, bridge_address

UID = 1000

Runtimes = Callable[..., DockerRuntime]


@pytest.fixture(scope="session")
def env_dir() -> Iterator[Path]:
    """A folder in memory for environments, of this process of tests alone."""
    name = f"fastflow-tests-{secrets.token_hex(4)}"
    folder = environments_folder(Path("/run") / name, Path("/dev/shm") / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def docker_options(
    runner_image: str, env_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DockerOptions]:
    """Options of a runtime that shares its folders with the other tests' but has its own agent id."""
    folder = tmp_path_factory.mktemp("runtime")

    def make(**changes: object) -> DockerOptions:
        values = {
            "agent_id": f"test-{secrets.token_hex(8)}",
            "data_dir": folder,
            "env_dir": env_dir,
            "image": runner_image,
            "egress": Egress(network="none"),
        }
        return DockerOptions(**(values | changes))

    return make


@pytest.fixture(scope="session")
def empty_cache(docker_options: Callable[..., DockerOptions]) -> Path:
    """A prepared uv cache without any package: what uv found out about the interpreter."""
    options = docker_options()

    async def prepare() -> Path:
        runtime = DockerRuntime(options)
        try:
            return await Workshop(runtime, options.data_dir, options.env_dir, Path()).prepare("empty", UID)
        finally:
            await runtime.aclose()

    return asyncio.run(prepare())


@pytest.fixture
async def options(docker_options: Callable[..., DockerOptions]) -> DockerOptions:
    """Options of this test's runtime."""
    return docker_options()


@pytest.fixture
async def runtime(options: DockerOptions) -> AsyncIterator[DockerRuntime]:
    """A Docker runtime over the machine's engine."""
    runtime = DockerRuntime(options)
    yield runtime
    await runtime.aclose()


@pytest.fixture
async def workshop(runtime: DockerRuntime, options: DockerOptions, empty_cache: Path) -> AsyncIterator[Workshop]:
    """Slots of the runtime; all are removed in the end."""
    workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
    yield workshop
    await workshop.clear()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """On the host's end of Docker's bridge, where containers reach it."""
    index = Index(tmp_path / "index", bridge_address())
    yield index
    index.close()
