"""Why a run waits, in sentences for people: one for all agents together, then one per agent."""

from collections.abc import Sequence

from fastflow.pipelines.sizes import format_size

from fastflow_controlplane.runs.model import Placement
from fastflow_controlplane.scheduler.placement import Offer, Shape, cores, has_python, obstacle

ALL_DRAINING = "every agent is draining: let one take runs again with `ffctl agents resume NAME`, or start another"
NO_AGENT = "no agent is connected: start one with `fastflow-agent run`"


def explain(shape: Shape, offers: Sequence[Offer], trouble: str = "") -> tuple[Placement, ...]:
    """Returns what placement decides about each agent, by name, after a summary of agent "" where there is one.

    `trouble` is a fault of the control plane itself that keeps the run from being placed.
    """
    rows = []
    for offer in sorted(offers, key=lambda offer: offer.name):
        why = obstacle(shape, offer)
        rows.append(Placement(offer.name, not why, why or "fits; the run is about to be placed"))
    summary = trouble or _summary(shape, offers)
    return (Placement("", False, summary), *rows) if summary else tuple(rows)


def being_stopped(attempt: int, agent: str) -> tuple[Placement, ...]:
    """Returns why a run waits for the end of its own lost `attempt`."""
    why = f"attempt {attempt} of this run, which was lost, is being stopped there first: no run runs twice at a time"
    return (Placement(agent, False, why),)


def _summary(shape: Shape, offers: Sequence[Offer]) -> str:
    connected = [offer for offer in offers if offer.connected]
    if not connected:
        return NO_AGENT
    if all(offer.draining for offer in connected):
        return ALL_DRAINING
    most_memory = max(connected, key=lambda offer: offer.capacity.memory_bytes)
    if shape.memory_bytes > most_memory.capacity.memory_bytes:
        return (
            f"needs {format_size(shape.memory_bytes)}; "
            f"largest agent {most_memory.name} has {format_size(most_memory.capacity.memory_bytes)}"
        )
    most_cpu = max(connected, key=lambda offer: offer.capacity.cpu_milli_cores)
    if shape.cpu_milli_cores > most_cpu.capacity.cpu_milli_cores:
        return (
            f"needs {cores(shape.cpu_milli_cores)}; "
            f"largest agent {most_cpu.name} has {cores(most_cpu.capacity.cpu_milli_cores)}"
        )
    if not any(has_python(shape, offer) for offer in connected):
        versions = sorted({version for offer in connected for version in offer.python_versions})
        return f"needs Python {shape.python_version}; the agents' images have {', '.join(versions) or 'none'}"
    return ""
