"""How the programs of a chaos run are set: every limit is short, so that outages of the script reach it."""

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
AGENT_SETTINGS = {
    "FASTFLOW_SLOTS": "4",
    "FASTFLOW_CPU_CAPACITY": "4",
    "FASTFLOW_MEMORY_CAPACITY": "4g",
    "FASTFLOW_RECONNECT_MAXIMUM": "2",
    "FASTFLOW_CA_BUNDLE": "",
}
TIMEOUT_SECONDS = 2.0
"""Time limit of the pipeline that runs into it."""
