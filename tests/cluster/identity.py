"""Agents and databases that are not what they were: wiped, copied, restored. The same on every runtime.

A test module inherits these classes and brings a `cluster` that is not started yet, with SETTINGS.
"""

import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.slots import PackageIndex, bridge_address, tiny_wheel

SETTINGS = {
    "FASTFLOW_HEARTBEAT_INTERVAL": "0.5",
    "FASTFLOW_SUSPECT_AFTER": "20",
    "FASTFLOW_SILENT_AFTER": "20",
    "FASTFLOW_ORPHAN_GRACE": "3",
    "FASTFLOW_STOP_GRACE": "2",
}
"""Short heartbeats and graces, and none that makes a busy machine's agent look silent."""

PATIENCE = 60.0
"""Seconds until a started program has dialled in, on a machine that others use as well."""

ONE_CORE = {"FASTFLOW_CPU_CAPACITY": "1"}
"""Settings of an agent that a run of WHOLE_AGENT takes up."""
WHOLE_AGENT = {"cpu_hard_limit": 1}

LEDGER = """
    import os, time
    print("begun", flush=True)
    for number in range(int(os.environ.get("SECONDS", "300")) * 10):
        print("tick", number, flush=True)
        time.sleep(0.1)
"""


def data_dir(cluster: Cluster, name: str = "worker-1") -> Path:
    """The data folder of an agent."""
    return Path(cluster.agents[name].settings["FASTFLOW_DATA_DIR"])


def wipe(cluster: Cluster) -> None:
    """Kills the first agent and removes its data folder."""
    cluster.agent.kill()
    shutil.rmtree(data_dir(cluster))


def conditions(cluster: Cluster, name: str = "worker-1") -> dict[str, str]:
    """Messages of the conditions of an agent by type."""
    return {held["type"]: held["message"] for held in cluster.show_agent(name).get("conditions", [])}


def wait_until_gone(cluster: Cluster) -> None:
    """Waits until no program of LEDGER runs any more; each names its cluster's folder or container."""
    cluster.until(lambda: not living(cluster), 30, "the program to be gone")


def living(cluster: Cluster) -> list[str]:
    """What still runs of the cluster's slots: containers, or processes that name its folder."""
    if cluster.runtime == "docker":
        agent_id = (data_dir(cluster) / "agent-id").read_text().strip()
        label = f"label=org.fastflow.agent={agent_id}"
        command = ["docker", "ps", "-q", "--filter", label, "--filter", "label=org.fastflow.slot"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [entry.name for entry in Path("/proc").glob("[0-9]*") if slots_of(cluster) in command_line(entry.name)]


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


def slots_of(cluster: Cluster) -> bytes:
    """How the paths of the first agent's slots begin."""
    return f"{data_dir(cluster)}/slots/".encode()


def command_line(pid: str) -> bytes:
    """How a process was started; nothing for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def state_of(cluster: Cluster) -> str:
    """State of the agent "worker-1", whichever process it is."""
    return str(cluster.show_agent("worker-1")["state"])


def attempt_of(run: dict[str, Any]) -> tuple[Any, Any, int]:
    """State, reason and number of the newest attempt, without prefixes."""
    state, reason = str(run["state"]), str(run.get("reason", ""))
    reason = reason.removeprefix("REASON_").removeprefix("UNSPECIFIED")
    return state.removeprefix("RUN_STATE_"), reason, int(run["attempt"])


class Wiped:
    """The data folder of an agent is lost."""

    def test_a_run_whose_agent_lost_its_folder_is_failed_and_not_begun_again_and_what_is_left_of_it_is_removed(
        self, cluster: Cluster
    ) -> None:
        # On a busy machine some seconds pass before this test looks at what is left.
        cluster.controlplane.settings["FASTFLOW_ORPHAN_GRACE"] = "15"
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        before = cluster.show_agent("worker-1")
        wipe(cluster)
        cluster.agent.start()
        shown = cluster.until(lambda: ended(cluster, run), 30, "the end of the run")
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        assert cluster.log(run).count(b"begun") == 1
        agent = cluster.show_agent("worker-1")
        assert (agent["agent_id"], len(agent["attempts"])) == (before["agent_id"], 1)
        assert living(cluster)
        wait_until_gone(cluster)
        cluster.until(lambda: not cluster.show_agent("worker-1").get("attempts"), 20, "its capacity to be free")
        assert "StrayContainers" not in conditions(cluster)
        cluster.add_pipeline("hello", "print('hello')")
        assert cluster.finish(cluster.run("hello"))["state"] == "RUN_STATE_SUCCEEDED"

    def test_no_run_is_placed_beside_what_is_left_of_one_though_its_agent_was_started_once_more(
        self, cluster: Cluster
    ) -> None:
        cluster.controlplane.settings["FASTFLOW_ORPHAN_GRACE"] = "20"
        cluster.start(**ONE_CORE)
        cluster.add_pipeline("ledger", LEDGER, pipeline=WHOLE_AGENT)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        strays = living(cluster)
        wipe(cluster)
        cluster.agent.start()
        shown = cluster.until(lambda: ended(cluster, run), PATIENCE, "the end of the run")
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        waiting = cluster.run("ledger")
        cluster.agent.kill()
        cluster.agent.start()
        see_held(cluster, strays, waiting)

    def test_no_retry_of_a_lost_run_is_placed_beside_what_is_left_of_it(self, cluster: Cluster) -> None:
        cluster.controlplane.settings |= {
            "FASTFLOW_ORPHAN_GRACE": "20",
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


class Copied:
    """Two agents with one id, or one name."""

    def test_a_copy_of_a_data_folder_is_refused_and_the_agent_of_before_goes_on(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger", "--env", "SECONDS=12")
        cluster.wait_for_log(run, b"begun")
        shutil.copytree(data_dir(cluster), cluster.folder / "copy")
        copy = cluster.add_agent("worker-2", FASTFLOW_DATA_DIR=str(cluster.folder / "copy"))
        copy.wait_for_log("DUPLICATE_AGENT", PATIENCE)
        assert "delete the folder" in copy.tail()
        assert "refused" in conditions(cluster)["DuplicateAgent"]
        shown = cluster.finish(run)
        assert attempt_of(shown) == ("SUCCEEDED", "", 1)
        assert cluster.log(run).endswith(b"tick 119\n")

    def test_a_copy_on_another_machine_gets_no_stream_even_while_the_agent_is_away(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger", "--env", "SECONDS=15")
        cluster.wait_for_log(run, b"begun")
        cluster.agent.kill()
        shutil.copytree(data_dir(cluster), cluster.folder / "copy")
        machine = cluster.folder / "machine-id"
        machine.write_text("0123456789abcdef0123456789abcdef\n")
        elsewhere = ("unshare", "-m", "sh", "-c", f'mount --bind {machine} /etc/machine-id && exec "$@"', "sh")
        copy = cluster.add_agent("worker-1b", entrance=elsewhere, FASTFLOW_DATA_DIR=str(cluster.folder / "copy"))
        copy.wait_for_log("belongs to another machine", PATIENCE)
        cluster.agents["worker-1"].start()
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        # Moved for good: the old machine is gone, and an operator says so.
        copy.stop()
        cluster.agents["worker-1"].stop()
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
        copy.settings["FASTFLOW_AGENT_NAME"] = "worker-1"
        copy.start()
        cluster.until(lambda: state_of(cluster) == "AGENT_STATE_ACTIVE", PATIENCE, "the moved agent to be accepted")

    def test_a_second_agent_of_one_name_is_refused_and_told_what_to_do(self, cluster: Cluster) -> None:
        cluster.start()
        first = cluster.show_agent("worker-1")
        second = cluster.add_agent("worker-2", FASTFLOW_AGENT_NAME="worker-1")
        second.wait_for_log("FASTFLOW_AGENT_NAME", PATIENCE)
        assert "DUPLICATE_AGENT" in second.tail()
        assert cluster.show_agent("worker-1")["session_epoch"] == first["session_epoch"]


class Keyless:
    """The control plane lost the key of its secrets."""

    def test_a_run_with_values_of_its_own_goes_on_past_every_grace_and_ends_with_its_result(
        self, cluster: Cluster
    ) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger", "--env", "SECONDS=20")
        cluster.wait_for_log(run, b"begun")
        cluster.controlplane.stop()
        (cluster.folder / "controlplane" / "secret.key").unlink()
        cluster.controlplane.start()
        shown = cluster.finish(run)
        assert attempt_of(shown) == ("SUCCEEDED", "", 1)
        assert "attempt can not be delivered yet" in cluster.controlplane.log.read_text()
        assert cluster.log(run).endswith(b"tick 199\n")


class Restored:
    """The control plane's database is an older copy of itself."""

    def test_agents_keep_still_until_an_operator_accepts_them_and_everything_ends_truthfully(
        self, cluster: Cluster
    ) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        cluster.add_pipeline("hello", "print('hello')")
        ended_since = cluster.run("ledger", "--env", "SECONDS=8")
        lives = cluster.run("ledger")
        cluster.wait_for_log(ended_since, b"begun")
        cluster.wait_for_log(lives, b"begun")
        backup(cluster)
        assert attempt_of(cluster.finish(ended_since)) == ("SUCCEEDED", "", 1)
        unknown = cluster.run("ledger")
        cluster.wait_for_log(unknown, b"begun")
        restore(cluster)

        cluster.wait_for_agent("worker-1", "QUARANTINED")
        if cluster.runtime == "process":
            cluster.until(lambda: "Unconfined" in conditions(cluster), PATIENCE, "its first heartbeat")
        assert cluster.ffctl("agents", "list").text.count("ffctl agents accept worker-1") == 1
        waiting = cluster.run("hello")
        assert len(programs(cluster)) == 2
        assert cluster.show(lives)["state"] == "RUN_STATE_RUNNING"
        assert cluster.show(waiting)["state"] == "RUN_STATE_QUEUED"

        accepted = cluster.ffctl("agents", "accept", "worker-1")
        assert accepted.exit_code == 0, accepted.stderr
        cluster.wait_for_agent("worker-1")
        assert cluster.finish(waiting)["state"] == "RUN_STATE_SUCCEEDED"
        shown = cluster.until(lambda: ended(cluster, ended_since), 30, "the end of what the database believed to run")
        # Settled and deleted long ago: nobody knows its result any more.
        assert attempt_of(shown) == ("FAILED", "STATE_LOST", 1)
        assert cluster.log(ended_since).endswith(b"tick 79\n")
        cluster.until(lambda: len(programs(cluster)) == 1, 30, "the run that the database does not know to be stopped")
        assert cluster.ffctl("runs", "cancel", lives).exit_code == 0
        assert attempt_of(cluster.finish(lives)) == ("CANCELLED", "CANCEL_REQUESTED", 1)

    def test_no_program_begins_whose_packages_come_in_quarantine(self, cluster: Cluster) -> None:
        packages_come = threading.Event()
        with slow_index(cluster, packages_come) as index:
            cluster.start(FASTFLOW_INDEX_URL=index)
            cluster.add_pipeline("slow", "import alpha; print('begun')", requirements="alpha\n")
            cluster.add_pipeline("hello", "print('hello')")
            run = cluster.run("slow")
            cluster.wait_for_state(run, "PREPARING")
            backup(cluster)
            cluster.finish(cluster.run("hello"))
            restore(cluster)
            cluster.wait_for_agent("worker-1", "QUARANTINED")
            packages_come.set()
            cluster.until(lambda: programs(cluster), PATIENCE, "a slot that waits for its release")
            for _ in range(3):
                assert state_of(cluster) == "AGENT_STATE_QUARANTINED"
                assert [log.read_bytes() for log in data_dir(cluster).glob("slots/*/log")] == [b""]
            assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
            assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
            assert cluster.log(run) == b"begun\n"

    def test_a_result_that_the_restored_database_lacks_is_told_again(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        # A run that ends while its log can not be sealed: its agent still has all of it.
        run = cluster.run("ledger", "--env", "SECONDS=6")
        cluster.wait_for_log(run, b"begun")
        backup(cluster)
        cluster.wait_for_log(run, b"tick 40")
        cluster.agent.freeze()
        cluster.controlplane.kill()
        restore_files(cluster)
        cluster.agent.thaw()
        cluster.controlplane.start()
        cluster.wait_for_agent("worker-1")
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        assert cluster.log(run).endswith(b"tick 59\n")

    def test_a_run_that_is_queued_in_the_copy_begins_again_with_a_log_of_its_own(self, cluster: Cluster) -> None:
        cluster.start()
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
        for command in ("drain", "resume"):
            assert cluster.ffctl("agents", command, "worker-1").exit_code == 0
        cluster.agent.stop()
        cluster.wait_for_agent("worker-1", "OFFLINE")
        cluster.agent.start()
        cluster.wait_for_agent("worker-1", "QUARANTINED")
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
        assert attempt_of(cluster.finish(run)) == attempt_of(first)
        assert cluster.log(run) not in (b"", forgotten)

    def test_a_run_that_is_queued_in_the_copy_and_lives_begins_again_once_it_is_stopped(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        cluster.agent.stop()
        run = cluster.run("ledger")
        backup(cluster)
        cluster.agent.start()
        cluster.wait_for_log(run, b"tick")
        (first,) = programs(cluster)
        restore(cluster)
        cluster.wait_for_agent("worker-1", "QUARANTINED")
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0

        def replaced() -> bool:
            lives = programs(cluster)
            assert len(lives) <= 1
            return bool(lives) and lives != [first]

        cluster.until(replaced, 60, "the program of before to be stopped, and another to begin")
        cluster.wait_for_log(run, b"begun")
        assert attempt_of(cluster.show(run)) == ("RUNNING", "", 1)
        assert cluster.log(run).count(b"begun") == len(programs(cluster)) == 1


@contextmanager
def slow_index(cluster: Cluster, answers: threading.Event) -> Iterator[str]:
    """URL of a package index that has "alpha", and says nothing until `answers` is set."""
    index = PackageIndex("127.0.0.1" if cluster.runtime == "process" else bridge_address())
    index.add("alpha", *tiny_wheel("alpha", ""))
    index.on_request = lambda: answers.wait(PATIENCE)
    try:
        yield index.url
    finally:
        answers.set()
        index.close()


def programs(cluster: Cluster) -> list[str]:
    """Slots that live on the first agent."""
    if cluster.runtime == "docker":
        return living(cluster)
    lines = [line for line in map(command_line, living(cluster)) if b"shim.py" in line]
    # A shim that starts is more than one process for a moment.
    return sorted({line.partition(slots_of(cluster))[2].partition(b"/")[0].decode() for line in lines})


def ended(cluster: Cluster, run: str) -> dict[str, Any] | None:
    """The run once it has an end time."""
    shown = cluster.show(run)
    return shown if shown.get("end_time") else None


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
