"""Fixtures of the host lab; `tests/hosts/lab/__init__.py` tells how to use them."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from fastflow_agent.settings import AgentSettings

from tests.hosts.lab.cache import Cache, default_folder
from tests.hosts.lab.cluster import HostAgent, HostCluster
from tests.hosts.lab.errors import tail
from tests.hosts.lab.guest import Guest
from tests.hosts.lab.lab import Lab

TEST_TIMEOUT = 300.0
"""Seconds for one test, its fixtures apart (they are bounded by the lab): a container takes seconds in a guest."""

RUNNER_IMAGE_VARIABLE = "FASTFLOW_HOSTLAB_IMAGE"

FALSE_STARTS = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def runner_image() -> str:
    """The image that guests have: `FASTFLOW_HOSTLAB_IMAGE`, or the agent's default. This machine's engine has it."""
    return os.environ.get(RUNNER_IMAGE_VARIABLE) or str(AgentSettings.model_fields["image"].default)


@pytest.fixture(scope="session")
def lab(runner_image: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The lab, built or taken from its cache. A guest that had to be powered on twice is told of at its end."""
    with Lab(Cache(default_folder()), runner_image) as lab:
        yield lab
        pytestconfig.stash[FALSE_STARTS] = [guest.false_start for guest in lab.guests if guest.false_start]


@pytest.fixture(scope="session")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """A started control plane in the lab's network; one for all tests, since a host of it costs half a minute."""
    with HostCluster(lab, tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.controlplane.start()
        yield cluster


@pytest.fixture(scope="session")
def _worker(cluster: HostCluster) -> Iterator[HostAgent]:
    host = cluster.add_host("worker-1")
    yield host
    host.power_cut()


@pytest.fixture
def host_agent(cluster: HostCluster, _worker: HostAgent) -> HostAgent:
    """One worker host with its agent active and without runs; one for all tests, brought back if a test broke it."""
    _worker.recover()
    return _worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound the test functions alone: their fixtures may have to build the lab first."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT, func_only=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell of the guests that had to be powered on twice; nothing else shows it."""
    for false_start in config.stash.get(FALSE_STARTS, []):
        terminalreporter.section("powered on once more")
        terminalreporter.line(false_start)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs of every host and control plane that a failed test used."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for used in item.funcargs.values():
            report.sections += list(_logs_of(used))
    return report


def _logs_of(used: object) -> Iterator[tuple[str, str]]:
    if isinstance(used, HostAgent):
        yield f"agent of {used.name}", tail(used.log())
        yield from _logs_of(used.guest)
    elif isinstance(used, Guest):
        yield f"Docker engine of {used.name}", tail(used.read("/lab/dockerd.log"))
        yield f"console of {used.name}", tail(used.console())
    elif isinstance(used, HostCluster):
        yield "control plane", used.controlplane.tail()
