"""Repeating and comparing runs end to end, pipelines in containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.reruns import MAIN, Index, Reruns


@pytest.fixture
def cluster(tmp_path: Path, index: Index, runner_image: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "docker") as made:
        made.start(FASTFLOW_INDEX_URL=index.url)
        made.add_pipeline("etl", MAIN, requirements="alphaff\n")
        yield made


class TestReruns(Reruns):
    """With the Docker runtime."""
