"""What tests of wiped and copied agents and restored databases have in common: settings, and what lives on an agent."""

import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster

SETTINGS = {
    "FASTFLOW_HEARTBEAT_INTERVAL": "0.5",
    "FASTFLOW_SUSPECT_AFTER": "20",
    "FASTFLOW_SILENT_AFTER": "20",
    "FASTFLOW_ORPHAN_GRACE": "3",
    "FASTFLOW_STOP_GRACE": "2",
}
"""Short heartbeats and graces, and none that makes a busy machine's agent look silent."""

AGENT = {"FASTFLOW_RECONNECT_MAXIMUM": "1"}
"""Settings of an agent that soon finds a control plane that was restarted."""


def data_dir(cluster: Cluster, name: str = "worker-1") -> Path:
    """The data folder of an agent."""
    return Path(cluster.agents[name].settings["FASTFLOW_DATA_DIR"])


def conditions(cluster: Cluster, name: str = "worker-1") -> dict[str, str]:
    """Messages of the conditions of an agent by type."""
    return {held["type"]: held["message"] for held in cluster.show_agent(name).get("conditions", [])}


def wait_until_gone(cluster: Cluster) -> None:
    """Waits until no program of the first agent runs any more."""
    cluster.until(lambda: not living(cluster), "all programs to be gone")


def living(cluster: Cluster) -> list[str]:
    """What still runs of the cluster's slots: containers, or processes that name its folder."""
    if cluster.runtime == "docker":
        agent_id = (data_dir(cluster) / "agent-id").read_text().strip()
        label = f"label=org.fastflow.agent={agent_id}"
        command = ["docker", "ps", "-q", "--filter", label, "--filter", "label=org.fastflow.slot"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [entry.name for entry in Path("/proc").glob("[0-9]*") if slots_of(cluster) in command_line(entry.name)]


def programs(cluster: Cluster) -> list[str]:
    """Slots that live on the first agent."""
    if cluster.runtime == "docker":
        return living(cluster)
    lines = [line for line in map(command_line, living(cluster)) if b"shim.py" in line]
    # A shim that starts is more than one process for a moment.
    return sorted({line.partition(slots_of(cluster))[2].partition(b"/")[0].decode() for line in lines})


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


def ended(cluster: Cluster, run: str) -> dict[str, Any] | None:
    """The run once it has an end time."""
    shown = cluster.show(run)
    return shown if shown.get("end_time") else None
