"""Environments that agents prepare before a run needs them: which, on whom, and how far they are.

Kept in memory alone: an agent tells everything anew on each stream. Belongs to the event loop.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from fastflow_controlplane.agents.model import EnvironmentKey, EnvironmentResult, EnvironmentView
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.wanted import Before, WantedEnvironment, WantedSet, need_of
from fastflow_controlplane.sources.model import Changes, PipelineView

NOT_TOLD = "the agent has not told yet how far it is"


class Preheat:
    """What agents are to prepare. `enabled` False = nothing.

    `pipeline` returns that of a name as its files say, whatever agents there are; None = there is none.
    """

    def __init__(self, enabled: bool, pipeline: Callable[[str], PipelineView | None], registry: AgentRegistry) -> None:
        self._enabled = enabled
        self._pipeline = pipeline
        self._registry = registry
        self._changed: dict[str, None] = {}
        """Names, in the order in which they were told: agents prepare in it."""
        self._stale = asyncio.Event()
        self.wanted = WantedSet()
        """What is to be prepared, on whatever agent."""

    def pipelines_changed(self, changes: Changes) -> None:
        """Pipelines came, changed or went; what that means is found out by `watch`, so that nobody waits for it."""
        self._changed.update(dict.fromkeys(changes.names))
        self._stale.set()

    async def watch(self) -> None:
        """Tells the agents' sessions when something else is to be prepared, until cancelled."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            names, self._changed = self._changed, {}
            if self._enabled and (before := self._note_needs(names)):
                self._registry.preheat_changed(before)

    def _note_needs(self, names: Iterable[str]) -> Before:
        """Notes what these pipelines need now."""
        before: dict[EnvironmentKey, WantedEnvironment | None] = {}
        for name in names:
            pipeline = self._pipeline(name)
            for key, wanted in self.wanted.note(name, need_of(pipeline) if pipeline else None).items():
                before.setdefault(key, wanted)
        return before

    def environments(self, pipeline: PipelineView) -> list[EnvironmentView]:
        """Returns how far the packages of a pipeline are on the agents that are connected, by the agents' names."""
        need = need_of(pipeline)
        if need is None or not need.has_packages:
            return []
        wanted, found = need.environment, []
        for facts, result in self._registry.environment_results(wanted.key):
            if result is None and self._enabled and wanted.may_run_on(facts):
                result = EnvironmentResult("WAITING", NOT_TOLD)
            if result is not None:
                found.append(EnvironmentView(facts.name, result))
        return sorted(found, key=lambda each: each.agent)

    def counts(self, pipeline: PipelineView) -> Counter[str] | None:
        """Returns how many agents told which state of them; None = the pipeline needs none, or can not run.

        One look-up per agent: this is asked for each pipeline of a list.
        """
        need = need_of(pipeline)
        if need is None or not need.has_packages:
            return None
        results = self._registry.environment_results(need.environment.key)
        return Counter(result.state for _, result in results if result is not None)
