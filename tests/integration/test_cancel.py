"""A cancel at every state of a run, and one that comes as late as the end."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import wait_until_gone
from tests.cluster.programs import SLEEPER, STUBBORN, wait_for_output

ANOTHER_KEY = base64.b64encode(bytes(range(32))).decode() + "\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for tests that leave it as they found it."""
    with Cluster(tmp_path_factory.mktemp("cancel") / "cluster", "process") as made:
        yield made.start()


def begun(cluster: Cluster, main: str, *arguments: str) -> str:
    """A run whose program runs."""
    cluster.add_pipeline("begun", main)
    run = cluster.run("begun", *arguments)
    cluster.wait_for_log(run, b"begun")
    return run


def cancel(cluster: Cluster, run: str, *arguments: str) -> str:
    done = cluster.ffctl("runs", "cancel", run, *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def test_a_run_that_waits_ends_at_once(shared: Cluster) -> None:
    shared.add_pipeline("large", "print(1)", pipeline={"mem_hard_limit": "4000g"})
    run = shared.run("large")
    assert "CANCELLED" in cancel(shared, run)
    assert shared.show(run).get("attempts", []) == []


def test_a_run_that_its_agent_was_just_given_never_begins(cluster: Cluster) -> None:
    cluster.add_pipeline("begun", SLEEPER)
    cluster.agent.freeze()
    run = cluster.run("begun")
    cluster.wait_for_state(run, "ASSIGNED")
    cancel(cluster, run)
    cluster.agent.thaw()
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_CANCELLED", 1)
    assert cluster.log(run) == b""


def test_a_run_whose_packages_are_prepared_is_cancelled_before_it_begins(shared: Cluster, tmp_path: Path) -> None:
    package = tmp_path / "slow"
    package.mkdir()
    (package / "setup.py").write_text("import time; time.sleep(300)")
    shared.add_pipeline("slow", "print('prepared')", requirements=f"slow @ file://{package}\n")
    run = shared.run("slow")
    shared.wait_for_state(run, "PREPARING")
    cancel(shared, run)
    shown = shared.finish(run)
    assert shown["state"] == "RUN_STATE_CANCELLED"
    assert "start_time" not in shown


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_that_was_asked_for(shared: Cluster) -> None:
    run = begun(shared, STUBBORN)
    # Long enough for the program to say its word on a busy machine.
    cancel(shared, run, "--grace", "5s")
    shown = shared.finish(run)
    assert shown["state"] == "RUN_STATE_CANCELLED"
    assert shared.log(run) == b"begun\nno\n"


def test_a_stop_that_takes_too_long_is_hurried_by_a_second_cancel(shared: Cluster) -> None:
    run = begun(shared, STUBBORN)
    assert "asked to stop" in cancel(shared, run, "--grace", "10m")
    shared.wait_for_state(run, "STOPPING")
    cancel(shared, run, "--grace", "20m")  # changes nothing
    cancel(shared, run, "--grace", "0")
    assert shared.finish(run)["state"] == "RUN_STATE_CANCELLED"


def test_a_run_that_had_ended_before_the_cancel_keeps_its_real_result(cluster: Cluster) -> None:
    gate = cluster.folder / "gate"
    main = f"""
        import pathlib, time
        print('begun', flush=True)
        while not pathlib.Path({str(gate)!r}).exists():
            time.sleep(0.01)
        raise SystemExit(3)
    """
    run = begun(cluster, main)
    cluster.agent.freeze()
    gate.touch()
    wait_until_gone(cluster)  # and nobody who could tell has seen its end
    cancel(cluster, run)
    cluster.agent.thaw()
    shown = cluster.finish(run)
    assert (shown["state"], shown["exit_code"]) == ("RUN_STATE_FAILED", 3)


def test_a_cancel_of_a_run_that_has_ended_changes_nothing(shared: Cluster) -> None:
    shared.add_pipeline("hello", "print('hello')")
    run = shared.run("hello")
    before = shared.finish(run)
    assert "SUCCEEDED" in cancel(shared, run)
    assert shared.show(run)["state"] == before["state"]


def test_a_cancel_reaches_its_agent_though_nobody_can_tell_what_to_mask_and_the_log_waits_for_the_key(
    cluster: Cluster,
) -> None:
    secret = "correct-horse-battery"
    assert cluster.ffctl("secrets", "set", "OLD", "--all-pipelines", value=secret).exit_code == 0
    old_key = (cluster.folder / "controlplane" / "secret.key").read_text()
    restart_with_key(cluster, ANOTHER_KEY + old_key)
    assert cluster.ffctl("secrets", "set", "NEW", "--all-pipelines", value="a newer secret").exit_code == 0
    gate = cluster.folder / "gate"
    main = f"""
        import os, pathlib, time
        print('begun', flush=True)
        while not pathlib.Path({str(gate)!r}).exists():
            time.sleep(0.01)
        print(os.environ['OLD'], flush=True)
        time.sleep(300)
    """
    run = begun(cluster, main)
    cluster.agent.kill()
    gate.touch()
    restart_with_key(cluster, ANOTHER_KEY)
    cancel(cluster, run)
    wait_for_output(cluster, secret.encode())  # and nobody is there to mask it
    cluster.agent.start()
    shown = cluster.wait_for_state(run, "CANCELLED")
    cluster.until(lambda: cluster.show(run)["attempts"][0].get("released"), "the program to be gone")
    assert not shown["attempts"][0].get("log_sealed")
    assert cluster.log(run) == b"begun\n"
    restart_with_key(cluster, ANOTHER_KEY + old_key)
    cluster.finish(run)
    assert cluster.log(run) == b"begun\n" + b"*" * len(secret) + b"\n"


def restart_with_key(cluster: Cluster, key: str) -> None:
    """Restarts the control plane with another key file."""
    cluster.controlplane.stop()
    (cluster.folder / "controlplane" / "secret.key").write_text(key)
    cluster.controlplane.start()
    cluster.until(lambda: cluster.ffctl("runs", "list").exit_code == 0, "the control plane to answer")
