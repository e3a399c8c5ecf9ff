"""Environments that agents prepare before a run needs them: which, on whom, and how far they are.

Kept in memory alone: an agent tells everything anew on each stream. Belongs to the event loop.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.metadata import matches_python

from fastflow_controlplane.agents.model import AgentFacts, EnvironmentKey, EnvironmentResult, EnvironmentView
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.sources.model import PipelineView

NOT_TOLD = "the agent has not told yet how far it is"


@dataclass(frozen=True, slots=True)
class WantedEnvironment:
    """What the code of a bundle (`bundle_size` bytes) needs, and the least that one of its pipelines reserves.

    Agents with less capacity, or another Python, never run it.
    """

    bundle_digest: str
    bundle_size: int
    python_version: str
    cpu_milli_cores: int
    memory_bytes: int

    @property
    def key(self) -> EnvironmentKey:
        """What it is told apart by."""
        return self.bundle_digest, self.python_version

    def may_run_on(self, facts: AgentFacts) -> bool:
        """Returns whether a run of it could ever be placed on this agent."""
        return (
            self.cpu_milli_cores <= facts.capacity.cpu_milli_cores
            and self.memory_bytes <= facts.capacity.memory_bytes
            and (
                not self.python_version
                or any(matches_python(self.python_version, version) for version in facts.runtime.python_versions)
            )
        )


def wanted_environments(pipelines: Iterable[PipelineView]) -> tuple[WantedEnvironment, ...]:
    """Returns what is to be prepared for these pipelines, each environment once.

    Pipelines that need no packages share one environment per Python, which comes with any other; where there is no
    other, that with the smallest code stands for all.
    """
    found: dict[EnvironmentKey, WantedEnvironment] = {}
    plain: dict[str, WantedEnvironment] = {}
    for pipeline in pipelines:
        wanted = _wanted(pipeline)
        if wanted is None:
            continue
        if pipeline.has_requirements or pipeline.has_header:
            same = found.get(wanted.key)
            found[wanted.key] = _less(wanted, same) if same else wanted
        else:
            smallest = plain.get(wanted.python_version, wanted)
            plain[wanted.python_version] = min(smallest, wanted, key=lambda each: each.bundle_size)
    served = {wanted.python_version for wanted in found.values()}
    return (*(each for version, each in plain.items() if version not in served), *found.values())


def _wanted(pipeline: PipelineView) -> WantedEnvironment | None:
    metadata = pipeline.metadata
    if metadata is None or pipeline.state is not PipelineState.READY or not pipeline.bundle_digest:
        return None
    return WantedEnvironment(
        bundle_digest=pipeline.bundle_digest,
        bundle_size=pipeline.bundle_size,
        python_version=metadata.python_version,
        cpu_milli_cores=metadata.limits.cpu_hard_milli_cores,
        memory_bytes=metadata.limits.memory_hard_bytes,
    )


def _less(one: WantedEnvironment, other: WantedEnvironment) -> WantedEnvironment:
    return WantedEnvironment(
        one.bundle_digest,
        one.bundle_size,
        one.python_version,
        min(one.cpu_milli_cores, other.cpu_milli_cores),
        min(one.memory_bytes, other.memory_bytes),
    )


class Preheat:
    """What agents are to prepare. `enabled` False = nothing; `pipelines` returns all there are at present."""

    def __init__(self, enabled: bool, pipelines: Callable[[], Sequence[PipelineView]], registry: AgentRegistry) -> None:
        self._enabled = enabled
        self._pipelines = pipelines
        self._registry = registry
        self._stale = asyncio.Event()
        self.wanted: tuple[WantedEnvironment, ...] = ()
        """All that is to be prepared, on whatever agent."""

    def pipelines_changed(self) -> None:
        """Pipelines came, changed or went; what that means is found out by `watch`, so that nobody waits for it."""
        self._stale.set()

    async def watch(self) -> None:
        """Tells the agents' sessions when something else is to be prepared, until cancelled."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            wanted = wanted_environments(self._pipelines()) if self._enabled else ()
            if wanted != self.wanted:
                self.wanted = wanted
                self._registry.preheat_changed()

    def wanted_on(self, facts: AgentFacts) -> tuple[WantedEnvironment, ...]:
        """Returns what this agent is to prepare."""
        return tuple(wanted for wanted in self.wanted if wanted.may_run_on(facts))

    def environments(self, pipeline: PipelineView) -> list[EnvironmentView]:
        """Returns how far the packages of a pipeline are on the agents that are connected, by the agents' names."""
        wanted = _wanted(pipeline)
        if wanted is None or not (pipeline.has_requirements or pipeline.has_header):
            return []
        found = []
        for facts, result in self._registry.environment_results(wanted.key):
            if result is None and self._enabled and wanted.may_run_on(facts):
                result = EnvironmentResult("WAITING", NOT_TOLD)
            if result is not None:
                found.append(EnvironmentView(facts.name, result))
        return sorted(found, key=lambda each: each.agent)
