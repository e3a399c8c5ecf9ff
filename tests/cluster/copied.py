"""Two agents that claim to be one, and a control plane that lost its key. The same on every runtime.

A test module inherits these classes and brings a `cluster` that is not started yet, with identity.SETTINGS.
"""

import shutil

from tests.cluster.cluster import Cluster
from tests.cluster.identity import AGENT, SETTINGS, attempt_of, conditions, data_dir, state_of
from tests.cluster.programs import LEDGER, is_whole_ledger, let_end, slot_folders, wait_for_output

GRACES_TICKS = 10 * (int(SETTINGS["FASTFLOW_ORPHAN_GRACE"]) + int(SETTINGS["FASTFLOW_STOP_GRACE"]) + 3)
"""Ticks of LEDGER in which every grace is over."""


class Copied:
    """Two agents with one id, or one name."""

    def test_a_copy_of_a_data_folder_is_refused_and_the_agent_of_before_goes_on(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        shutil.copytree(data_dir(cluster), cluster.folder / "copy")
        copy = cluster.add_agent("worker-2", FASTFLOW_DATA_DIR=str(cluster.folder / "copy"))
        copy.wait_for_log("DUPLICATE_AGENT")
        assert "delete the folder" in copy.tail()
        assert "refused" in conditions(cluster)["DuplicateAgent"]
        let_end(slot_folders(cluster))
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        assert is_whole_ledger(cluster.log(run))

    def test_a_copy_on_another_machine_gets_no_stream_even_while_the_agent_is_away(self, cluster: Cluster) -> None:
        cluster.start()
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger")
        cluster.wait_for_log(run, b"begun")
        cluster.agent.kill()
        shutil.copytree(data_dir(cluster), cluster.folder / "copy")
        machine = cluster.folder / "machine-id"
        machine.write_text("0123456789abcdef0123456789abcdef\n")
        elsewhere = ("unshare", "-m", "sh", "-c", f'mount --bind {machine} /etc/machine-id && exec "$@"', "sh")
        copy = cluster.add_agent("worker-1b", entrance=elsewhere, FASTFLOW_DATA_DIR=str(cluster.folder / "copy"))
        copy.wait_for_log("belongs to another machine")
        # Another machine would not see the containers of this one, and could not take their end from their agent.
        copy.stop()
        cluster.agents["worker-1"].start()
        let_end(slot_folders(cluster))
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        # Moved for good: the old machine is gone, and an operator says so.
        cluster.agents["worker-1"].stop()
        assert cluster.ffctl("agents", "accept", "worker-1").exit_code == 0
        copy.settings["FASTFLOW_AGENT_NAME"] = "worker-1"
        copy.start()
        cluster.until(lambda: state_of(cluster) == "AGENT_STATE_ACTIVE", "the moved agent to be accepted")

    def test_a_second_agent_of_one_name_is_refused_and_told_what_to_do(self, cluster: Cluster) -> None:
        cluster.start()
        first = cluster.show_agent("worker-1")
        second = cluster.add_agent("worker-2", FASTFLOW_AGENT_NAME="worker-1")
        second.wait_for_log("FASTFLOW_AGENT_NAME")
        assert "DUPLICATE_AGENT" in second.tail()
        assert cluster.show_agent("worker-1")["session_epoch"] == first["session_epoch"]


class Keyless:
    """The control plane lost the key of its secrets."""

    def test_a_run_with_values_of_its_own_goes_on_past_every_grace_and_ends_with_its_result(
        self, cluster: Cluster
    ) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("ledger", LEDGER)
        run = cluster.run("ledger", "--env", "OWN=value")
        cluster.wait_for_log(run, b"begun")
        cluster.controlplane.stop()
        (cluster.folder / "controlplane" / "secret.key").unlink()
        cluster.controlplane.start()
        cluster.controlplane.wait_for_log("attempt can not be delivered yet")
        (slot,) = slot_folders(cluster)
        ticks = (slot / "log").read_bytes().count(b"tick")
        wait_for_output(cluster, b"tick %d" % (ticks + GRACES_TICKS))
        let_end([slot])
        assert attempt_of(cluster.finish(run)) == ("SUCCEEDED", "", 1)
        assert is_whole_ledger(cluster.log(run))
