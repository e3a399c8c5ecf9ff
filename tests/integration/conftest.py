"""Integration tests: real processes, real gRPC, real SQLite, pipelines as plain processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A control plane and one agent with the process runtime."""
    with Cluster(tmp_path / "cluster", "process") as made:
        yield made.start()
