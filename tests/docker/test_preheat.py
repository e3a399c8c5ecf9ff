"""Environments prepared ahead of runs, pipelines in containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.preheat import Preheating, preparations, wait_for_environment
from tests.cluster.reruns import Index


@pytest.fixture
def cluster(tmp_path: Path, index: Index, runner_image: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "docker") as made:
        yield made.start(FASTFLOW_IMAGE=runner_image, FASTFLOW_INDEX_URL=index.url)


class TestPreheating(Preheating):
    """With the Docker runtime."""


def test_a_run_resolves_from_its_environment_while_the_index_is_down(cluster: Cluster, index: Index) -> None:
    cluster.add_pipeline("etl", "import alphaff\nprint(alphaff.VERSION)\n", requirements="alphaff\n")
    wait_for_environment(cluster, "etl", "READY")
    before = preparations(cluster)
    index.close()
    shown = cluster.finish(cluster.run("etl"))
    assert shown["state"] == "RUN_STATE_SUCCEEDED", cluster.log(shown["id"])
    assert "alphaff==1.0" in shown["provenance"]["packages"]
    assert preparations(cluster) == before
