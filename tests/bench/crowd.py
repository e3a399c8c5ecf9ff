"""Many simulated agents: the real protocol over real connections, each with attempts that run and never end."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc.aio
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2

from tests.integration.agent_stream.scripted_agent import GIB, Journal, ScriptedAgent

ATTEMPTS = 10
"""Attempts that one agent has room for."""

EVENTS = 2
"""Events of an attempt that runs: PREPARING, RUNNING."""

RETRY_SECONDS = 0.5
"""Upper bound of the pause before a new connection, as a real agent's first."""


class SimulatedAgent:
    """One of them. `synced_at` is when (monotonic seconds) its newest stream had told it of all its attempts."""

    def __init__(self, address: str, number: int) -> None:
        self._agent = ScriptedAgent(address, f"sim-{number:03}", cpu=ATTEMPTS * 1000, memory=ATTEMPTS * GIB)
        self._journals: dict[str, Journal] = {}
        self.synced_at = 0.0

    @property
    def attempts(self) -> int:
        """How many run here."""
        return len(self._journals)

    async def live(self) -> None:
        """Connects, and again whenever the stream ends, until cancelled."""
        async with self._agent:
            while True:
                with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):
                    await self._attend(self._agent.stub.Connect(None))
                await asyncio.sleep(random.uniform(0, RETRY_SECONDS))

    async def _attend(self, call: Any) -> None:
        hello = self._agent.hello()
        inventory = [journal.inventory("RUNNING", EVENTS) for journal in self._journals.values()]
        for request in (
            gateway_pb2.ConnectRequest(hello=hello),
            gateway_pb2.ConnectRequest(inventory=gateway_pb2.InventoryPage(attempts=inventory, last_page=True)),
        ):
            await call.write(request)
        told: set[str] = set()
        heart: asyncio.Task[None] | None = None
        try:
            async for answer in call:
                if answer.HasField("welcome"):
                    self._agent.cluster_id = answer.welcome.cluster_id
                    pause = answer.welcome.heartbeat_interval.ToTimedelta().total_seconds()
                    heart = asyncio.create_task(self._beat(call, pause))
                elif answer.HasField("desired"):
                    await self._converge(call, answer.desired, told)
        finally:
            if heart is not None:
                heart.cancel()

    async def _converge(self, call: Any, page: desired_pb2.DesiredPage, told: set[str]) -> None:
        self._agent.revision = page.revision
        for attempt in page.attempts:
            assert attempt.action == desired_pb2.DESIRED_ACTION_RUN, f"{self._agent.name} is to stop or forget one"
            told.add(attempt.key.run_id)
            if attempt.key.run_id not in self._journals:
                self._journals[attempt.key.run_id] = Journal(attempt.key)
                events = list(self._start(self._journals[attempt.key.run_id]))
                request = gateway_pb2.ConnectRequest(events=attempts_pb2.AttemptEvents(events=events))
                await call.write(request)
        if told >= self._journals.keys():
            self.synced_at = time.monotonic()

    def _start(self, journal: Journal) -> Iterator[attempts_pb2.AttemptEvent]:
        return (journal.moved(state) for state in ("PREPARING", "RUNNING"))

    async def _beat(self, call: Any, pause: float) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                beat = gateway_pb2.Heartbeat(applied_revision=self._agent.revision)
                await call.write(gateway_pb2.ConnectRequest(heartbeat=beat))
                await asyncio.sleep(pause)
