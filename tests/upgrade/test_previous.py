"""A control plane with an agent of the previous protocol, and the other way about: a run goes through whole."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastflow.pipelines.bundle import pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder

from tests.cluster import Cluster
from tests.cluster.program import Program
from tests.upgrade.conftest import PreviousProgram

Previous = Callable[..., PreviousProgram]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A control plane of today, without agents."""
    with Cluster(tmp_path / "cluster", "process") as made:
        made.controlplane.start()
        yield made


def test_a_run_goes_through_on_an_agent_of_the_previous_protocol(cluster: Cluster, previous: Previous) -> None:
    agent = previous("agent.py", cluster.server)
    agent.until("welcome to protocol 1")
    cluster.wait_for_agent("previous")
    cluster.add_pipeline("hello", "print(1)")
    run = cluster.show(cluster.run("hello", "--env", "KEY=value"))["id"]
    agent.until(f"forget {run}")
    shown = cluster.show(run)
    assert shown["state"] == "RUN_STATE_SUCCEEDED"
    assert shown["attempts"][0]["log_sealed"]
    assert cluster.log(run) == b"hello\n"


def test_a_run_is_cancelled_on_an_agent_of_the_previous_protocol(cluster: Cluster, previous: Previous) -> None:
    agent = previous("agent.py", cluster.server)
    cluster.wait_for_agent("previous")
    cluster.add_pipeline("waits", "print(1)")
    run = cluster.show(cluster.run("waits"))["id"]
    cluster.wait_for_state(run, "RUNNING")
    assert cluster.ffctl("runs", "cancel", run).exit_code == 0
    agent.until(f"stop {run} within 10 s")
    agent.until(f"forget {run}")
    assert cluster.show(run)["state"] == "RUN_STATE_CANCELLED"


def test_a_drain_of_an_agent_of_the_previous_protocol_cancels_no_run(cluster: Cluster, previous: Previous) -> None:
    agent = previous("agent.py", cluster.server)
    cluster.wait_for_agent("previous")
    for pipeline in ("waits", "prepares"):
        cluster.add_pipeline(pipeline, "print(1)")
    running, unbegun = (cluster.show(cluster.run(pipeline))["id"] for pipeline in ("waits", "prepares"))
    cluster.wait_for_state(running, "RUNNING")
    cluster.wait_for_state(unbegun, "PREPARING")
    assert cluster.ffctl("agents", "drain", "previous", "--stop").exit_code == 0, agent.said
    stopped, waiting = cluster.show(running), cluster.show(unbegun)
    assert (stopped["state"], stopped["reason"]) == ("RUN_STATE_CANCELLED", "REASON_AGENT_DRAINED")
    assert "drained" in stopped["message"]
    assert (waiting["state"], waiting["reason"]) == ("RUN_STATE_QUEUED", "REASON_AGENT_DRAINED")


def test_todays_agent_runs_what_a_control_plane_of_the_previous_protocol_assigns(
    tmp_path: Path, previous: Previous
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("import os; print(os.environ['GREETING'], 'from the container')")
    archive = io.BytesIO()
    bundle = pack(read_code(DiskFolder(code)), archive)
    (tmp_path / "bundle.tar").write_bytes(archive.getvalue())
    controlplane = previous("controlplane.py", str(tmp_path / "bundle.tar"), bundle.digest)
    port = controlplane.until("port ").removeprefix("port ")
    settings = {
        "FASTFLOW_CONTROLPLANE": f"127.0.0.1:{port}",
        "FASTFLOW_DATA_DIR": str(tmp_path / "agent"),
        "FASTFLOW_ENV_DIR": str(tmp_path / "env"),
        "FASTFLOW_RUNTIME": "process",
    }
    agent = Program(["fastflow-agent", "run"], tmp_path / "agent.log", settings)
    agent.start()
    try:
        controlplane.until("forgotten")
        assert controlplane.ends() == 0, agent.tail()
    finally:
        agent.stop()
    states = [line.removeprefix("RUN_STATE_") for line in controlplane.said if line.startswith("RUN_STATE_")]
    assert states == ["PREPARING", "RUNNING", "SUCCEEDED"]
    assert "log b'hello from the container\\n' sealed at 25" in " ".join(controlplane.said)
