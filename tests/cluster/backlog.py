"""Output that waits on a worker past its quota: dropped with a recorded loss, or the program paused.

The same on every runtime. A test module inherits `Backlogs` and brings a `cluster` that is not started yet, whose
folder "controlplane/logs" is a small disk of its own (`small_disk`), with AGENT for its agent.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.identity import living, programs, wait_until_gone
from tests.cluster.programs import let_end, slot_folders

MIB = 1024 * 1024
DISK_BYTES = 24 * MIB
QUOTA = MIB
AGENT = {"FASTFLOW_SPOOL_QUOTA": str(QUOTA), "FASTFLOW_RECONNECT_MAXIMUM": "1"}
LINES = 40

LOUD = """
    import os, sys, tempfile, time
    print("begun", flush=True)
    while not os.path.exists(os.path.join(tempfile.gettempdir(), "go")): time.sleep(0.05)
    for number in range(40):
        sys.stdout.write(f"{number:7} " + "x" * 100_000 + "\\n")
        sys.stdout.flush()
        time.sleep(0.1)
    print("the end")
"""
"""4 MB in 4 s, once it is let end."""


def loud_log() -> bytes:
    """What LOUD writes, byte for byte."""
    return b"begun\n" + b"".join(b"%7d " % number + b"x" * 100_000 + b"\n" for number in range(LINES)) + b"the end\n"


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own where the control plane keeps its logs. Needs root."""
    logs = folder / "controlplane" / "logs"
    logs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fastflow-test", str(logs)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(logs)], check=True)


def fill(cluster: Cluster) -> None:
    """Leaves next to no room for logs."""
    try:
        with (cluster.folder / "controlplane" / "logs" / "ballast").open("ab", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
    except OSError:
        return


def free(cluster: Cluster) -> None:
    """Makes room again."""
    (cluster.folder / "controlplane" / "logs" / "ballast").unlink()


def pauses(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The warnings of the newest attempt that tell of a pause."""
    warnings = run["attempts"][-1].get("warnings", [])
    return [warning for warning in warnings if warning["kind"] == "SOFT_LIMIT_KIND_LOG_BACKLOG"]


def frozen(cluster: Cluster) -> bool:
    """Whether the one program of the cluster stands still."""
    if cluster.runtime == "docker":
        (container,) = living(cluster)
        command = ["docker", "inspect", "-f", "{{.State.Paused}}", container]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "true"
    (slot,) = programs(cluster)
    (identity,) = cluster.folder.glob(f"*/slots/{slot}/**/identity")
    _, program = (word.partition(":")[0] for word in identity.read_text().split())
    return Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def sealed_log(cluster: Cluster, run: str) -> dict[str, Any] | None:
    """The last attempt of the run, once its log is complete."""
    attempt: dict[str, Any] = cluster.show(run)["attempts"][-1]
    return attempt if attempt.get("log_sealed") else None


class Backlogs:
    """The control plane takes no logs for so long that the spool reaches its quota."""

    def test_a_run_goes_on_and_what_could_not_be_kept_is_a_recorded_loss(self, cluster: Cluster) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("loud", LOUD)
        run = cluster.run("loud")
        cluster.wait_for_log(run, b"begun")
        cluster.controlplane.kill()
        let_end(slot_folders(cluster))
        wait_until_gone(cluster)
        cluster.controlplane.start()
        shown = cluster.finish(run)
        assert shown["state"] == "RUN_STATE_SUCCEEDED"
        (loss,) = cluster.until(lambda: sealed_log(cluster, run), "the whole log")["log_losses"]
        assert loss["kind"] == "LOG_LOSS_KIND_DROPPED"
        start, count = int(loss["offset"]), int(loss["bytes"])
        assert count > len(loud_log()) - 2 * QUOTA
        assert cluster.log(run) == loud_log()[:start] + loud_log()[start + count :]
        assert pauses(cluster.show(run)) == []

    def test_a_run_that_asks_for_it_is_paused_until_its_output_has_drained_and_loses_nothing(
        self, cluster: Cluster
    ) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("loud", LOUD, pipeline={"on_log_backlog": "pause"})
        run = cluster.run("loud")
        cluster.wait_for_log(run, b"begun")
        cluster.controlplane.kill()
        let_end(slot_folders(cluster))
        cluster.agent.wait_for_log("program is paused")
        cluster.until(lambda: frozen(cluster), "the program to stand still")
        cluster.agent.kill()
        cluster.agent.start()
        cluster.agent.wait_for_log('"next": "attach"')
        assert frozen(cluster)
        cluster.controlplane.start()
        shown = cluster.finish(run)
        assert shown["state"] == "RUN_STATE_SUCCEEDED"
        assert cluster.log(run) == loud_log()
        assert shown["attempts"][-1].get("log_losses", []) == []
        assert pauses(shown)
        assert all(pause["clear_time"] and float(pause["seconds_above"]) > 0 for pause in pauses(shown))
        assert "was paused" in cluster.ffctl("runs", "show", run).text

    def test_a_pause_is_shown_while_it_lasts_and_a_paused_run_can_be_cancelled(self, cluster: Cluster) -> None:
        cluster.start(**AGENT)
        cluster.add_pipeline("loud", LOUD, pipeline={"on_log_backlog": "pause"})
        run = cluster.run("loud")
        cluster.wait_for_log(run, b"begun")
        fill(cluster)
        let_end(slot_folders(cluster))
        cluster.until(lambda: pauses(cluster.show(run)), "the pause to be told")
        cluster.until(lambda: frozen(cluster), "the program to stand still")
        assert "is paused" in cluster.ffctl("runs", "show", run).text
        assert cluster.ffctl("runs", "cancel", run).exit_code == 0
        cluster.wait_for_state(run, "CANCELLED")
        free(cluster)
        shown = cluster.finish(run)
        assert loud_log().startswith(cluster.log(run))
        assert shown["attempts"][-1].get("log_losses", []) == []
