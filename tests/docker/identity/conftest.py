"""Wiped and copied agents, restored databases; pipelines in containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import SETTINGS


@pytest.fixture
def cluster(tmp_path: Path, runner_image: str) -> Iterator[Cluster]:
    """Not started yet."""
    with Cluster(tmp_path / "cluster", "docker", **SETTINGS) as made:
        yield made
