"""Environments prepared ahead of runs, pipelines as plain processes."""

import socket
from pathlib import Path

from tests.cluster import Cluster
from tests.cluster.preheat import Preheating, preparations


class TestPreheating(Preheating):
    """With the process runtime."""


def test_an_agent_that_is_stopped_while_it_prepares_leaves_nothing_of_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Cluster(tmp_path / "cluster", "process") as cluster:
        cluster.start(FASTFLOW_INDEX_URL=f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        cluster.add_pipeline("etl", "", requirements="alphaff\n")
        cluster.until(lambda: preparations(cluster), "the preparation to begin")
        connection, _ = silent.accept()
        with connection:
            cluster.agent.stop()
            assert list((cluster.folder / "worker-1" / "preparers").iterdir()) == []
            connection.settimeout(60)
            while connection.recv(4096):
                pass
