"""What is seen of runs whose packages have to be prepared first, with an index that hangs."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster


@pytest.fixture
def index() -> Iterator[str]:
    """The address of an index that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}/simple"


def unprepared(cluster: Cluster, name: str) -> str:
    """Runs a pipeline whose package nobody has."""
    cluster.add_pipeline(name, "", requirements=f"{name}-ff\n", pipeline={"cpu_hard_limit": 0.1})
    return cluster.run(name)


def waits(cluster: Cluster, name: str, message: str) -> str:
    """Runs a pipeline whose package nobody has, and waits until the run says `message`."""
    run = unprepared(cluster, name)
    says(cluster, run, message)
    return run


def says(cluster: Cluster, run: str, message: str) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        shown = cluster.show(run)
        return shown if shown.get("message") == message else None

    return cluster.until(seen, f'run {run} to say "{message}"')


def test_a_run_says_what_it_waits_for_while_its_packages_are_prepared(tmp_path: Path, index: str) -> None:
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_UV_PRE_HEAT="false") as cluster:
        cluster.start(FASTFLOW_INDEX_URL=index)
        first = waits(cluster, "first", "its environment is being prepared")
        second = waits(cluster, "second", "its environment is being prepared")
        before = "it waits for a place to prepare its environment: 2 others are prepared there first"
        third = waits(cluster, "third", before)
        assert before in " ".join(cluster.ffctl("runs", "show", third).text.split())
        following = cluster.spawn_ffctl("run", "third", "--follow")
        told = cluster.read_until(following, before)
        cluster.ffctl("runs", "cancel", first)
        says(cluster, third, "its environment is being prepared")
        told += cluster.read_until(following, "its environment is being prepared")
        assert "warning" not in told
        following.kill()
        following.communicate()
        for run in (second, third):
            cluster.ffctl("runs", "cancel", run)
            assert cluster.finish(run)["state"] == "RUN_STATE_CANCELLED"


def test_a_preparation_that_hangs_is_stopped_at_its_time_limit_and_its_run_says_so(tmp_path: Path, index: str) -> None:
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_UV_PRE_HEAT="false") as cluster:
        cluster.start(FASTFLOW_INDEX_URL=index, FASTFLOW_PREPARE_TIMEOUT="3")
        run = unprepared(cluster, "hangs")
        shown = cluster.finish(run)
        assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_ENVIRONMENT")
        assert "FASTFLOW_PREPARE_TIMEOUT" in shown["message"]
        assert b"it took longer than prepare_timeout" in cluster.log(run)
