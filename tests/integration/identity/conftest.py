"""Wiped and copied agents, restored databases; pipelines as plain processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import SETTINGS


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Not started yet."""
    with Cluster(tmp_path / "cluster", "process", **SETTINGS) as made:
        yield made
