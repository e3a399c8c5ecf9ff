"""Two worker hosts of one control plane: rolling upgrade, wrong clocks, reboots, and runs that move to the other."""

from collections.abc import Iterator

import pytest

from tests.cluster.scenarios import TICKER, terminal_facts, ticker_log
from tests.hosts.lab.cluster import AGENT_READY_TIMEOUT, HostAgent, HostCluster
from tests.hosts.lab.lab import Lab

SECONDS = 120.0
"""For one run in a guest: five to fifteen on a quiet machine."""

NEXT_VERSION = """
cd /opt/fastflow/lib/python3*/site-packages/fast_flow-*.dist-info
sed -i 's/^Version: .*/Version: 9.8.7/' METADATA
"""
"""Makes the installed agent one of another version."""


@pytest.fixture(scope="module")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """A control plane for these hosts alone."""
    with HostCluster(lab, tmp_path_factory.mktemp("fleet")) as cluster:
        cluster.controlplane.start()
        yield cluster


@pytest.fixture(scope="module")
def _hosts(cluster: HostCluster) -> Iterator[list[HostAgent]]:
    # One run fills a host, so that two runs are on two hosts.
    hosts = [cluster.add_host(name, FASTFLOW_SLOTS="1") for name in ("fleet-1", "fleet-2")]
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
    """Two hosts with room for one run each, without runs, brought back if a test broke them."""
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
    rebooted, other = hosts
    rebooted.power_off()
    rebooted.boot()
    shown = cluster.finish(runs[rebooted.name], SECONDS)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT", 1)
    assert ticker_log(1000).startswith(cluster.log(runs[rebooted.name]))
    assert terminal_facts(cluster, shown["id"]) == 1
    assert_whole(cluster, runs[other.name], 1000)
