"""Two worker hosts of one control plane: rolling upgrade, wrong clocks, reboots, and runs that move to the other.

One of them is a host like most real ones, with systemd and the agent's delivered unit: what cuts runs short is tried
there.
"""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.cluster.programs import TICKER, ticker_log
from tests.cluster.scenarios import terminal_facts
from tests.hosts.lab.cluster import AGENT_READY_TIMEOUT, HostAgent, HostCluster
from tests.hosts.lab.init import PLAIN, SYSTEMD
from tests.hosts.lab.lab import Lab

TICKS = 1000
"""More than a run writes until it is lost: nearly a minute."""

SECONDS = 120.0
"""For one run in a guest: five to fifteen on a quiet machine."""

HEARTBEAT = 1
MISSED = 4
LOST_AFTER = 30
UNTIL_LOST = HEARTBEAT * MISSED + LOST_AFTER
"""Seconds from a host's last sign of life until its runs are LOST; an agent that is restarted is back sooner."""
OVERHEAD = 2.0
"""Seconds that LOST may come later than that, and the next placement later than LOST."""
START = 30.0
"""Seconds for a container of a guest to run user code: four to nine on a quiet machine, where real hosts take one."""

NEXT_VERSION = """
cd /opt/fastflow/lib/python3*/site-packages/fast_flow-*.dist-info
sed -i 's/^Version: .*/Version: 9.8.7/' METADATA
"""
"""Makes the installed agent one of another version."""


@pytest.fixture(scope="module")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """A control plane for these hosts alone, which gives up a silent host soon."""
    settings = {
        "FASTFLOW_HEARTBEAT_INTERVAL": str(HEARTBEAT),
        "FASTFLOW_SILENT_AFTER": str(MISSED),
        "FASTFLOW_LOST_AFTER": str(LOST_AFTER),
        "FASTFLOW_RECOVERY_WINDOW": "0",
    }
    with HostCluster(lab, tmp_path_factory.mktemp("fleet"), **settings) as cluster:
        cluster.controlplane.start()
        yield cluster


@pytest.fixture(scope="module")
def _hosts(cluster: HostCluster) -> Iterator[list[HostAgent]]:
    # One run fills a host, so that two runs are on two hosts.
    kinds = {"fleet-plain": PLAIN, "fleet-systemd": SYSTEMD}
    hosts = [cluster.add_host(name, init, FASTFLOW_SLOTS="1") for name, init in kinds.items()]
    for host in hosts:
        host.guest.power_on()
    for host in hosts:
        host.guest.wait_until_up()
        cluster.wait_for_agent(host.name, timeout=AGENT_READY_TIMEOUT)
    yield hosts
    for host in hosts:
        host.power_cut()


@pytest.fixture
def hosts(_hosts: list[HostAgent]) -> list[HostAgent]:
    """Two hosts with room for one run each, without runs, brought back if a test broke them; the last has systemd."""
    for host in _hosts:
        host.recover()
    return _hosts


def tickers(cluster: HostCluster, ticks: int) -> dict[str, str]:
    """Starts a run on each of the two hosts; returns them by the host's name once they print."""
    cluster.add_pipeline("ticker", TICKER)
    runs = [cluster.run("ticker", "--env", f"TICKS={ticks}") for _ in range(2)]
    for run in runs:
        cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    return {cluster.show(run)["attempts"][0]["agent"]: run for run in runs}


def assert_whole(cluster: HostCluster, run: str, ticks: int) -> None:
    """The run ended once, of itself, on its first attempt, with all it printed."""
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log(ticks)
    assert terminal_facts(cluster, shown["id"]) == 1


def test_agents_are_upgraded_host_by_host_under_runs_in_flight(cluster: HostCluster, hosts: list[HostAgent]) -> None:
    runs = tickers(cluster, 800)
    for host in hosts:
        host.stop_agent()
        host.run(NEXT_VERSION)
        host.start_agent()
        assert cluster.show_agent(host.name)["version"] == "9.8.7"
    assert sorted(runs) == [host.name for host in hosts]
    for run in runs.values():
        assert_whole(cluster, run, 800)


def test_a_clock_that_jumps_an_hour_either_way_harms_no_run(cluster: HostCluster, hosts: list[HostAgent]) -> None:
    cluster.add_pipeline("ticker", TICKER, pipeline={"timeout": 600})
    runs = [cluster.run("ticker", "--env", "TICKS=300") for _ in range(2)]
    for run in runs:
        cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    for host, jump in zip(hosts, ("1 hour", "1 hour ago"), strict=True):
        host.run(f"date --set '{jump}'")
    for run in runs:
        assert_whole(cluster, run, 300)
        attempt = cluster.show(run)["attempts"][0]
        assert attempt["agent"] in [host.name for host in hosts]
    for host in hosts:
        assert cluster.show_agent(host.name)["state"] == "AGENT_STATE_ACTIVE"


def test_a_host_that_is_rebooted_in_order_ends_its_run_with_host_reboot(
    cluster: HostCluster, hosts: list[HostAgent]
) -> None:
    runs = tickers(cluster, 1000)
    # Not the one with systemd, which is away for longer than LOST_AFTER: see test_systemd.
    rebooted, other = hosts
    rebooted.power_off()
    rebooted.boot()
    shown = cluster.finish(runs[rebooted.name], SECONDS)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT", 1)
    assert ticker_log(1000).startswith(cluster.log(runs[rebooted.name]))
    assert terminal_facts(cluster, shown["id"]) == 1
    assert_whole(cluster, runs[other.name], 1000)


def test_a_run_whose_host_lost_its_power_is_lost_in_time_and_runs_on_the_other_host(
    cluster: HostCluster, hosts: list[HostAgent], capsys: pytest.CaptureFixture[str]
) -> None:
    other, victim = hosts
    run, first = moving(cluster, victim, other)
    begun = time.monotonic()
    victim.power_cut()
    attempt_state(cluster, run, 1, "LOST")
    lost = time.monotonic() - begun
    shown = attempt_state(cluster, run, 2, "RUNNING")
    retried = time.monotonic() - begun
    placed = seconds_between(shown["attempts"][0]["end_time"], shown["attempts"][1]["assign_time"])
    with capsys.disabled():
        print(f"\nbeyond {UNTIL_LOST} s from the power cut: {lost - UNTIL_LOST:+.1f} s to LOST, ", end="")
        print(f"{placed:.1f} s more to the next placement, {retried - UNTIL_LOST:+.1f} s to RUNNING on the other host")
    assert lost <= UNTIL_LOST + OVERHEAD
    assert placed <= OVERHEAD
    assert retried <= UNTIL_LOST + OVERHEAD + START
    assert [attempt["agent"] for attempt in shown["attempts"]] == [victim.name, other.name]
    # As long as its host is away, nothing more of the first attempt's log can come.
    shown = cluster.wait_for_state(run, "FAILED", SECONDS)
    assert (shown["exit_code"], shown["attempt"]) == (7, 2)
    assert cluster.log(run) == ticker_log(TICKS)
    victim.boot()
    shown = cluster.until(lambda: late(cluster, run), "what became of the first attempt", SECONDS)
    assert shown["attempts"][0]["state"] == "RUN_STATE_LOST"
    assert shown["attempts"][0]["late_result"]["reason"] == "REASON_HOST_REBOOT"
    assert ticker_log(TICKS).startswith(first)
    assert cluster.ffctl("logs", run, "--attempt", "1").stdout.startswith(first)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_FAILED", 2)
    assert_nothing_left(cluster, victim)


def test_a_run_on_a_host_cut_off_for_too_long_moves_and_what_still_ran_there_is_stopped(
    cluster: HostCluster, hosts: list[HostAgent]
) -> None:
    other, victim = hosts
    run, first = moving(cluster, victim, other)
    victim.partition()
    attempt_state(cluster, run, 2, "RUNNING")
    assert victim.run("docker ps --quiet").stdout, "nobody can stop what runs on a host out of reach"
    victim.heal()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 2)
    assert cluster.log(run) == ticker_log(TICKS)
    lost = cluster.until(lambda: late(cluster, run), "what became of the first attempt", SECONDS)["attempts"][0]
    assert (lost["agent"], lost["state"]) == (victim.name, "RUN_STATE_LOST")
    assert lost["late_result"]["state"] in ("RUN_STATE_CANCELLED", "RUN_STATE_FAILED")
    stored = cluster.ffctl("logs", run, "--attempt", "1").stdout
    assert len(first) < len(stored)
    assert ticker_log(TICKS).startswith(stored)
    assert_nothing_left(cluster, victim)


def moving(cluster: HostCluster, victim: HostAgent, other: HostAgent) -> tuple[str, bytes]:
    """Starts a run on `victim` that is to move to `other` when lost; returns its id and its log so far."""
    cluster.add_pipeline("moving", TICKER, pipeline={"retry_on": ["lost"]})
    assert cluster.ffctl("agents", "drain", other.name).exit_code == 0
    run = cluster.run("moving", "--env", f"TICKS={TICKS}")
    cluster.wait_for_log(run, b"tick 20 ", SECONDS)
    assert cluster.ffctl("agents", "resume", other.name).exit_code == 0
    assert cluster.show(run)["attempts"][0]["agent"] == victim.name
    return run, cluster.log(run)


def assert_nothing_left(cluster: HostCluster, host: HostAgent) -> None:
    """The host keeps no container, and no group of one, in either layout of control groups."""
    left = "docker ps --all --quiet; ls -d /sys/fs/cgroup/fastflow/?* /sys/fs/cgroup/fastflow.slice/fastflow-* 2>&-"
    what = f"containers and groups on {host.name} to be removed"
    cluster.until(lambda: not host.run(left, check=False).stdout, what)


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one time that `ffctl` shows to another."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def attempt_state(cluster: HostCluster, run: str, number: int, state: str) -> dict[str, Any]:
    """Waits until an attempt of the run is in `state`, and returns the run."""

    def seen() -> dict[str, Any] | None:
        shown = cluster.show(run)
        states = [attempt["state"] for attempt in shown["attempts"]]
        return shown if states[number - 1 : number] == [f"RUN_STATE_{state}"] else None

    return cluster.until(seen, f"attempt {number} to be {state}", UNTIL_LOST + SECONDS)


def late(cluster: HostCluster, run: str) -> dict[str, Any] | None:
    """The run, once its first attempt has told how it ended and has its whole log here."""
    shown = cluster.show(run)
    return shown if "late_result" in shown["attempts"][0] and shown["attempts"][0].get("log_sealed") else None
