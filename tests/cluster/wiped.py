"""Agents whose data folder is lost. The same on every runtime.

A test module inherits `Wiped` and brings a `cluster` that is not started yet, with identity.SETTINGS.
"""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.identity import (
    attempt_of,
    command_line,
    conditions,
    data_dir,
    ended,
    living,
    slots_of,
    wait_until_gone,
)
from tests.cluster.programs import LEDGER

ONE_CORE = {"FASTFLOW_CPU_CAPACITY": "1"}
"""Settings of an agent that a run of WHOLE_AGENT takes up."""
WHOLE_AGENT = {"cpu_hard_limit": 1}


class Wiped:
    """The data folder of an agent is lost."""

    def test_a_run_whose_agent_lost_its_folder_is_failed_and_not_begun_again_and_what_is_left_of_it_is_removed(
        self, cluster: Cluster
    ) -> None:
        # On a busy machine some seconds pass before this test looks at what is left.
        cluster.controlplane.settings["FASTFLOW_ORPHAN_GRACE"] = "25"
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        before = cluster.show_agent("worker-1")
        wipe(cluster)
        cluster.agent.start()
        shown = cluster.until(lambda: ended(cluster, run), "the end of the run")
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        assert cluster.log(run).count(b"begun") == 1
        agent = cluster.show_agent("worker-1")
        assert (agent["agent_id"], len(agent["attempts"])) == (before["agent_id"], 1)
        assert living(cluster)
        wait_until_gone(cluster)
        cluster.until(lambda: not cluster.show_agent("worker-1").get("attempts"), "its capacity to be free")
        assert "StrayContainers" not in conditions(cluster)
        cluster.add_pipeline("hello", "print('hello')")
        assert cluster.finish(cluster.run("hello"))["state"] == "RUN_STATE_SUCCEEDED"

    def test_no_run_is_placed_beside_what_is_left_of_one_though_its_agent_was_started_once_more(
        self, cluster: Cluster
    ) -> None:
        cluster.controlplane.settings["FASTFLOW_ORPHAN_GRACE"] = "25"
        cluster.start(**ONE_CORE)
        cluster.add_pipeline("ledger", LEDGER, pipeline=WHOLE_AGENT)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        strays = living(cluster)
        wipe(cluster)
        cluster.agent.start()
        shown = cluster.until(lambda: ended(cluster, run), "the end of the run")
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        waiting = cluster.run("ledger")
        cluster.agent.kill()
        cluster.agent.start()
        see_held(cluster, strays, waiting)

    def test_no_retry_of_a_lost_run_is_placed_beside_what_is_left_of_it(self, cluster: Cluster) -> None:
        cluster.controlplane.settings |= {
            "FASTFLOW_ORPHAN_GRACE": "25",
            "FASTFLOW_OFFLINE_AFTER": "1",
            "FASTFLOW_LOST_AFTER": "1",
            "FASTFLOW_RECOVERY_WINDOW": "0",
        }
        cluster.start(**ONE_CORE)
        cluster.add_pipeline("ledger", LEDGER, pipeline=WHOLE_AGENT | {"retry_on": ["lost"]})
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        strays = living(cluster)
        wipe(cluster)
        cluster.wait_for_state(run, "QUEUED")
        cluster.agent.start()
        see_held(cluster, strays, run)
        assert cluster.show(run)["attempt"] == 2

    def test_an_agent_whose_folder_is_lost_under_it_takes_no_runs_and_is_itself_again_once_it_is_restarted(
        self, cluster: Cluster
    ) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        cluster.add_pipeline("hello", "print('hello')")
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        before = cluster.show_agent("worker-1")
        empty(data_dir(cluster))
        # It may still be placed there at first.
        waiting = cluster.run("hello")
        cluster.until(lambda: "DataFolderLost" in conditions(cluster), "the agent to notice")
        cluster.until(
            lambda: "DataFolderLost" in cluster.show(waiting).get("message", ""), "the run to say why it waits"
        )
        assert cluster.agent.stop() == 0
        cluster.agent.start()
        shown = cluster.until(lambda: ended(cluster, run), "the end of the run")
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        assert cluster.finish(waiting)["state"] == "RUN_STATE_SUCCEEDED"
        assert cluster.show_agent("worker-1")["agent_id"] == before["agent_id"]
        assert "DataFolderLost" not in conditions(cluster)
        wait_until_gone(cluster)

    def test_a_run_that_the_agent_never_took_starts_after_its_folder_was_lost(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("hello", "print('hello')")
        cluster.finish(cluster.run("hello"))
        cluster.agent.freeze()
        run = cluster.run("hello")
        cluster.wait_for_state(run, "ASSIGNED")
        wipe(cluster)
        cluster.agent.start()
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)


def wipe(cluster: Cluster) -> None:
    """Kills the first agent and removes its data folder."""
    cluster.agent.kill()
    shutil.rmtree(data_dir(cluster))


def empty(folder: Path) -> None:
    """Removes all that is in a folder, while somebody goes on to use it."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def alive(cluster: Cluster, programs: Iterable[str]) -> list[str]:
    """Those of what `living` named once that live still, whoever the agent is by now."""
    if cluster.runtime == "docker":
        running = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.split()
        return [container for container in programs if container in running]
    return [pid for pid in programs if slots_of(cluster) in command_line(pid)]


def see_held(cluster: Cluster, strays: Sequence[str], run: str) -> None:
    """Sees that `run`, which needs the whole agent, is not placed while one of `strays` lives, and is after that.

    Until then the agent is shown as taken.
    """
    looks = 0
    while True:
        shown, agent = cluster.show(run), cluster.show_agent("worker-1")
        listed = cluster.ffctl("agents", "list").text
        # What was seen before it was seen to live was so beside it.
        if not alive(cluster, strays):
            break
        looks += agent["state"] == "AGENT_STATE_ACTIVE"
        assert shown["state"] == "RUN_STATE_QUEUED"
        assert (agent["reserved"]["cpu_milli_cores"], agent["reserved"]["slots"]) == ("1000", 1)
        assert "1/1" in listed
    assert looks
    cluster.wait_for_state(run, "RUNNING")
