"""Wiped and copied agents, restored databases; pipelines in containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import SETTINGS, Copied, Keyless, Restored, Wiped

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cluster(tmp_path: Path, runner_image: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "docker", **SETTINGS) as made:
        yield made


class TestWiped(Wiped):
    """With the Docker runtime."""


class TestCopied(Copied):
    """With the Docker runtime."""


class TestKeyless(Keyless):
    """With the Docker runtime."""


class TestRestored(Restored):
    """With the Docker runtime."""
