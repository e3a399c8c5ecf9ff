"""Output that waits past its quota, dropped or paused for; pipelines as plain processes. Needs root."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.backlog import Backlogs, small_disk


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    with small_disk(folder), Cluster(folder, "process") as made:
        yield made


class TestBacklogs(Backlogs):
    """With the process runtime."""
