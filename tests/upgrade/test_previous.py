"""A control plane with an agent of the previous protocol, and the other way about: a run goes through whole."""

import io
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from fastflow.pipelines.bundle import pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder

from tests.cluster import Cluster
from tests.cluster.program import Program
from tests.upgrade.conftest import PreviousProgram

Previous = Callable[..., PreviousProgram]
Serve = Callable[..., PreviousProgram]


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


def test_a_run_goes_on_over_a_restart_on_an_agent_of_the_previous_protocol(
    cluster: Cluster, previous: Previous
) -> None:
    agent = previous("agent.py", cluster.server)
    cluster.wait_for_agent("previous")
    cluster.add_pipeline("waits", "print(1)")
    run = cluster.show(cluster.run("waits"))["id"]
    cluster.wait_for_state(run, "RUNNING")
    cluster.controlplane.kill()
    cluster.controlplane.start()
    agent.until(f"goes on {run}")
    shown = cluster.show(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_RUNNING", 1)
    assert cluster.ffctl("runs", "cancel", run).exit_code == 0
    agent.until(f"forget {run}")
    shown = cluster.show(run)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_CANCELLED", "REASON_CANCEL_REQUESTED")
    assert cluster.log(run) == b"waits\n"


def test_what_an_agent_of_the_previous_protocol_lost_holds_its_capacity_for_a_bounded_time(
    tmp_path: Path, previous: Previous
) -> None:
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_ORPHAN_GRACE="1") as cluster:
        cluster.controlplane.start()
        agent = previous("agent.py", cluster.server)
        cluster.wait_for_agent("previous")
        cluster.add_pipeline("waits", "print(1)")
        run = cluster.show(cluster.run("waits"))["id"]
        cluster.wait_for_state(run, "RUNNING")
        agent.kill()
        assert cluster.ffctl("runs", "abandon", run, "--yes").exit_code == 0
        # Another process of the same agent, which never heard of the run.
        previous("agent.py", cluster.server)
        shown = cluster.finish(run)
        assert not shown["attempts"][0]["released"]
        assert cluster.show_agent("previous")["reserved"]["slots"] == 1
        cluster.until(lambda: not cluster.show_agent("previous").get("attempts"), "its capacity to be free")
        assert cluster.show(run)["attempts"][0]["released"]


@pytest.fixture
def serve(tmp_path: Path, previous: Previous) -> Iterator[Serve]:
    """Starts a control plane of the previous version with one run of `main`, and an agent of today that dials it."""
    agents: list[Program] = []

    def start(main: str, *then: str) -> PreviousProgram:
        code = tmp_path / "code"
        code.mkdir()
        (code / "main.py").write_text(main)
        archive = io.BytesIO()
        bundle = pack(read_code(DiskFolder(code)), archive)
        (tmp_path / "bundle.tar").write_bytes(archive.getvalue())
        controlplane = previous("controlplane.py", str(tmp_path / "bundle.tar"), bundle.digest, *then)
        port = controlplane.until("port ").removeprefix("port ")
        settings = {
            "FASTFLOW_CONTROLPLANE": f"127.0.0.1:{port}",
            "FASTFLOW_DATA_DIR": str(tmp_path / "agent"),
            "FASTFLOW_ENV_DIR": str(tmp_path / "env"),
            "FASTFLOW_RUNTIME": "process",
        }
        agents.append(Program(["fastflow-agent", "run"], tmp_path / "agent.log", settings))
        agents[-1].start()
        return controlplane

    yield start
    for agent in agents:
        agent.stop()


def states(controlplane: PreviousProgram) -> list[str]:
    """The states of the run, as its agent told them; PREPARING is told anew with what is waited for."""
    told = (line.removeprefix("RUN_STATE_") for line in controlplane.said if line.startswith("RUN_STATE_"))
    return [state for state, _ in groupby(told)]


def test_todays_agent_runs_what_a_control_plane_of_the_previous_protocol_assigns(serve: Serve) -> None:
    controlplane = serve("import os; print(os.environ['GREETING'], 'from the container')")
    controlplane.until("forgotten")
    assert controlplane.ends() == 0
    assert states(controlplane) == ["PREPARING", "RUNNING", "SUCCEEDED"]
    assert "log b'hello from the container\\n' sealed at 25" in " ".join(controlplane.said)


def test_todays_agent_stops_what_a_control_plane_of_the_previous_protocol_wants_stopped(serve: Serve) -> None:
    controlplane = serve("import time; time.sleep(300)", "stop")
    controlplane.until("forgotten")
    assert controlplane.ends() == 0
    assert states(controlplane) == ["PREPARING", "RUNNING", "STOPPING", "CANCELLED"]


def test_a_run_outlives_the_stream_to_a_control_plane_of_the_previous_protocol(serve: Serve, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    controlplane = serve(
        "import pathlib, time\n"
        "print('begun', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.05)\n"
        "print('done')\n",
        "break",
    )
    controlplane.until("comes with RUN_STATE_RUNNING")
    gate.touch()
    controlplane.until("forgotten")
    assert controlplane.ends() == 0
    assert states(controlplane) == ["PREPARING", "RUNNING", "SUCCEEDED"]
    assert "log b'begun\\ndone\\n' sealed at 11" in " ".join(controlplane.said)
