"""Agents behind a network that is cut, half-open, flapping or slow, briefly or for longer than is waited for."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.cluster.identity import wait_until_gone
from tests.cluster.program import PATIENCE_SECONDS, Program
from tests.cluster.programs import TICKER, ticker_log
from tests.cluster.relay import Relay
from tests.cluster.scenarios import terminal_facts

HEARTBEAT_SECONDS = 0.5
MISSED = 10
OFFLINE_SECONDS = 1.0
LOST_SECONDS = 3.0
KEEPALIVE_SECONDS = 15.0
"""After which a program notices that nothing answers any more: `fastflow.client`, a ping's wait and its patience."""

SHORT = {
    "FASTFLOW_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
    # Silence of a busy machine's agent is none of its network.
    "FASTFLOW_SUSPECT_AFTER": str(MISSED),
    "FASTFLOW_SILENT_AFTER": str(MISSED),
    "FASTFLOW_OFFLINE_AFTER": str(OFFLINE_SECONDS),
    "FASTFLOW_RECOVERY_WINDOW": "0",
    "FASTFLOW_STOP_GRACE": "3",
}
PATIENT = SHORT | {"FASTFLOW_LOST_AFTER": "60"}
IMPATIENT = SHORT | {"FASTFLOW_LOST_AFTER": str(LOST_SECONDS)}

SLEEPER = """
    import os, signal, sys, time
    def note(what):
        with open(os.environ["LEDGER"], "a") as ledger:
            ledger.write(f"{time.time()} {what}\\n")
    def stop(*_):
        print("told to stop", flush=True)
        time.sleep(0.5)
        note("ends")
        sys.exit(3)
    signal.signal(signal.SIGTERM, stop)
    note("begins")
    print("begun", flush=True)
    end = time.monotonic() + float(os.environ["SECONDS"])
    while time.monotonic() < end and not os.path.exists(os.environ["LEDGER"] + ".end"):
        time.sleep(0.02)
    print("done", flush=True)
    note("ends")
"""


class Net:
    """A cluster whose agent "worker-1" reaches it through a relay."""

    def __init__(self, cluster: Cluster, relay: Relay) -> None:
        self.cluster = cluster
        self.relay = relay
        self.ledger = cluster.folder / "ledger"

    @property
    def agent(self) -> Program:
        return self.cluster.agents["worker-1"]

    def sleeper(self, seconds: float, **metadata: Any) -> str:
        """Starts a run that notes its begin and end in the ledger, and waits for its first line."""
        self.cluster.add_pipeline("sleeper", SLEEPER, pipeline=metadata)
        run = self.cluster.run("sleeper", "--env", f"LEDGER={self.ledger}", "--env", f"SECONDS={seconds}")
        self.cluster.wait_for_log(run, b"begun")
        return run

    def let_sleepers_end(self) -> None:
        Path(f"{self.ledger}.end").touch()

    def spans(self) -> list[str]:
        """What the ledger says happened, in order."""
        return [line.split()[1] for line in self.ledger.read_text().splitlines()]

    def attempt(self, run: str, number: int) -> dict[str, Any]:
        return dict(self.cluster.show(run)["attempts"][number - 1])

    def is_forgotten(self) -> bool:
        """Whether worker-1 holds nothing any more."""
        return not list((Path(self.agent.settings["FASTFLOW_DATA_DIR"]) / "slots").iterdir())


def net(folder: Path, settings: dict[str, str]) -> Iterator[Net]:
    with Cluster(folder / "cluster", "process", **settings) as cluster, Relay(cluster.server) as relay:
        cluster.start(
            FASTFLOW_CONTROLPLANE=relay.address,
            FASTFLOW_RECONNECT_INITIAL="0.1",
            FASTFLOW_RECONNECT_MAXIMUM="0.5",
        )
        yield Net(cluster, relay)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Net]:
    """Nothing is lost within a test."""
    yield from net(tmp_path, PATIENT)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Net]:
    """Runs of an agent that is away for some seconds are lost."""
    yield from net(tmp_path, IMPATIENT)


def test_a_cut_of_seconds_harms_no_run_and_loses_no_byte(patient: Net) -> None:
    cluster = patient.cluster
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker")
    cluster.wait_for_log(run, b"tick 5 ")
    patient.relay.cut()
    cluster.wait_for_agent("worker-1", "OFFLINE")
    patient.relay.heal()
    shown = cluster.finish(run)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log()
    assert terminal_facts(cluster, str(shown["id"])) == 1


def test_a_run_that_ends_during_a_cut_has_its_true_verdict_and_whole_log_after_it(patient: Net) -> None:
    cluster = patient.cluster
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=20")
    cluster.wait_for_log(run, b"tick 2 ")
    patient.relay.cut()
    cluster.wait_for_agent("worker-1", "OFFLINE")
    wait_until_gone(cluster)
    patient.relay.heal()
    shown = cluster.finish(run)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log(20)


def test_a_follower_is_told_that_the_agent_is_out_of_reach_and_that_it_is_back(patient: Net) -> None:
    cluster = patient.cluster
    cluster.add_pipeline("sleeper", SLEEPER)
    environment = ("--env", f"LEDGER={patient.ledger}", "--env", "SECONDS=240")
    follower = cluster.spawn_ffctl("run", "sleeper", "--follow", *environment)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    patient.relay.cut()
    cluster.wait_for_agent("worker-1", "OFFLINE")
    run = json.loads(cluster.ffctl("runs", "list", "-o", "json").stdout)["runs"][0]["id"]
    assert 'agent "worker-1" is out of reach' in cluster.ffctl("runs", "show", run).text.replace("\n", " ")
    assert "is offline" in cluster.ffctl("agents", "list").text
    told = cluster.read_until(follower, "is out of reach")
    patient.relay.heal()
    # Of a run that ended meanwhile a follower may see that alone.
    told += cluster.read_until(follower, "is back")
    patient.let_sleepers_end()
    rest, errors = follower.communicate(timeout=PATIENCE_SECONDS)
    assert first + rest == b"begun\ndone\n"
    assert follower.returncode == 0
    told += errors.decode()
    assert told.count('agent "worker-1" is out of reach: the program may well go on there') == 1, told
    assert told.count('agent "worker-1" is back') == 1, told


def test_both_sides_notice_a_half_open_connection_in_time_and_the_agent_dials_anew(patient: Net) -> None:
    cluster = patient.cluster
    run = patient.sleeper(4)
    # An agent whose ping was under way notices first, and would be back before it is missed.
    patient.relay.stall()
    cluster.wait_for_agent("worker-1", "OFFLINE", timeout=MISSED * HEARTBEAT_SECONDS + 10)
    patient.relay.stall(new_ones_pass=True)
    begin = time.monotonic()
    cluster.wait_for_agent("worker-1", "ACTIVE")
    assert time.monotonic() - begin < KEEPALIVE_SECONDS + 15
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_SUCCEEDED", 1)
    assert cluster.log(run) == b"begun\ndone\n"


def test_a_network_that_swallows_everything_is_survived_once_it_heals(patient: Net) -> None:
    cluster = patient.cluster
    run = patient.sleeper(60)
    patient.relay.stall()
    cluster.wait_for_agent("worker-1", "OFFLINE")
    patient.let_sleepers_end()
    cluster.until(lambda: patient.spans() == ["begins", "ends"], "the program to end meanwhile")
    patient.relay.heal()
    cluster.wait_for_agent("worker-1", "ACTIVE")
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"
    assert cluster.log(run) == b"begun\ndone\n"


def test_an_agent_that_flaps_ends_every_run_once_and_nothing_grows(patient: Net) -> None:
    cluster = patient.cluster
    cluster.add_pipeline("ticker", TICKER)
    cluster.finish(cluster.run("ticker", "--env", "TICKS=1"))
    before = {program.name: _held(program) for program in cluster.programs}
    runs = [cluster.run("ticker", "--env", f"TICKS={ticks}") for ticks in (40, 80, 120)]
    for _ in range(30):
        patient.relay.drop()
        time.sleep(0.3)
    for run, ticks in zip(runs, (40, 80, 120), strict=True):
        shown = cluster.finish(run)
        assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
        assert cluster.log(run) == ticker_log(ticks)
        assert terminal_facts(cluster, str(shown["id"])) == 1
    cluster.until(patient.is_forgotten, "the agent to forget all runs")
    for program in cluster.programs:
        cluster.until(partial(_holds_no_more, program, before[program.name]), f"what {program.name} holds")


def test_slow_packets_delay_a_run_and_nothing_else(patient: Net) -> None:
    cluster = patient.cluster
    patient.relay.slow(0.3, bytes_per_second=50_000)
    patient.relay.drop()
    cluster.wait_for_agent("worker-1", "ACTIVE")
    cluster.add_pipeline("loud", "import sys; sys.stdout.write('z' * 500_000); sys.exit(7)")
    run = cluster.run("loud")
    cluster.wait_for_log(run, b"z")
    reconnections = patient.agent.log.read_text().count("log stream ended")
    shown = cluster.finish(run)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == b"z" * 500_000
    # A ping that waits behind the log is no reason to give the connection up.
    assert patient.agent.log.read_text().count("log stream ended") == reconnections


def test_the_result_of_a_lost_run_is_kept_as_history_with_its_whole_log(impatient: Net) -> None:
    cluster = impatient.cluster
    run = impatient.sleeper(60)
    impatient.relay.cut()
    impatient.let_sleepers_end()
    shown = cluster.wait_for_state(run, "LOST")
    assert shown["reason"] == "REASON_AGENT_LOST"
    cluster.until(lambda: impatient.spans() == ["begins", "ends"], "the program to end behind the cut")
    impatient.relay.heal()
    cluster.until(lambda: impatient.attempt(run, 1).get("late_result"), "the late result")
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_LOST", 1)
    late = shown["attempts"][0]["late_result"]
    assert (late["state"], late["exit_code"]) == ("RUN_STATE_SUCCEEDED", 0)
    assert cluster.log(run) == b"begun\ndone\n"
    text = cluster.ffctl("runs", "show", run).text
    assert "told later: SUCCEEDED, exit code 0" in text, text
    cluster.until(impatient.is_forgotten, "the agent to forget the run")
    assert cluster.show_agent("worker-1")["reserved"]["memory_bytes"] == "0"


def test_a_lost_run_that_still_lives_is_stopped_when_its_agent_returns(impatient: Net) -> None:
    cluster = impatient.cluster
    run = impatient.sleeper(60)
    impatient.relay.cut()
    cluster.wait_for_state(run, "LOST")
    impatient.relay.heal()
    cluster.until(impatient.is_forgotten, "the agent to forget the run")
    shown = cluster.finish(run)
    assert shown["state"] == "RUN_STATE_LOST"
    late = shown["attempts"][0]["late_result"]
    assert late["state"] == "RUN_STATE_CANCELLED"
    assert "given it up as lost" in late["message"]
    assert cluster.log(run) == b"begun\ntold to stop\n"


def test_a_lost_run_is_retried_elsewhere_where_its_pipeline_says_so(impatient: Net) -> None:
    cluster = impatient.cluster
    run = impatient.sleeper(60, retry_on=["lost"], retry_attempts=1)
    follower = cluster.spawn_ffctl("logs", "--follow", run)
    impatient.relay.cut()
    # Where it is placed anew at once, a follower may see that alone.
    told = cluster.read_until(follower, "attempt 1 is lost")
    cluster.add_agent("worker-2")
    cluster.until(lambda: cluster.show(run)["attempt"] == 2, "the retry")
    cluster.wait_for_log(run, b"begun")
    impatient.relay.heal()
    cluster.until(impatient.is_forgotten, "the agent to forget the lost attempt")
    impatient.let_sleepers_end()
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"], shown["exit_code"]) == ("RUN_STATE_SUCCEEDED", 2, 0)
    first, second = cluster.show(run)["attempts"]
    assert (first["agent"], first["state"]) == ("worker-1", "RUN_STATE_LOST")
    assert first["late_result"]["state"] == "RUN_STATE_CANCELLED"
    assert (second["agent"], second["state"]) == ("worker-2", "RUN_STATE_SUCCEEDED")
    assert cluster.ffctl("logs", run, "--attempt", "1").stdout == b"begun\ntold to stop\n"
    assert cluster.ffctl("logs", run, "--attempt", "2").stdout == b"begun\ndone\n"
    followed, errors = follower.communicate(timeout=PATIENCE_SECONDS)
    assert followed.endswith(b"begun\ndone\n"), (followed, errors)
    assert follower.returncode == 0
    told += errors.decode()
    assert "this is retry 1 of 1" in told
    assert "is back" not in told


def test_a_retry_on_the_same_agent_waits_for_the_end_of_the_lost_attempt(impatient: Net) -> None:
    cluster = impatient.cluster
    run = impatient.sleeper(60, retry_on=["lost"])
    impatient.relay.cut()
    shown = cluster.wait_for_state(run, "QUEUED")
    assert 'attempt 1 is lost, agent "worker-1" was out of reach' in shown["message"]
    impatient.relay.heal()
    cluster.until(lambda: cluster.show(run)["attempt"] == 2, "the retry")
    impatient.let_sleepers_end()
    shown = cluster.finish(run)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_SUCCEEDED", 2)
    assert impatient.spans() == ["begins", "ends", "begins", "ends"]


def _held(program: Program) -> tuple[int, int]:
    """Descriptors and threads of a program."""
    process = Path(f"/proc/{program.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def _holds_no_more(program: Program, before: tuple[int, int]) -> bool:
    """A connection or a thread of a pool may be another one than before."""
    descriptors, threads = _held(program)
    return descriptors <= before[0] + 3 and threads <= before[1] + 4
