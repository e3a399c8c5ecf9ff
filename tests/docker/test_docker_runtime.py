"""The Docker runtime keeps the contract of runtimes."""

from collections.abc import AsyncIterator

import docker
import pytest
from fastflow_agent.runtime.base import ContainerRemoved
from fastflow_agent.runtime.container_spec import container_name
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_containers import Containers
from fastflow_agent.runtime.docker_options import DockerOptions

from tests.slots import RuntimeContract, Workshop


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

    async def test_a_preparer_that_ends_by_itself_as_its_time_is_over_was_not_stopped(
        self, workshop: Workshop, owner: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, go = workshop.late_preparer(owner)
        signal_container = Containers.signal

        async def signal_one_that_has_ended(containers: Containers, name: str, number: int) -> bool:
            go.touch()
            await containers._ends.ending(name).wake.wait()
            return await signal_container(containers, name, number)

        monkeypatch.setattr(Containers, "signal", signal_one_that_has_ended)
        result = await workshop.runtime.run_preparer(spec)
        assert (result.exit_code, result.output) == (3, b"")

    async def test_a_container_that_somebody_removes_before_its_start_is_told_to_be_gone(
        self, workshop: Workshop
    ) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        await slot.runtime.create(slot.spec)
        with docker.APIClient() as engine:
            engine.remove_container(container_name(slot.id))
        with pytest.raises(ContainerRemoved, match="was removed before its start"):
            await slot.runtime.start(slot.id)
