"""Programs that are killed while a run lives, pipelines in containers of a real engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.scenarios import Crashes


@pytest.fixture
def cluster(tmp_path: Path, runner_image: str) -> Iterator[Cluster]:
    """A control plane and one agent with the Docker runtime."""
    with Cluster(tmp_path / "cluster", "docker") as made:
        yield made.start(FASTFLOW_IMAGE=runner_image)


class TestCrashes(Crashes):
    """With the Docker runtime."""
