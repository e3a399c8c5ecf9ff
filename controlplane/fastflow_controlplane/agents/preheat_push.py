"""Tells one agent over one stream which environments it shall prepare: all of them, then differences.

Nothing is queued for it: a slow agent is told at once what changed in the meantime.
"""

import asyncio
from collections.abc import Awaitable, Callable

from fastflow.agent.v1 import gateway_pb2
from fastflow.protocol import PREHEAT_DIFFERENCES

from fastflow_controlplane.agents.model import AgentFacts, EnvironmentKey
from fastflow_controlplane.agents.preheat_pages import difference_pages, full_pages
from fastflow_controlplane.agents.wanted import Before, WantedEnvironment, WantedSet


class PreheatPush:
    """What one stream tells of what its agent shall prepare; `put` sends a message on it."""

    def __init__(self, wanted: WantedSet, put: Callable[[gateway_pb2.ConnectResponse], Awaitable[None]]) -> None:
        self._wanted = wanted
        self._put = put
        self._before: dict[EnvironmentKey, WantedEnvironment | None] = {}
        self._woken = asyncio.Event()

    def changed(self, before: Before) -> None:
        """Something else is wanted than `before`."""
        for key, wanted in before.items():
            self._before.setdefault(key, wanted)
        self._woken.set()

    def facts_changed(self) -> None:
        """Perhaps the agent may run something else, having other Pythons."""
        self._woken.set()

    async def run(self, facts: Callable[[], AgentFacts], protocol: int) -> None:
        """Tells all and goes on with what changes, until cancelled. `protocol` is what the session speaks."""
        told_for: AgentFacts | None = None
        while True:
            self._woken.clear()
            before, self._before = self._before, {}
            now = facts()
            if told_for is None or _abilities(now) != _abilities(told_for):
                pages = full_pages(self._wanted.all_on(now))
            else:
                difference = self._wanted.difference_on(now, before)
                if protocol >= PREHEAT_DIFFERENCES or not (difference.items or difference.gone):
                    pages = difference_pages(difference)
                else:
                    pages = full_pages(self._wanted.all_on(now))
            told_for = now
            for page in pages:
                await self._put(gateway_pb2.ConnectResponse(preheat=page))
            await self._woken.wait()


def _abilities(facts: AgentFacts) -> tuple[object, ...]:
    """What decides which environments an agent can need."""
    return facts.capacity, facts.runtime.python_versions
