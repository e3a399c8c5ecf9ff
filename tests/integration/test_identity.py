"""Wiped and copied agents, restored databases; pipelines as plain processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import SETTINGS, Copied, Keyless, Restored, Wiped

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "process", **SETTINGS) as made:
        yield made


class TestWiped(Wiped):
    """With the process runtime."""


class TestCopied(Copied):
    """With the process runtime."""


class TestKeyless(Keyless):
    """With the process runtime."""


class TestRestored(Restored):
    """With the process runtime."""
