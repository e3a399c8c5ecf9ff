"""A whole Fast-Flow on PostgreSQL, and what becomes of it when its server goes away."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, Program
from tests.cluster.programs import TICKER, ticker_log
from tests.postgres import PostgresServer
from tests.postgres.server import PASSWORD

LOST_SECONDS = 1.0
RECOVERY_SECONDS = 20.0
"""The agent is away for longer than both while the database is, and returns in less once that is back."""


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.empty_database() as url:
        yield url


@pytest.fixture
def cluster(tmp_path: Path, url: str) -> Iterator[Cluster]:
    """A control plane on PostgreSQL and one agent with the process runtime."""
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_DATABASE_URL=url) as made:
        made.add_pipeline("ticker", TICKER)
        yield made.start(FASTFLOW_RECONNECT_MAXIMUM="1")


@pytest.fixture
def impatient(tmp_path: Path, url: str) -> Iterator[Cluster]:
    """The same, but it soon takes runs of an agent that is away for lost."""
    settings = {
        "FASTFLOW_DATABASE_URL": url,
        "FASTFLOW_LOST_AFTER": str(LOST_SECONDS),
        "FASTFLOW_OFFLINE_AFTER": "0.5",
        "FASTFLOW_RECOVERY_WINDOW": str(RECOVERY_SECONDS),
    }
    with Cluster(tmp_path / "cluster", "process", **settings) as made:
        made.add_pipeline("ticker", TICKER)
        yield made.start(FASTFLOW_RECONNECT_MAXIMUM="1")


def told(program: Program) -> list[str]:
    """Names of the entries in a program's log."""
    return [json.loads(line)["event"] for line in program.log.read_text().splitlines()]


def ends(postgres: PostgresServer, url: str, run: str) -> int:
    """How often an end was recorded and applied for the run."""
    query = f"SELECT 1 FROM attempt_events WHERE run_id = '{run}' AND kind = 'ended' AND rejection = ''"
    return len(postgres.execute(query, url))


def test_whatever_is_killed_in_the_middle_a_run_ends_once_with_its_whole_log(
    cluster: Cluster, postgres: PostgresServer, url: str
) -> None:
    run = cluster.run("ticker")
    cluster.wait_for_log(run, b"tick 5 ")
    cluster.agent.kill()
    cluster.controlplane.kill()
    cluster.controlplane.start()
    cluster.agent.start()
    cluster.wait_for_agent("worker-1")
    ended = cluster.finish(run)
    assert (ended["state"], ended["exit_code"], ended["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log()
    assert ends(postgres, url, ended["id"]) == 1
    assert PASSWORD not in cluster.controlplane.log.read_text()


def test_while_the_database_is_away_nothing_is_decided_and_nothing_is_lost(
    impatient: Cluster, postgres: PostgresServer, url: str
) -> None:
    cluster = impatient
    in_the_middle = cluster.run("ticker", "--env", "TICKS=500")
    at_its_end = cluster.run("ticker", "--env", "TICKS=60")
    for run in (in_the_middle, at_its_end):
        cluster.wait_for_log(run, b"tick 5 ")

    postgres.kill()
    try:
        refused = cluster.ffctl("run", "ticker")
        assert refused.exit_code == 4
        assert "the database at postgresql://fastflow:***@127.0.0.1" in refused.stderr
        assert "see that the server runs" in refused.stderr
        assert cluster.ffctl("agents", "list").exit_code == 4
        cluster.agent.kill()
        used = cluster.controlplane.cpu_seconds()
        time.sleep(RECOVERY_SECONDS)
        assert cluster.controlplane.cpu_seconds() - used < 0.2 * RECOVERY_SECONDS
        cluster.agent.start()
        cluster.agent.wait_for_log("UNAVAILABLE: the database at postgresql://fastflow:***@")
    finally:
        postgres.start()

    cluster.controlplane.wait_for_log("writing works again")
    cluster.wait_for_agent("worker-1")
    for run, ticks in ((in_the_middle, 500), (at_its_end, 60)):
        ended = cluster.finish(run)
        assert (ended["state"], ended["exit_code"], ended["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
        assert cluster.log(run) == ticker_log(ticks)
        assert ends(postgres, url, ended["id"]) == 1
    assert cluster.finish(cluster.run("ticker", "--env", "TICKS=1"))["exit_code"] == 7
    entries = told(cluster.controlplane)
    assert entries.count("writing fails") == entries.count("writing works again") == 1
    assert not {"call failed", "run is lost"} & set(entries)
    written = cluster.controlplane.log.read_text()
    assert "DATABASE_UNAVAILABLE" not in written  # of those who were refused meanwhile, again and again
    assert PASSWORD not in written


def test_a_log_under_way_goes_on_through_an_outage_without_a_fault(cluster: Cluster, postgres: PostgresServer) -> None:
    first = cluster.run("ticker", "--env", "TICKS=100")
    cluster.wait_for_log(first, b"tick 5 ")
    postgres.kill()
    try:
        time.sleep(4.0)
    finally:
        postgres.start()
    assert cluster.finish(first)["attempt"] == 1
    assert cluster.log(first) == ticker_log(100)
    assert "call failed" not in told(cluster.controlplane)


def test_a_control_plane_that_froze_while_another_took_its_database_writes_nothing_more(
    cluster: Cluster, postgres: PostgresServer, url: str, tmp_path: Path
) -> None:
    other = Cluster(tmp_path / "other", "process", FASTFLOW_DATABASE_URL=url)
    with other:
        other.controlplane.start()
        other.controlplane.wait_for_log("another control plane")
        other.until(lambda: not other.controlplane.alive, "the second control plane to be refused")
        assert "can not start" in other.controlplane.tail()

        cluster.controlplane.freeze()
        name = url.rpartition("/")[2]
        postgres.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")
        other.controlplane.start()
        other.controlplane.wait_for_log("control plane is ready")
        cluster.controlplane.thaw()
        cluster.controlplane.wait_for_log("the control plane ends")
        cluster.until(lambda: not cluster.controlplane.alive, "the first control plane to end")
        assert "uses the database at postgresql://" in cluster.controlplane.tail()
        assert "Traceback" not in cluster.controlplane.tail()
