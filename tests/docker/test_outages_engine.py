"""A Docker engine that is restarted, killed or away while runs live, and containers that somebody ends by hand."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from fastflow_agent.logs.confirmed import CONFIRMED_FILE

from tests.cluster import Cluster
from tests.cluster.own_engine import OwnEngine, own_engine
from tests.cluster.program import BIN
from tests.cluster.programs import SLEEPER, TICKER, TIDY, TIDY_LOG, ticker_log
from tests.cluster.scenarios import terminal_facts

WAITS_AND_SAYS_255 = """
    import os, sys, time
    print("begun", flush=True)
    while not os.path.exists("/tmp/go"): time.sleep(0.05)
    sys.exit(255)
"""
DEAF = """
    import signal, time
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(time.monotonic()))
    print("begun", flush=True)
    while not heard or time.monotonic() < heard[0] + 11: time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def engine(runner_image: str) -> Iterator[OwnEngine]:
    with own_engine(runner_image) as engine:
        yield engine


@pytest.fixture
def cluster(engine: OwnEngine, tmp_path: Path) -> Iterator[Cluster]:
    """A control plane and one agent whose engine may be maltreated; it lives again at the end, for what is left."""
    with Cluster(tmp_path / "cluster", "docker", engine=engine.host) as cluster:
        yield cluster.start(FASTFLOW_NETWORK="none", FASTFLOW_PROBE_INTERVAL="0.5")
        if engine.answers() and not engine.restores:
            engine.stop()
        if not engine.answers():
            engine.start()


def begun(cluster: Cluster, main: str, text: bytes, **metadata: object) -> str:
    """Starts a run and waits until it said `text`."""
    cluster.add_pipeline("pipeline", main, pipeline=dict(metadata))
    run = cluster.run("pipeline")
    cluster.wait_for_log(run, text)
    return run


def container(engine: OwnEngine) -> str:
    """The one container of a run that there is."""
    (name,) = engine.docker("ps", "--filter", "label=org.fastflow.slot", "--format", "{{.Names}}").split()
    assert re.fullmatch(r"ff-[0-9a-f]+", name)
    return name


def wait_for_trouble(cluster: Cluster) -> None:
    def told() -> bool:
        return "DockerUnavailable" in cluster.ffctl("agents", "list").text

    cluster.until(told, "the agent to tell that the engine is away")


def wait_for_recovery(cluster: Cluster) -> None:
    def well() -> bool:
        return "DockerUnavailable" not in cluster.ffctl("agents", "list").text

    cluster.until(well, "the agent to tell that the engine is back")


def assert_a_run_works(cluster: Cluster) -> None:
    cluster.add_pipeline("next", "print('next')")
    assert cluster.ffctl("run", "next", "--follow").stdout == b"next\n"


def assert_told(engine: OwnEngine, shown: dict[str, Any], code: int) -> None:
    """Sees that a run has its exit code; or that it says so, where the engine lost that."""
    if engine.lost_an_end():
        assert_lost(shown)
    else:
        assert (shown["state"], shown["exit_code"]) == ("RUN_STATE_FAILED", code)


def assert_lost(shown: dict[str, Any]) -> None:
    assert (shown["state"], shown["reason"], shown.get("exit_code")) == ("RUN_STATE_FAILED", "REASON_RUNTIME", None)
    assert "lost its exit code" in shown["message"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_run_outlives_an_engine_that_restores_and_has_its_true_end(
    cluster: Cluster, engine: OwnEngine, end: str
) -> None:
    run = begun(cluster, TICKER, b"tick 5 ")
    getattr(engine, end)()
    wait_for_trouble(cluster)
    engine.start()
    shown = cluster.finish(run)
    assert_told(engine, shown, 7)
    assert shown["attempt"] == 1
    # An engine that gives up on a container ends it.
    whole = ticker_log()
    assert whole.startswith(cluster.log(run)) if engine.lost_an_end() else cluster.log(run) == whole
    assert terminal_facts(cluster, str(shown["id"])) == 1
    wait_for_recovery(cluster)
    assert_a_run_works(cluster)


def test_the_output_goes_on_while_the_engine_is_away_and_an_end_is_told_when_it_is_back(
    cluster: Cluster, engine: OwnEngine
) -> None:
    run = begun(cluster, TICKER, b"tick 2 ")
    engine.stop()
    cluster.wait_for_log(run, b"tock 39")
    wait_for_trouble(cluster)
    shown = cluster.show(run)
    assert shown["state"] == "RUN_STATE_RUNNING"
    assert "DockerUnavailable" in shown["message"]
    assert "its end is told once the engine is back" in shown["message"]
    engine.start()
    shown = cluster.finish(run)
    assert_told(engine, shown, 7)
    assert cluster.log(run) == ticker_log()


def test_a_cancel_while_the_engine_is_away_is_carried_out_when_it_is_back(cluster: Cluster, engine: OwnEngine) -> None:
    run = begun(cluster, SLEEPER, b"begun")
    engine.kill()
    wait_for_trouble(cluster)
    assert cluster.ffctl("runs", "cancel", run).exit_code == 0
    engine.start()
    assert cluster.finish(run)["state"] == "RUN_STATE_CANCELLED"


def test_a_run_queued_while_the_engine_is_away_says_so_and_starts_when_it_is_back(
    cluster: Cluster, engine: OwnEngine
) -> None:
    engine.stop()
    wait_for_trouble(cluster)
    cluster.add_pipeline("hello", "print('hello')")
    run = cluster.run("hello")
    assert "DockerUnavailable" in cluster.show(run)["message"]
    engine.start()
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_engine_that_does_not_restore_ends_its_runs_and_the_verdict_says_so(
    cluster: Cluster, engine: OwnEngine, end: str
) -> None:
    engine.stop()
    engine.start(live_restore=False)
    wait_for_recovery(cluster)
    run = begun(cluster, SLEEPER, b"begun")
    getattr(engine, end)()
    engine.start(live_restore=False)
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUN_STATE_FAILED", "REASON_SIGNAL", 1)
    assert "engine that was restarted without live-restore" in shown["message"]
    assert cluster.log(run) == b"begun\n"
    wait_for_recovery(cluster)
    assert_a_run_works(cluster)


def test_a_container_removed_by_hand_has_vanished_and_the_run_says_what_to_look_for(
    cluster: Cluster, engine: OwnEngine
) -> None:
    run = begun(cluster, SLEEPER, b"begun")
    engine.docker("rm", "--force", container(engine))
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_CONTAINER_VANISHED")
    assert "docker rm" in shown["message"]
    assert cluster.log(run) == b"begun\n"
    assert_a_run_works(cluster)


def test_a_container_removed_while_no_agent_looks_has_vanished_as_well(cluster: Cluster, engine: OwnEngine) -> None:
    run = begun(cluster, SLEEPER, b"begun")
    cluster.agent.kill()
    engine.docker("rm", "--force", container(engine))
    cluster.agent.start()
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_CONTAINER_VANISHED")
    assert cluster.log(run) == b"begun\n"


@pytest.mark.parametrize(("by_hand", "signal"), [(["kill"], 9), (["stop", "--time=5"], 15)], ids=["kill", "stop"])
def test_a_container_ended_by_hand_ends_its_run_by_that_signal(
    cluster: Cluster, engine: OwnEngine, by_hand: list[str], signal: int
) -> None:
    run = begun(cluster, SLEEPER, b"begun")
    engine.docker(*by_hand, container(engine))
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == (
        "RUN_STATE_FAILED",
        "REASON_SIGNAL",
        128 + signal,
    )
    assert "Fast-Flow did not send" in shown["message"]
    assert f"`docker {by_hand[0]}`" in shown["message"]


BY_HAND = [("kill", "--signal=TERM"), ("stop",)]


@pytest.mark.parametrize("by_hand", BY_HAND, ids=["kill", "stop"])
def test_a_program_that_says_0_when_somebody_ends_it_by_hand_was_cut_short(
    cluster: Cluster, engine: OwnEngine, by_hand: tuple[str, ...]
) -> None:
    run = begun(cluster, TIDY, b"begun")
    engine.docker(*by_hand, container(engine))
    assert_cut_short(cluster, run)


def test_an_end_by_hand_is_seen_through_by_an_agent_that_was_away_as_well(cluster: Cluster, engine: OwnEngine) -> None:
    run = begun(cluster, TIDY, b"begun")
    cluster.agent.kill()
    engine.docker("stop", container(engine))
    cluster.agent.start()
    assert_cut_short(cluster, run)


def test_an_engine_that_does_not_restore_cuts_short_what_says_0(cluster: Cluster, engine: OwnEngine) -> None:
    engine.stop()
    engine.start(live_restore=False)
    wait_for_recovery(cluster)
    run = begun(cluster, TIDY, b"begun")
    engine.stop()
    engine.start(live_restore=False)
    assert_cut_short(cluster, run)


def test_a_program_that_heeds_no_signal_keeps_its_own_end(cluster: Cluster, engine: OwnEngine) -> None:
    run = begun(cluster, DEAF, b"begun")
    engine.docker("kill", "--signal=TERM", container(engine))
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"


def assert_cut_short(cluster: Cluster, run: str) -> None:
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_SIGNAL", 0)
    assert "SIGTERM" in shown["message"]
    assert "Fast-Flow did not send" in shown["message"]
    assert "`docker stop`" in shown["message"]
    assert cluster.log(run) == TIDY_LOG


def test_a_program_that_says_0_as_its_host_shuts_down_ends_with_the_host(
    cluster: Cluster, engine: OwnEngine, tmp_path: Path
) -> None:
    engine.stop()
    engine.start(live_restore=False)
    agent, systemctl = cluster.agent, tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho stopping\n")
    systemctl.chmod(0o755)
    agent.stop()
    agent.settings["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    agent.start()
    wait_for_recovery(cluster)
    run = begun(cluster, TIDY, b"begun")
    # As systemd does: the agent first, then the engine, which ends its containers, then the unit that confirms logs.
    agent.stop()
    engine.stop()
    assert len(confirm_logs(cluster)) == 1
    engine.start(live_restore=False)
    boot_id = tmp_path / "boot-id"
    boot_id.write_text("the-next-boot\n")
    mount = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    agent.command = ["unshare", "--mount", "sh", "-c", mount, str(boot_id), *agent.command]
    agent.start()
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT", 0)
    assert "shut down" in shown["message"]
    assert cluster.log(run) == TIDY_LOG
    assert shown["attempts"][0]["log_losses"] == []


def test_no_log_is_confirmed_to_which_a_container_writes_that_outlived_its_engine(
    cluster: Cluster, engine: OwnEngine
) -> None:
    run = begun(cluster, TIDY, b"begun")
    cluster.agent.stop()
    engine.stop()
    assert confirm_logs(cluster) == {}
    engine.start()
    cluster.agent.start()
    cluster.ffctl("runs", "cancel", run)
    assert cluster.finish(run)["state"] == "RUN_STATE_CANCELLED"
    assert cluster.log(run) == TIDY_LOG


def confirm_logs(cluster: Cluster) -> dict[str, int]:
    """Has what is known of logs at a shutdown be noted; returns the lengths of those that are at rest."""
    environment = {**os.environ, **cluster.agent.settings}
    subprocess.run([BIN / "fastflow-agent", "confirm-logs"], env=environment, check=True, timeout=60)
    return dict(json.loads((cluster.folder / "worker-1" / CONFIRMED_FILE).read_text())["lengths"])


def test_an_exit_code_that_the_engine_lost_is_not_made_up(cluster: Cluster, engine: OwnEngine) -> None:
    run = begun(cluster, TICKER, b"tick 2 ")
    engine.stop()
    cluster.wait_for_log(run, b"tock 39")
    wait_for_trouble(cluster)
    with engine.hung_shim():
        engine.start()
    assert_lost(cluster.finish(run))
    assert cluster.log(run) == ticker_log()


@pytest.mark.parametrize("away", [False, True], ids=["seen", "away"])
def test_a_programs_own_255_is_its_exit_code(cluster: Cluster, engine: OwnEngine, away: bool) -> None:
    run = begun(cluster, WAITS_AND_SAYS_255, b"begun")
    (slot,) = (cluster.folder / "worker-1" / "slots").iterdir()
    name = container(engine)
    if away:
        cluster.agent.kill()
    (slot / "tmp" / "go").touch()
    if away:
        engine.docker("wait", name)
        cluster.agent.start()
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_EXIT_CODE", 255)


def test_a_255_that_the_engine_has_forgotten_to_have_seen_is_told_as_what_it_may_be(
    cluster: Cluster, engine: OwnEngine, runner_image: str
) -> None:
    run = begun(cluster, WAITS_AND_SAYS_255, b"begun")
    (slot,) = (cluster.folder / "worker-1" / "slots").iterdir()
    name = container(engine)
    cluster.agent.kill()
    (slot / "tmp" / "go").touch()
    engine.docker("wait", name)
    with docker.APIClient(engine.host) as client:
        # It keeps its last 256 events.
        for _ in range(300):
            client.tag(runner_image, "fastflow/for-a-test", "events")
        client.remove_image("fastflow/for-a-test:events")
    cluster.agent.start()
    shown = cluster.finish(run)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_RUNTIME", 255)
    assert "either the program's own exit code or" in shown["message"]
