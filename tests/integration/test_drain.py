"""Emptying an agent, taking it off the list, and giving up what it had."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.program import PATIENCE_SECONDS
from tests.cluster.programs import SLEEPER

UNTIL_FILE = """
    import os, pathlib, time
    print('begun', flush=True)
    while not pathlib.Path(os.environ['GATE']).exists():
        time.sleep(0.05)
    print('done')
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A control plane that loses runs soon, and one agent."""
    settings = {
        "FASTFLOW_HEARTBEAT_INTERVAL": "0.5",
        # Silence of a busy machine's agent is no reason to break its stream.
        "FASTFLOW_SUSPECT_AFTER": "20",
        "FASTFLOW_SILENT_AFTER": "20",
        "FASTFLOW_OFFLINE_AFTER": "1",
        "FASTFLOW_LOST_AFTER": "600",
        "FASTFLOW_RECOVERY_WINDOW": "0",
    }
    with Cluster(tmp_path / "cluster", "process", **settings) as made:
        yield made.start()


def gated(cluster: Cluster) -> tuple[str, Path]:
    """A run that ends once the file is there."""
    gate = cluster.folder / "gate"
    cluster.add_pipeline("gated", UNTIL_FILE)
    run = cluster.run("gated", "--env", f"GATE={gate}")
    cluster.wait_for_log(run, b"begun")
    return run, gate


def sleeper(cluster: Cluster) -> str:
    """A run that does not end by itself."""
    cluster.add_pipeline("sleeper", SLEEPER)
    run = cluster.run("sleeper")
    cluster.wait_for_log(run, b"begun")
    return run


def drain_of(cluster: Cluster, name: str = "worker-1") -> dict[str, object]:
    found = cluster.show_agent(name).get("drain", {})
    assert isinstance(found, dict)
    return found


def test_runs_under_way_end_by_themselves_and_new_ones_wait_or_go_elsewhere(cluster: Cluster) -> None:
    run, gate = gated(cluster)
    draining = cluster.spawn_ffctl("agents", "drain", "worker-1")
    cluster.wait_for_agent("worker-1", "DRAINING")
    cluster.add_pipeline("hello", "print('hello')")
    waiting = cluster.run("hello")
    shown = cluster.ffctl("runs", "show", waiting).text
    assert "worker-1" in shown
    assert "is draining" in shown
    assert "1 run left" in cluster.ffctl("agents", "list").text
    cluster.add_agent("worker-2")
    assert cluster.finish(waiting)["attempts"][0]["agent"] == "worker-2"
    assert draining.poll() is None
    gate.touch()
    _, errors = draining.communicate(timeout=PATIENCE_SECONDS)
    assert draining.returncode == 0, errors
    assert b"worker-1 is empty" in errors
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"
    assert cluster.log(run) == b"begun\ndone\n"


def test_an_agent_stays_drained_over_restarts_of_both_sides_until_it_is_resumed(cluster: Cluster) -> None:
    assert cluster.ffctl("agents", "drain", "worker-1").exit_code == 0
    cluster.agent.kill()
    cluster.controlplane.kill()
    cluster.controlplane.start()
    cluster.agent.start()
    cluster.wait_for_agent("worker-1", "DRAINING")
    cluster.add_pipeline("hello", "print('hello')")
    run = cluster.run("hello")
    assert "every agent is draining" in cluster.ffctl("runs", "show", run).text
    assert "worker-1 takes runs again" in cluster.ffctl("agents", "resume", "worker-1").stderr
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"


def test_what_is_left_at_the_deadline_is_stopped_and_says_why(cluster: Cluster) -> None:
    run = sleeper(cluster)
    assert cluster.ffctl("agents", "drain", "worker-1", "--deadline", "2s").exit_code == 0
    shown = cluster.show(run)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_CANCELLED", "REASON_AGENT_DRAINED")
    assert "drained" in shown["message"]
    assert drain_of(cluster)["complete"]
    assert cluster.log(run) == b"begun\n"


def test_runs_are_stopped_at_once_where_that_is_asked_for(cluster: Cluster) -> None:
    run = sleeper(cluster)
    assert cluster.ffctl("agents", "drain", "worker-1", "--stop").exit_code == 0
    assert cluster.show(run)["reason"] == "REASON_AGENT_DRAINED"


def test_a_deadline_holds_over_a_restart_of_the_control_plane(cluster: Cluster) -> None:
    run = sleeper(cluster)
    assert cluster.ffctl("agents", "drain", "worker-1", "--deadline", "5s", "--no-wait").exit_code == 0
    cluster.controlplane.kill()
    cluster.controlplane.start()
    assert cluster.finish(run)["reason"] == "REASON_AGENT_DRAINED"


def test_ctrl_c_ends_the_waiting_and_not_the_drain(cluster: Cluster) -> None:
    _, gate = gated(cluster)
    draining = cluster.spawn_ffctl("agents", "drain", "worker-1")
    cluster.wait_for_agent("worker-1", "DRAINING")
    assert draining.stderr is not None
    assert b"1 run left" in draining.stderr.readline()
    draining.send_signal(signal.SIGINT)
    _, errors = draining.communicate(timeout=PATIENCE_SECONDS)
    assert draining.returncode == 130
    assert b"ffctl agents resume worker-1" in errors
    gate.touch()
    cluster.until(lambda: drain_of(cluster).get("complete"), "worker-1 to be empty")


def test_what_has_not_begun_is_given_back_and_counts_as_no_failure(cluster: Cluster, tmp_path: Path) -> None:
    started, gate = tmp_path / "building", tmp_path / "go on"
    package = tmp_path / "slow"
    package.mkdir()
    (package / "setup.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.05)\n"
        "from setuptools import setup\nsetup(name='slow', version='1')\n"
    )
    cluster.add_pipeline("slow", "print('prepared')", requirements=f"slow @ file://{package}\n")
    run = cluster.run("slow")
    cluster.wait_for_state(run, "PREPARING")
    assert cluster.ffctl("agents", "drain", "worker-1").exit_code == 0
    shown = cluster.show(run)
    (attempt,) = shown["attempts"]
    assert (shown["state"], attempt["state"]) == ("RUN_STATE_QUEUED", "RUN_STATE_CANCELLED")
    assert attempt["reason"] == "REASON_AGENT_DRAINED"
    assert 'agent "worker-1" gave it back before it began' in shown["message"]
    cluster.ffctl("runs", "cancel", run)
    assert cluster.show(run)["state"] == "RUN_STATE_CANCELLED"


def test_an_agent_is_removed_only_once_it_is_stopped_and_nothing_is_left_of_it(cluster: Cluster) -> None:
    refused = cluster.ffctl("agents", "remove", "worker-1")
    assert refused.exit_code == 4
    assert "is connected" in refused.stderr
    run = sleeper(cluster)
    cluster.agent.stop()
    cluster.until(lambda: cluster.show_agent("worker-1")["state"] != "AGENT_STATE_ACTIVE", "it to be away")
    refused = cluster.ffctl("agents", "remove", "worker-1")
    assert refused.exit_code == 4
    assert run[-8:] in refused.stderr
    assert "--force" in refused.stderr
    unasked = cluster.ffctl("agents", "remove", "worker-1", "--force")
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (2, True)
    removed = cluster.ffctl("agents", "remove", "worker-1", "--force", "--yes")
    assert f"LOST: {run[-8:]}" in removed.stderr
    assert cluster.show(run)["state"] == "RUN_STATE_LOST"
    assert json.loads(cluster.ffctl("agents", "list", "-o", "json").stdout)["agents"] == []
    assert cluster.ffctl("agents", "show", "worker-1").exit_code == 4

    # Should it come back, it is stopped there, and what it brings is kept.
    cluster.agent.start()
    cluster.wait_for_agent("worker-1")
    cluster.until(lambda: cluster.show(run)["attempts"][0].get("log_sealed"), "the rest of the log")
    assert cluster.show(run)["state"] == "RUN_STATE_LOST"
    assert cluster.log(run) == b"begun\n"


def test_an_agent_of_which_nothing_is_left_is_removed_without_force(cluster: Cluster) -> None:
    cluster.add_pipeline("hello", "print('hello')")
    cluster.finish(cluster.run("hello"))
    cluster.until(lambda: not cluster.show_agent("worker-1").get("attempts"), "the container to be gone")
    cluster.agent.stop()
    removed = cluster.until(
        lambda: done if (done := cluster.ffctl("agents", "remove", "worker-1")).exit_code == 0 else None,
        "worker-1 to be removed",
    )
    assert "worker-1 is removed" in removed.stderr


def test_a_run_is_given_up_on_an_operators_word_and_stopped_when_its_agent_returns(cluster: Cluster) -> None:
    run = sleeper(cluster)
    cluster.agent.kill()
    unasked = cluster.ffctl("runs", "abandon", run)
    assert unasked.exit_code == 2
    assert "worker-1" in unasked.stderr
    assert cluster.ffctl("runs", "abandon", run, "--yes").exit_code == 0
    shown = cluster.show(run)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_LOST", "REASON_ABANDONED")
    again = cluster.ffctl("runs", "abandon", run, "--yes")
    assert again.exit_code == 4
    assert "has ended already" in again.stderr
    cluster.agent.start()
    cluster.until(lambda: cluster.show(run)["attempts"][0].get("released"), "the program to be stopped")
    cluster.until(lambda: cluster.show(run)["attempts"][0].get("log_sealed"), "the rest of the log")
    assert cluster.show(run)["state"] == "RUN_STATE_LOST"


def test_a_run_that_waits_is_not_given_up_but_cancelled(cluster: Cluster) -> None:
    cluster.ffctl("agents", "drain", "worker-1")
    cluster.add_pipeline("hello", "print('hello')")
    run = cluster.run("hello")
    refused = cluster.ffctl("runs", "abandon", run, "--yes")
    assert refused.exit_code == 4
    assert "ffctl runs cancel" in refused.stderr


def test_a_control_plane_that_is_stopped_stops_no_run(cluster: Cluster) -> None:
    run, gate = gated(cluster)
    assert cluster.controlplane.stop() == 0
    gate.touch()
    cluster.controlplane.start()
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_SUCCEEDED", 1)
    assert cluster.log(run) == b"begun\ndone\n"
