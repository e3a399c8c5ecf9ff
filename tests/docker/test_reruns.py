"""Repeating and comparing runs end to end, pipelines in containers."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cluster import Cluster
from tests.cluster.reruns import MAIN, Index, Reruns, repeat, with_another_agent


@pytest.fixture
def cluster(tmp_path: Path, index: Index, runner_image: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "docker") as made:
        made.start(FASTFLOW_INDEX_URL=index.url)
        made.add_pipeline("etl", MAIN, requirements="alphaff\n")
        yield made


class TestReruns(Reruns):
    """With the Docker runtime."""

    def test_a_rerun_of_a_script_with_a_header_gets_the_same_packages_on_an_agent_that_holds_nothing(
        self, cluster: Cluster, index: Index
    ) -> None:
        cluster.add_pipeline("script", '# /// script\n# dependencies = ["alphaff"]\n# ///\n' + dedent(MAIN))
        first = cluster.run("script", "--env", "DAY=monday")
        assert cluster.finish(first)["state"] == "RUN_STATE_SUCCEEDED", cluster.log(first)
        index.publish("alphaff", "2.0")
        with_another_agent(cluster, index)
        assert cluster.log(repeat(cluster, first)).endswith(b"1.0 monday\n")
        assert cluster.log(repeat(cluster, first, "--latest")).endswith(b"2.0 monday\n")
