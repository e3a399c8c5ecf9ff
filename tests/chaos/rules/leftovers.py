"""What must be left of nothing: capacity, and anything on the hosts."""

from collections import Counter
from collections.abc import Iterator

from tests.chaos.evidence import Evidence
from tests.chaos.script import WHOLE


def reserved_capacity_is_zero(evidence: Evidence) -> Iterator[str]:
    """Every attempt is settled, its container known to be gone."""
    for attempt in evidence.attempts:
        if attempt["desired"] != "FORGET" or not attempt["released"]:
            agent = evidence.agents.get(attempt["agent_id"])
            held = f"{attempt['cpu_milli_cores']} milli-cores and {attempt['memory_bytes']} bytes on {agent}"
            yield f"attempt {attempt['run_id']} {attempt['number']} still holds {held}: {attempt['desired']}"


def every_agent_can_be_filled(evidence: Evidence) -> Iterator[str]:
    """At the end, each takes a run that needs all of it: so the scheduler's own account is empty, too."""
    whole = {run["id"] for run in evidence.runs if run["pipeline"] == WHOLE}
    filled = Counter(evidence.agents[row["agent_id"]] for row in evidence.attempts if row["run_id"] in whole)
    for name in evidence.agents.values():
        if filled[name] != 1:
            yield f"{name} got {filled[name]} of the runs that fill each agent: what holds its capacity?"


def nothing_is_left_on_the_hosts(evidence: Evidence) -> Iterator[str]:
    """No container, volume, control group, mount, process, slot folder or environment."""
    host, ours = evidence.host, evidence.slots.keys() | {start.slot for start in evidence.starts}
    yield from (f"container {container}" for container in host.containers)
    yield from (f"volume {name} of slot {slot}" for slot, name in host.volumes.items() if slot in ours)
    yield from (f"control group {path}" for slot, path in host.cgroups.items() if slot in ours)
    yield from (f"mount {mount}" for mount in host.mounts)
    yield from (f"process {process}" for process in host.processes)
    yield from (f"file {path}" for path in host.files)
