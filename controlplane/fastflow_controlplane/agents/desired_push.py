"""Tells one agent over one stream what it shall do: the full set, then differences whose revisions form a chain.

Nothing is queued for it: what changed is read from rows when there is time, so a slow agent only lags.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from fastflow.agent.v1 import gateway_pb2

from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.desired_pages import agent_of, delta_pages, full_pages
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.runs.model import AttemptKey

MISSING_SECONDS = 5.0
"""An attempt that could not be delivered (its log or a secret can not be read) is tried again after this long."""


class DesiredPush:
    """What one stream tells of what its agent shall do; `put` sends a message on it. Its two tasks run until cancelled.

    `full_sent` is set once the full set is on its way.
    """

    def __init__(
        self,
        assignments: Assignments,
        clock: Clock,
        put: Callable[[gateway_pb2.ConnectResponse], Awaitable[None]],
    ) -> None:
        self.full_sent = asyncio.Event()
        self._assignments = assignments
        self._clock = clock
        self._put = put
        self._changed = asyncio.Event()
        self._missing = asyncio.Event()

    def changed(self) -> None:
        """Something the agent shall do changed; call it after the commit."""
        self._changed.set()

    async def run(self, agent_id: str, session_epoch: int, reported: Collection[AttemptKey], protocol: int) -> None:
        """Tells all, with an answer to each attempt that the agent `reported`, and goes on with what changes.

        `protocol` is what the session speaks. Returns once a newer session of the agent began. Raises FastFlowError.
        """
        deliveries = await self._assignments.all(agent_id, reported, protocol)
        sent = read = deliveries.revision
        for page in full_pages(deliveries):
            await self._put(gateway_pb2.ConnectResponse(desired=page))
        self.full_sent.set()
        while True:
            agent_sent = agent_of(deliveries)
            if deliveries.missing:
                self._missing.set()
            await self._changed.wait()
            self._changed.clear()
            deliveries = await self._assignments.since(agent_id, read, protocol, deliveries.missing)
            if deliveries.session_epoch != session_epoch:
                return
            read = deliveries.revision
            for page in delta_pages(deliveries, sent, agent_sent):
                await self._put(gateway_pb2.ConnectResponse(desired=page))
                sent = page.revision

    async def retry_missing(self) -> None:
        """Has what could not be delivered tried again, later."""
        while True:
            await self._missing.wait()
            self._missing.clear()
            await self._clock.sleep(MISSING_SECONDS)
            self._changed.set()
