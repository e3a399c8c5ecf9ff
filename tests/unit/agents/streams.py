"""Agent sessions on a real store and no network, and the agent's end of their streams."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastflow.agent.v1 import attempts_pb2, gateway_pb2, preheat_pb2
from fastflow.ids import new_id
from fastflow.v1 import agents_pb2
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.agents.unreported import Unreported
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.sources.model import PipelineView
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs
from fastflow_controlplane.store.queries.transitions import Epochs
from sqlalchemy import Connection

from tests.contract.rows import new_run

HELLO = gateway_pb2.Hello(
    protocol_min=1,
    protocol_max=1,
    agent_id="id of w",
    agent_name="w",
    capacity=agents_pb2.Capacity(cpu_milli_cores=4000, memory_bytes=2**33),
)


class BrokenStore(Store):
    """A real store whose disk is full as long as a test says so."""

    full = False

    async def write(self, operation: Any, committed: Any = None) -> Any:
        if self.full:
            raise Unavailable("the disk is full", reason="DISK_FULL")
        return await super().write(operation, committed)


class NoSecrets:
    """No secret is set."""

    async def for_run(self, pipeline: str) -> Sequence[Any]:
        return []

    async def values(self, versions: object, pipeline: str) -> Sequence[Any]:
        return []

    def open(self, sealed: bytes) -> bytes:
        return sealed


class Peer:
    """The agent's end of one stream."""

    def __init__(self, sessions: AgentSessions) -> None:
        self._requests: asyncio.Queue[gateway_pb2.ConnectRequest | None] = asyncio.Queue()
        self.answers: asyncio.Queue[gateway_pb2.ConnectResponse] = asyncio.Queue()
        self.preheat: list[preheat_pb2.PreheatPage] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.served = asyncio.create_task(sessions.serve(self._stream(), self._take))

    async def _stream(self) -> AsyncIterator[gateway_pb2.ConnectRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _take(self, answer: gateway_pb2.ConnectResponse) -> None:
        await self.reads.wait()
        if answer.HasField("preheat"):
            self.preheat.append(answer.preheat)
            return
        self.answers.put_nowait(answer)

    def say(self, request: gateway_pb2.ConnectRequest | None) -> None:
        self._requests.put_nowait(request)

    async def hears(self) -> gateway_pb2.ConnectResponse:
        return await asyncio.wait_for(self.answers.get(), 60)

    async def comes_with_more(self, cluster_id: str, attempts: Iterable[gateway_pb2.InventoryAttempt]) -> None:
        """Says Hello with these attempts, having seen more than the database knows, and hears Welcome."""
        hello = gateway_pb2.Hello()
        hello.CopyFrom(HELLO)
        hello.cluster_id, hello.last_revision = cluster_id, 7
        self.say(gateway_pb2.ConnectRequest(hello=hello))
        self.say(gateway_pb2.ConnectRequest(inventory=gateway_pb2.InventoryPage(attempts=attempts, last_page=True)))
        assert (await self.hears()).welcome.quarantine_reason

    async def greets(self, protocol: int = 1) -> None:
        """Says Hello with an empty inventory, and hears Welcome and the full set."""
        hello = gateway_pb2.Hello()
        hello.CopyFrom(HELLO)
        hello.protocol_max = protocol
        self.say(gateway_pb2.ConnectRequest(hello=hello))
        self.say(gateway_pb2.ConnectRequest(inventory=gateway_pb2.InventoryPage(last_page=True)))
        assert (await self.hears()).HasField("welcome")
        assert (await self.hears()).desired.last_page

    def reports(self, key: AttemptKey, states: Iterable[str], first: int = 1) -> None:
        wire_key = attempts_pb2.AttemptKey(run_id=key.run_id, attempt=key.attempt, claim_token=key.claim_token)
        events = [
            attempts_pb2.AttemptEvent(
                key=wire_key, sequence=number, state_changed=attempts_pb2.StateChanged(state=f"RUN_STATE_{state}")
            )
            for number, state in enumerate(states, start=first)
        ]
        self.say(gateway_pb2.ConnectRequest(events=attempts_pb2.AttemptEvents(events=events)))


@dataclass
class World:
    store: BrokenStore
    clock: ManualClock
    registry: AgentRegistry
    sessions: AgentSessions
    parts: SessionParts
    pipelines: dict[str, PipelineView]
    logs: FileLogStore
    unreported: Unreported

    @asynccontextmanager
    async def preheating(self, *, enabled: bool = True) -> AsyncIterator[Preheat]:
        """Sessions that tell agents what to prepare of `pipelines`."""
        preheat = Preheat(enabled, self.pipelines.get, self.registry)
        self.sessions = AgentSessions(replace(self.parts, preheat=preheat))
        watching = asyncio.create_task(preheat.watch())
        yield preheat
        watching.cancel()

    def dial(self) -> Peer:
        return Peer(self.sessions)

    async def live_attempt(self) -> AttemptKey:
        run = new_run(new_id())

        def place(connection: Connection) -> AttemptKey | None:
            runs.insert_run(connection, run, 0)
            return attempts.assign(connection, run.id, "id of w", "token", {}, Epochs(0, 1), 0)

        key: AttemptKey | None = await self.store.write(place)
        assert key is not None
        return key

    async def state(self, key: AttemptKey) -> str:
        return (await self.store.read(lambda connection: runs.read_run(connection, key.run_id))).state
