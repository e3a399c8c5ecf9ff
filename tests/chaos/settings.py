"""How the programs of a chaos run are set: every limit is short, so that outages of the script reach it."""

from tests.chaos.script import AGENTS, CONTROLPLANE

HEARTBEAT_SECONDS = 1.0
OFFLINE_SECONDS = 4.0
LOST_SECONDS = 8.0
RECOVERY_SECONDS = 8.0

CONTROLPLANE_SETTINGS = {
    # Twice a run of a second or two.
    "FASTFLOW_HEARTBEAT_INTERVAL": f"{HEARTBEAT_SECONDS:g}",
    "FASTFLOW_OFFLINE_AFTER": f"{OFFLINE_SECONDS:g}",
    "FASTFLOW_LOST_AFTER": f"{LOST_SECONDS:g}",
    "FASTFLOW_RECOVERY_WINDOW": f"{RECOVERY_SECONDS:g}",
    "FASTFLOW_ORPHAN_GRACE": "15",
    "FASTFLOW_STOP_GRACE": "2",
    "FASTFLOW_PLACEMENT_DELAY": "1",
}
CORES = 4
"""All that an agent has."""
MEMORY = "96m"
"""What a run gets; an agent has just enough for its four slots."""
HOG_MEMORY = "416m"
"""What a run gets that takes more than it gets: no agent without containers has so much, as none limits it."""
AGENT_SETTINGS = {
    "FASTFLOW_SLOTS": "4",
    "FASTFLOW_CPU_CAPACITY": f"{CORES}",
    "FASTFLOW_MEMORY_CAPACITY": "400m",
    "FASTFLOW_RECONNECT_MAXIMUM": "2",
    "FASTFLOW_CA_BUNDLE": "",
}
BOXED_SETTINGS = {"FASTFLOW_MEMORY_CAPACITY": "2g"}
"""What an agent with containers has in place of that."""
TIMEOUT_SECONDS = 2.0
"""Time limit of the pipeline that runs into it."""
READY = {CONTROLPLANE: "control plane is ready", **dict.fromkeys(AGENTS, "agent")}
"""The event that each program logs once it has begun."""


def logged_as(event: str) -> str:
    """What is in the line of a program's log that tells of an event."""
    return f'"event": "{event}"'
