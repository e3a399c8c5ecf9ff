"""An SQLite database that another program holds locked."""

import sqlite3
from contextlib import closing

from tests.cluster import Cluster
from tests.cluster.programs import TICKER, ticker_log
from tests.cluster.scenarios import terminal_facts


def test_a_locked_database_is_told_as_a_condition_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker")
    cluster.wait_for_log(run, b"tick 3 ")
    file = cluster.folder / "controlplane" / "fastflow.db"
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = cluster.ffctl("run", "ticker")
        assert refused.exit_code == 4
        assert f"the database at {file} is locked by another program: end what has it open" in refused.stderr
        agents = cluster.ffctl("agents", "list")
        assert "worker-1" in agents.text
        assert f"control plane, DatabaseUnavailable: the database at {file} is locked" in agents.stderr
        other.execute("ROLLBACK")
    cluster.controlplane.wait_for_log("writing works again")
    ended = cluster.finish(run)
    assert (ended["state"], ended["exit_code"], ended["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log()
    assert terminal_facts(cluster, ended["id"]) == 1
    assert cluster.controlplane.log.read_text().count('"writing fails"') == 1
