"""Control planes whose database is an older copy of itself. The same on every runtime.

A test module inherits `Restored` and brings a `cluster` that is not started yet, with identity.SETTINGS.
"""

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from fastflow.ids import short

from tests.cluster.cluster import Cluster
from tests.cluster.identity import AGENT, attempt_of, conditions, data_dir, ended, programs, state_of
from tests.cluster.program import PATIENCE_SECONDS
from tests.cluster.programs import LEDGER, is_whole_ledger, let_end, slot_folders, wait_for_output
from tests.slots import PackageIndex, bridge_address, tiny_wheel


class Restored:
    """The control plane's database is an older copy of itself."""

    def test_agents_keep_still_until_an_operator_accepts_them_and_everything_ends_truthfully(
        self, cluster: Cluster
    ) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("ledger", LEDGER)
        cluster.add_pipeline("hello", "print('hello')")
        ended_since = cluster.run("ledger")
        cluster.wait_for_log(ended_since, b"begun")
        ends = slot_folders(cluster)
        lives = cluster.run("ledger")
        cluster.wait_for_log(lives, b"begun")
        backup(cluster)
        let_end(ends)
        assert attempt_of(cluster.finish(ended_since)) == ("SUCCEEDED", "", 1)
        wait_until_forgotten(cluster)
        unknown = cluster.run("ledger")
        cluster.wait_for_log(unknown, b"begun")
        restore(cluster)

        cluster.wait_for_agent("worker-1", "QUARANTINED")
        if cluster.runtime == "process":
            cluster.until(lambda: "Unconfined" in conditions(cluster), "its first heartbeat")
        assert cluster.ffctl("agents", "list").text.count("ffctl agents accept worker-1") == 1
        waiting = cluster.run("hello")
        assert len(programs(cluster)) == 2
        assert cluster.show(lives)["state"] == "RUN_STATE_RUNNING"
        assert cluster.show(waiting)["state"] == "RUN_STATE_QUEUED"

        # Known: what lives, and what ended since.
        (attempt,) = unknown_attempts(cluster)
        assert (short(attempt["run_id"]), attempt["attempt"], attempt["pipeline"]) == (unknown, 1, "ledger")
        assert (attempt["state"], attempt["run_state"]) == ("RUN_STATE_RUNNING", "RUN_STATE_UNSPECIFIED")

        accepted = cluster.ffctl("agents", "accept", "worker-1")
        assert accepted.exit_code == 0, accepted.stderr
        cluster.wait_for_agent("worker-1")
        assert cluster.finish(waiting)["state"] == "RUN_STATE_SUCCEEDED"
        shown = cluster.until(lambda: ended(cluster, ended_since), "the end of what the database believed to run")
        # Settled and deleted long ago: nobody knows its result any more.
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        assert is_whole_ledger(cluster.log(ended_since))
        cluster.until(lambda: len(programs(cluster)) == 1, "the run that the database does not know to be stopped")
        assert cluster.ffctl("runs", "cancel", lives).exit_code == 0
        assert attempt_of(cluster.finish(lives)) == ("CANCELLED", "CANCEL_REQUESTED", 1)

    def test_no_program_begins_whose_packages_come_in_quarantine(self, cluster: Cluster) -> None:
        packages_come = threading.Event()
        with slow_index(cluster, packages_come) as index:
            cluster.start(FASTFLOW_INDEX_URL=index, **AGENT)
            cluster.add_pipeline("slow", "import alpha; print('begun')", requirements="alpha\n")
            cluster.add_pipeline("hello", "print('hello')")
            run = cluster.run("slow")
            cluster.wait_for_state(run, "PREPARING")
            backup(cluster)
            cluster.finish(cluster.run("hello"))
            wait_until_forgotten(cluster)
            restore(cluster)
            cluster.wait_for_agent("worker-1", "QUARANTINED")
            packages_come.set()
            cluster.until(lambda: programs(cluster), "a slot that waits for its release")
            for _ in range(3):
                assert state_of(cluster) == "AGENT_STATE_QUARANTINED"
                assert [log.read_bytes() for log in data_dir(cluster).glob("slots/*/log")] == [b""]
            assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
            assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
            assert cluster.log(run) == b"begun\n"

    def test_a_result_that_the_restored_database_lacks_is_told_again(self, cluster: Cluster) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("ledger", LEDGER)
        # A run that ends while its log can not be sealed: its agent still has all of it.
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        backup(cluster)
        cluster.wait_for_log(run, b"tick 20")
        cluster.agent.freeze()
        cluster.controlplane.kill()
        restore_files(cluster)
        let_end(slot_folders(cluster))
        wait_for_output(cluster, b"the end")
        cluster.agent.thaw()
        cluster.controlplane.start()
        cluster.wait_for_agent("worker-1")
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        assert is_whole_ledger(cluster.log(run))

    def test_a_run_that_is_queued_in_the_copy_begins_again_with_a_log_of_its_own(self, cluster: Cluster) -> None:
        cluster.controlplane.settings["FASTFLOW_OFFLINE_AFTER"] = "1"
        cluster.start(**AGENT)
        cluster.add_pipeline("hello", "import time; print(time.time_ns())")
        cluster.finish(cluster.run("hello"))
        cluster.agent.stop()
        run = cluster.run("hello")
        backup(cluster)
        cluster.agent.start()
        first = cluster.finish(run)
        forgotten = cluster.log(run)
        restore(cluster)
        cluster.wait_for_agent("worker-1", "QUARANTINED")
        # What is done to it meanwhile makes the copy no newer.
        for command in ("drain", "--no-wait"), ("resume",):
            assert cluster.ffctl("agents", *command, "worker-1").exit_code == 0
        cluster.agent.stop()
        cluster.wait_for_agent("worker-1", "OFFLINE")
        cluster.agent.start()
        cluster.wait_for_agent("worker-1", "QUARANTINED")
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
        assert attempt_of(cluster.finish(run)) == attempt_of(first)
        assert cluster.log(run) not in (b"", forgotten)

    def test_a_run_that_is_queued_in_the_copy_and_lives_begins_again_once_it_is_stopped(self, cluster: Cluster) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("ledger", LEDGER)
        cluster.agent.stop()
        run = cluster.run("ledger")
        backup(cluster)
        cluster.agent.start()
        cluster.wait_for_log(run, b"tick")
        (first,) = programs(cluster)
        restore(cluster)
        cluster.wait_for_agent("worker-1", "QUARANTINED")
        (attempt,) = unknown_attempts(cluster)
        assert (short(attempt["run_id"]), attempt["pipeline"]) == (run, "ledger")
        assert (attempt["state"], attempt["run_state"]) == ("RUN_STATE_RUNNING", "RUN_STATE_QUEUED")
        assert "stopped, begins again" in cluster.ffctl("agents", "show", "worker-1").text
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0

        def replaced() -> bool:
            lives = programs(cluster)
            assert len(lives) <= 1
            return bool(lives) and lives != [first]

        cluster.until(replaced, "the program of before to be stopped, and another to begin")
        cluster.wait_for_log(run, b"begun")
        assert attempt_of(cluster.show(run)) == ("RUNNING", "", 1)
        assert cluster.log(run).count(b"begun") == len(programs(cluster)) == 1


@contextmanager
def slow_index(cluster: Cluster, answers: threading.Event) -> Iterator[str]:
    """URL of a package index that has "alpha", and says nothing until `answers` is set."""
    index = PackageIndex("127.0.0.1" if cluster.runtime == "process" else bridge_address())
    index.add("alpha", *tiny_wheel("alpha", ""))
    index.on_request = lambda: answers.wait(PATIENCE_SECONDS)
    try:
        yield index.url
    finally:
        answers.set()
        index.close()


def wait_until_forgotten(cluster: Cluster) -> None:
    """Waits until the agent holds one run alone: one that it had not forgotten it would keep in quarantine."""
    cluster.until(lambda: len(slot_folders(cluster)) == 1, "the agent to forget the run that ended")


def unknown_attempts(cluster: Cluster) -> list[dict[str, Any]]:
    """What the agent has and the database does not know, once the agent told what it has."""

    def told() -> dict[str, Any] | None:
        shown = json.loads(cluster.ffctl("agents", "show", "worker-1", "-o", "json").stdout)
        found: dict[str, Any] | None = shown.get("unknown_attempts")
        return found

    return list(cluster.until(told, "the agent to tell what it has")["attempts"])


def backup(cluster: Cluster) -> None:
    """Copies the database while it is in use, as its own tool does."""
    with (
        closing(sqlite3.connect(cluster.folder / "controlplane" / "fastflow.db")) as source,
        closing(sqlite3.connect(cluster.folder / "backup.db")) as target,
    ):
        source.backup(target)


def restore(cluster: Cluster) -> None:
    """Puts the copy in the place of the database, and starts the control plane with it."""
    cluster.controlplane.stop()
    restore_files(cluster)
    cluster.controlplane.start()


def restore_files(cluster: Cluster) -> None:
    """Puts the copy in the place of the database. Logs are left as they are, newer than it."""
    for name in ("fastflow.db-wal", "fastflow.db-shm"):
        (cluster.folder / "controlplane" / name).unlink(missing_ok=True)
    shutil.copy(cluster.folder / "backup.db", cluster.folder / "controlplane" / "fastflow.db")
