"""Output that waits past its quota, dropped or paused for; pipelines in containers. Needs root."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.backlog import Backlogs, small_disk


@pytest.fixture
def cluster(tmp_path: Path, runner_image: str) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    with small_disk(folder), Cluster(folder, "docker") as made:
        yield made


class TestBacklogs(Backlogs):
    """With the Docker runtime."""
