"""A control plane killed in the middle of removing runs and logs: rows and files agree after the next start."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import grpc
import pytest
from fastflow.service.failpoints import ControlPlanePoint

from tests.cluster import Cluster
from tests.cluster.api import Api

RUNS = 4
SECONDS = 60.0
ALL = {"FASTFLOW_RUN_MAX_COUNT": "0", "FASTFLOW_LOG_MAX_TOTAL": "0"}
FEW = {
    ControlPlanePoint.RUNS_REMOVED: {"FASTFLOW_RUN_MAX_COUNT": "1"},
    ControlPlanePoint.LOGS_REMOVED: {"FASTFLOW_LOG_MAX_TOTAL": "1"},
    ControlPlanePoint.FILES_REMOVED: {"FASTFLOW_RUN_MAX_COUNT": "1"},
}
"""What is kept after the death, which leaves something to remove."""


@pytest.fixture(scope="class")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    quick = {
        "FASTFLOW_RETENTION_INTERVAL": "0.2",
        "FASTFLOW_HEARTBEAT_INTERVAL": "0.5",
        # Silence of a busy machine's agent is no reason to break its stream.
        "FASTFLOW_SUSPECT_AFTER": "20",
        "FASTFLOW_SILENT_AFTER": "20",
    }
    with Cluster(tmp_path_factory.mktemp("retention") / "cluster", "process", **quick) as made:
        yield made.start()


def files_of_runs(cluster: Cluster) -> set[str]:
    logs = cluster.folder / "controlplane" / "logs"
    return {path.name for path in logs.glob("??/*")}


def query(cluster: Cluster, words: str) -> set[str]:
    (database,) = (cluster.folder / "controlplane").glob("*.db")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return {str(row[0]) for row in connection.execute(words)}


def kept_logs(cluster: Cluster) -> set[str]:
    return query(cluster, "SELECT run_id FROM attempts WHERE log_remove_time IS NULL")


@pytest.fixture(scope="class")
def api(cluster: Cluster) -> Iterator[Api]:
    with Api(cluster.server) as made:
        yield made


class TestRetention:
    """With the process runtime; containers have no part in it."""

    @pytest.mark.parametrize("point", list(FEW))
    def test_what_was_begun_is_finished_by_the_next_start(
        self, cluster: Cluster, api: Api, point: ControlPlanePoint
    ) -> None:
        name = str(point).replace(".", "_")
        controlplane = cluster.controlplane
        cluster.add_pipeline(name, "print('output')\n")
        self._restart(cluster, ALL)
        api.agent("worker-1")
        runs = [api.create_run(name, "", {}) for _ in range(RUNS)]
        unsettled = "SELECT id FROM runs WHERE id NOT IN (SELECT run_id FROM attempts WHERE desired = 'FORGET')"
        cluster.until(lambda: not query(cluster, unsettled), "all runs to end")

        self._restart(cluster, FEW[point], f"{point}=kill")
        cluster.until(lambda: not controlplane.alive, f"the death at {point}")
        controlplane.check_killed_at(point)
        due = query(cluster, "SELECT run_id FROM log_removals")
        assert due == set(runs[:-1])
        assert (due & files_of_runs(cluster) == set()) is (point is ControlPlanePoint.FILES_REMOVED)

        controlplane.start()
        assert api.log(runs[-1]) == b"output\n"
        cluster.until(lambda: not query(cluster, "SELECT run_id FROM log_removals"), "the rest to be removed")
        assert files_of_runs(cluster) == kept_logs(cluster)
        assert runs[-1] in files_of_runs(cluster)
        said = "removed by retention" if point is ControlPlanePoint.LOGS_REMOVED else "retention removed it"
        with pytest.raises(grpc.RpcError, match=said):
            api.log(runs[0])

    def _restart(self, cluster: Cluster, kept: dict[str, str], point: str = "") -> None:
        cluster.controlplane.kill()
        cluster.controlplane.settings |= kept
        cluster.controlplane.start(point)
