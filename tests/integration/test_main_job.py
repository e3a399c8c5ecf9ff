"""The main job end to end, pipelines as plain processes."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster
from tests.cluster.scenarios import Leftovers, MainJob


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane and one agent, which no test here harms."""
    with Cluster(tmp_path_factory.mktemp("main-job") / "cluster", "process") as made:
        yield made.start()


class TestMainJob(MainJob):
    """With the process runtime."""


class TestLeftovers(Leftovers):
    """With the process runtime."""
