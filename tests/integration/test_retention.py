"""What is removed because it need not be kept, in real processes, as a person sees it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.trees import files_below

QUICK = {
    "FASTFLOW_RETENTION_INTERVAL": "0.2",
    "FASTFLOW_HEARTBEAT_INTERVAL": "0.3",
    # Silence of a busy machine's agent is no reason to break its stream.
    "FASTFLOW_SUSPECT_AFTER": "60",
    "FASTFLOW_SILENT_AFTER": "60",
}


@pytest.fixture
def controlplane_settings() -> dict[str, str]:
    """What is kept, and looked for often."""
    return {**QUICK, "FASTFLOW_RUN_MAX_COUNT": "2", "FASTFLOW_LOG_MAX_TOTAL": "150"}


@pytest.fixture
def cluster(tmp_path: Path, controlplane_settings: dict[str, str]) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "process", **controlplane_settings) as made:
        made.add_pipeline("chatty", "print('x' * 99)\n")
        yield made.start()


def listed(cluster: Cluster) -> list[str]:
    done = cluster.ffctl("runs", "list", "-o", "json")
    return [run["id"] for run in json.loads(done.stdout)["runs"]]


def log_files(cluster: Cluster) -> list[Path]:
    return list(files_below(cluster.folder / "controlplane" / "logs"))


def test_old_runs_and_logs_go_and_who_asks_for_them_is_told_why(cluster: Cluster) -> None:
    runs = [cluster.show(cluster.run("chatty"))["id"] for _ in range(4)]
    cluster.until(lambda: listed(cluster) == [runs[3], runs[2]], "two runs to be left")
    cluster.until(lambda: "log_remove_time" in cluster.show(runs[2])["attempts"][0], "a log to be removed")
    cluster.until(lambda: len(log_files(cluster)) == 2, "the files to be removed")

    refused = cluster.ffctl("logs", runs[2])
    assert (refused.exit_code, refused.stdout) == (4, b"")
    assert f"the log of run {runs[2]}, attempt 1, was removed by retention on " in refused.stderr
    assert "(setting log_max_total); it had 100 B" in refused.stderr
    assert cluster.ffctl("logs", runs[2], "--follow").exit_code == 4
    assert "removed by retention on" in cluster.ffctl("runs", "show", runs[2]).text
    assert cluster.log(runs[3]) == b"x" * 99 + b"\n"

    for command in (["runs", "show", runs[0]], ["runs", "rerun", runs[0]], ["logs", runs[0]]):
        gone = cluster.ffctl(*command)
        assert gone.exit_code == 4
        assert "or retention removed it (settings run_max_age and run_max_count)" in gone.stderr
    assert cluster.ffctl("runs", "diff", runs[0], runs[3]).exit_code == 4
    repeated = cluster.ffctl("runs", "rerun", runs[2]).text
    assert cluster.finish(repeated)["state"] == "RUN_STATE_SUCCEEDED"
    slots = cluster.folder / "worker-1" / "slots"
    cluster.until(lambda: not list(slots.iterdir()), "the agent to forget all runs")
    assert [condition["type"] for condition in cluster.show_agent("worker-1")["conditions"]] == ["Unconfined"]
