"""Which agent a run fits on: plain decisions over plain values, in whole milli-cores and bytes."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fastflow.pipelines.metadata import matches_python
from fastflow.pipelines.sizes import format_size

from fastflow_controlplane.agents.model import Capacity, EnvironmentKey


@dataclass(frozen=True, slots=True)
class Shape:
    """What a run asks of an agent. Runs of one shape fit on the same agents.

    `excluded` are agents that just could not start a run; it is part of the shape, as it decides alike.
    """

    cpu_milli_cores: int
    memory_bytes: int
    python_version: str = ""
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Offer:
    """What one agent has. `blocked` says why it takes nothing at present; "" = it does.

    `offline` = out of reach for so long that nothing is known of what runs on it, or in quarantine, where it stops
    nothing: nobody waits for the end of what was lost on it.
    `environments` are those that are ready on it, so that a run starts with its packages already there.
    """

    agent_id: str
    name: str
    capacity: Capacity
    python_versions: tuple[str, ...] = ()
    blocked: str = ""
    connected: bool = True
    offline: bool = False
    draining: bool = False
    environments: frozenset[EnvironmentKey] = frozenset()
    reserved: Capacity = field(default_factory=Capacity)

    @property
    def free_cpu_milli_cores(self) -> int:
        """Capacity that no attempt holds."""
        return self.capacity.cpu_milli_cores - self.reserved.cpu_milli_cores

    @property
    def free_memory_bytes(self) -> int:
        """Capacity that no attempt holds."""
        return self.capacity.memory_bytes - self.reserved.memory_bytes


def obstacle(shape: Shape, offer: Offer) -> str:
    """Returns in one sentence why a run of this shape can not go to this agent now; "" = it fits."""
    return (
        offer.blocked
        or _never(shape, offer)
        or _not_now(shape, offer)
        or ("could not start this run a moment ago; it is tried again soon" if offer.agent_id in shape.excluded else "")
    )


def _never(shape: Shape, offer: Offer) -> str:
    """Why it would not fit even if the agent held nothing."""
    capacity = offer.capacity
    if shape.memory_bytes > capacity.memory_bytes:
        return f"needs {format_size(shape.memory_bytes)}; {offer.name} has {format_size(capacity.memory_bytes)} in all"
    if shape.cpu_milli_cores > capacity.cpu_milli_cores:
        return f"needs {cores(shape.cpu_milli_cores)}; {offer.name} has {cores(capacity.cpu_milli_cores)} in all"
    if not has_python(shape, offer):
        has = ", ".join(offer.python_versions) or "none"
        return f"needs Python {shape.python_version}; the image of {offer.name} has {has}"
    return ""


def _not_now(shape: Shape, offer: Offer) -> str:
    """Why it does not fit beside what the agent holds."""
    slots = offer.capacity.slots
    if slots and offer.reserved.slots >= slots:
        return f"all {slots} slots of {offer.name} are taken"
    if shape.memory_bytes > offer.free_memory_bytes:
        return (
            f"needs {format_size(shape.memory_bytes)}; "
            f"{offer.name} has {format_size(max(0, offer.free_memory_bytes))} free at present"
        )
    if shape.cpu_milli_cores > offer.free_cpu_milli_cores:
        return (
            f"needs {cores(shape.cpu_milli_cores)}; "
            f"{offer.name} has {cores(max(0, offer.free_cpu_milli_cores))} free at present"
        )
    return ""


def has_python(shape: Shape, offer: Offer) -> bool:
    """Returns whether the agent's image has the interpreter the run asks for; any will do where it asks for none."""
    return not shape.python_version or any(
        matches_python(shape.python_version, version) for version in offer.python_versions
    )


def choose(shape: Shape, offers: Iterable[Offer], environment: EnvironmentKey | None = None) -> Offer | None:
    """Returns the agent on which the run leaves the least free (best fit), so that large gaps stay for large runs.

    Of agents that are alike in that, one on which the run's `environment` is ready.
    """
    fitting = [offer for offer in offers if not obstacle(shape, offer)]
    return min(
        fitting,
        key=lambda offer: (_left(shape, offer), environment not in offer.environments, offer.name),
        default=None,
    )


def _left(shape: Shape, offer: Offer) -> int:
    """What stays free, CPU and memory alike, in thousandths of the agent."""
    cpu = (offer.free_cpu_milli_cores - shape.cpu_milli_cores) * 1000 // max(1, offer.capacity.cpu_milli_cores)
    memory = (offer.free_memory_bytes - shape.memory_bytes) * 1000 // max(1, offer.capacity.memory_bytes)
    return cpu + memory


def cores(milli_cores: int) -> str:
    """Returns CPU as people write it: "0.5 cores"."""
    return "1 core" if milli_cores == 1000 else f"{milli_cores / 1000:g} cores"
