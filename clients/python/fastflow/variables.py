"""The environment variables of all our programs, and those that look like one of them and have no effect.

Names alone, apart from the classes of settings: programs do not import each other, and `ffctl` loads no settings.
"""

import difflib
from collections.abc import Iterable

PREFIX = "FASTFLOW_"

SETTINGS = frozenset(
    [
        "AGENT_NAME",
        "ALLOW_REMOTE",
        "BUNDLE_CACHE_SIZE",
        "CA_BUNDLE",
        "CODE_LIMIT",
        "CONTAINER_UID",
        "CONTROLPLANE",
        "CPU_CAPACITY",
        "DATABASE_URL",
        "DATA_DIR",
        "DEFAULT_CPU_HARD_LIMIT",
        "DEFAULT_MEM_HARD_LIMIT",
        "DISK_RESERVE",
        "DOCKER_HOST",
        "ENV_DIR",
        "ENV_MAX_AGE",
        "ENV_MAX_IDLE",
        "EXTRA_INDEX_URLS",
        "HEARTBEAT_INTERVAL",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "IMAGE",
        "INDEX_NETRC",
        "INDEX_URL",
        "LABELS",
        "LISTEN",
        "LOG_LEVEL",
        "LOG_LIMIT",
        "LOG_MAX_TOTAL",
        "LOG_POLL_INTERVAL",
        "LOST_AFTER",
        "MAX_PLACEMENTS",
        "MEMORY_CAPACITY",
        "NETWORK",
        "NO_PROXY",
        "OFFLINE_AFTER",
        "ORPHAN_GRACE",
        "PIPELINES_DIR",
        "PIPELINES_INTERVAL",
        "PLACEMENT_DELAY",
        "PREPARE_TIMEOUT",
        "PRIORITY_AGING",
        "PROBE_INTERVAL",
        "QUEUE_DEADLINE",
        "RECONNECT_INITIAL",
        "RECONNECT_MAXIMUM",
        "RECOVERY_WINDOW",
        "RETENTION_INTERVAL",
        "RUNTIME",
        "RUN_MAX_AGE",
        "RUN_MAX_COUNT",
        "SILENT_AFTER",
        "SLOTS",
        "SOURCES",
        "SPOOL_QUOTA",
        "SPOOL_TOTAL",
        "START_PATIENCE",
        "STOP_GRACE",
        "SUSPECT_AFTER",
        "SYNC_INTERVAL",
        "SYNC_TIMEOUT",
        "TOKEN",
        "UV_CACHE_SIZE",
        "UV_PRE_HEAT",
    ]
)
"""Settings of control plane and agent, without prefix."""

_OTHERS = frozenset({"CONFIG", "FAILPOINTS", "HOSTLAB", "HOSTLAB_IMAGE", "LOCAL_CACHE", "REGISTRY", "SERVER"})
"""What else programs, tools and tests are told by a variable."""

_IN_RUNS = frozenset({"CACHE", "HOME", "UV"})
"""What the programs of runs find; nobody sets them."""


def without_effect(variables: Iterable[str]) -> list[str]:
    """Returns a sentence on each of these names that has our prefix and is none of ours, with the nearest that is."""
    known = SETTINGS | _OTHERS
    # In whichever case: settings are found so.
    ours = {name: name.upper().removeprefix(PREFIX) for name in variables if name.upper().startswith(PREFIX)}
    return [_told(name, word, known) for name, word in sorted(ours.items()) if word not in known | _IN_RUNS]


def _told(name: str, word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    hint = f": did you mean {PREFIX}{nearest[0]}?" if nearest else ""
    return f"the environment variable {name} is no setting of Fast-Flow and has no effect{hint}"
