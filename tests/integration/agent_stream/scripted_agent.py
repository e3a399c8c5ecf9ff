"""An agent that does what a test tells it: the real protocol over a real connection, and no container."""

import asyncio
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import google_crc32c
import grpc.aio
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, gateway_pb2_grpc, preheat_pb2
from fastflow.client import open_channel
from fastflow.ids import new_id
from fastflow.v1 import agents_pb2, limits_pb2, runs_pb2

PATIENCE = 60.0
"""Seconds a test waits for an answer before it fails."""
GIB = 1024**3


class ScriptedAgent:
    """One agent with its identity; `connect` opens a stream, as often as a test likes."""

    def __init__(self, address: str, name: str = "worker-1", *, cpu: int = 4000, memory: int = 8 * GIB) -> None:
        self.name = name
        self.agent_id = new_id()
        self.instance_id = new_id()
        self.cluster_id = ""
        self.revision = 0
        self.cpu = cpu
        self.memory = memory
        self.answers_probes = True
        self.protocol = 1
        self.channel = open_channel(address)
        self.stub = gateway_pb2_grpc.AgentGatewayServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close(None)

    def hello(self, **changes: Any) -> gateway_pb2.Hello:
        """What the agent says first."""
        fields: dict[str, Any] = {
            "protocol_min": 1,
            "protocol_max": self.protocol,
            "agent_version": "test",
            "agent_id": self.agent_id,
            "agent_name": self.name,
            "instance_id": self.instance_id,
            "cluster_id": self.cluster_id,
            "last_revision": self.revision,
            "capacity": agents_pb2.Capacity(cpu_milli_cores=self.cpu, memory_bytes=self.memory),
            "runtime": gateway_pb2.RuntimeFacts(runtime="process", cgroup="none", python_versions=["3.11.7"]),
        }
        return gateway_pb2.Hello(**{**fields, **changes})

    async def open(self, first: gateway_pb2.ConnectRequest | None = None) -> "Stream":
        """Opens a stream and sends the first message, a Hello unless told otherwise."""
        stream = Stream(self, self.stub.Connect(None))
        await stream.send(first or gateway_pb2.ConnectRequest(hello=self.hello()))
        return stream

    async def connect(self, inventory: Iterable[gateway_pb2.InventoryAttempt] = ()) -> "Stream":
        """Opens a stream up to the full desired set, which is then in `stream.full`."""
        stream = await self.open()
        welcome = (await stream.next()).welcome
        self.cluster_id = welcome.cluster_id
        stream.session_epoch = welcome.session_epoch
        stream.orphan_grace = welcome.orphan_grace.ToTimedelta().total_seconds()
        await stream.send(
            gateway_pb2.ConnectRequest(inventory=gateway_pb2.InventoryPage(attempts=inventory, last_page=True))
        )
        while True:
            page = await stream.desired()
            assert page.full
            stream.full.extend(page.attempts)
            if page.last_page:
                return stream

    async def upload(self, key: attempts_pb2.AttemptKey, data: bytes, *, seal: bool) -> gateway_pb2.UploadLogsResponse:
        """Delivers output from offset 0; returns the last answer."""
        call = self.stub.UploadLogs(None)
        chunk = gateway_pb2.LogChunk(key=key, offset=0, data=data, crc32c=google_crc32c.value(data))
        await call.write(gateway_pb2.UploadLogsRequest(chunk=chunk))
        if seal:
            await call.write(gateway_pb2.UploadLogsRequest(seal=gateway_pb2.LogSeal(key=key, end_offset=len(data))))
        await call.done_writing()
        answers = [answer async for answer in call]
        return answers[-1]


class Stream:
    """One open stream."""

    def __init__(self, agent: ScriptedAgent, call: Any) -> None:
        self._agent = agent
        self._call = call
        self._came: asyncio.Queue[gateway_pb2.ConnectResponse | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())
        self.full: list[desired_pb2.DesiredAttempt] = []
        self.preheat: preheat_pb2.PreheatPage | None = None
        self.session_epoch = 0
        self.orphan_grace = 0.0
        self.revision = 0

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                if not answer.HasField("probe"):
                    self._came.put_nowait(answer)
                elif self._agent.answers_probes:
                    await self.heartbeat()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self._came.put_nowait(None)

    async def send(self, request: gateway_pb2.ConnectRequest) -> None:
        """Sends one message."""
        await self._call.write(request)

    async def next(self) -> gateway_pb2.ConnectResponse:
        """Returns the next message but those on preparing ahead; fails the test when the stream ended."""
        while True:
            answer = await asyncio.wait_for(self._came.get(), PATIENCE)
            assert answer is not None, f"the stream ended: {await self._call.debug_error_string()}"
            if not answer.HasField("preheat"):
                return answer
            self.preheat = answer.preheat

    async def desired(self) -> desired_pb2.DesiredPage:
        """Returns the next page of desired state, whose revisions must chain."""
        page = (await self.next()).desired
        assert page.full or page.previous_revision == self.revision
        self.revision = self._agent.revision = page.revision
        return page

    async def assignment(self) -> desired_pb2.DesiredAttempt:
        """Returns the one attempt of the next page, which must be to RUN."""
        (attempt,) = (await self.desired()).attempts
        assert attempt.action == desired_pb2.DESIRED_ACTION_RUN
        return attempt

    async def ended(self) -> None:
        """Returns when the other side has ended the stream."""
        while await asyncio.wait_for(self._came.get(), PATIENCE) is not None:
            pass

    async def rejected(self) -> gateway_pb2.Rejection:
        """Returns why the stream was rejected, once it has ended."""
        rejection = (await self.next()).rejection
        await self.ended()
        return rejection

    async def report(self, events: Iterable[attempts_pb2.AttemptEvent]) -> list[attempts_pb2.AttemptEventAck]:
        """Sends a batch of events; returns their acknowledgements."""
        await self.send(gateway_pb2.ConnectRequest(events=attempts_pb2.AttemptEvents(events=events)))
        answer = await self.next()
        assert answer.WhichOneof("message") == "events_ack"
        return list(answer.events_ack.acks)

    async def heartbeat(self, *conditions: agents_pb2.Condition) -> None:
        """Says that the agent lives."""
        await self.send(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(conditions=conditions)))

    async def telemetry(self, key: attempts_pb2.AttemptKey, **usage: int) -> None:
        """Says what an attempt uses."""
        measured = gateway_pb2.AttemptTelemetry(key=key, usage=limits_pb2.Usage(**usage))
        await self.send(gateway_pb2.ConnectRequest(telemetry=gateway_pb2.Telemetry(attempts=[measured])))

    async def close(self) -> None:
        """Breaks the stream."""
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


class Journal:
    """The events of one attempt, numbered as an agent numbers them."""

    def __init__(self, key: attempts_pb2.AttemptKey, first: int = 1) -> None:
        self.key = key
        self._numbers = itertools.count(first)

    def _event(self, **fact: Any) -> attempts_pb2.AttemptEvent:
        event = attempts_pb2.AttemptEvent(key=self.key, sequence=next(self._numbers), **fact)
        event.time.GetCurrentTime()
        return event

    def moved(self, state: str, message: str = "") -> attempts_pb2.AttemptEvent:
        """The attempt is in `state` now."""
        changed = attempts_pb2.StateChanged(state=f"RUN_STATE_{state}", message=message, slot="0123456789abcdef")
        return self._event(state_changed=changed)

    def ended(self, state: str = "SUCCEEDED", exit_code: int = 0) -> attempts_pb2.AttemptEvent:
        """The attempt ended."""
        return self._event(ended=attempts_pb2.Ended(state=f"RUN_STATE_{state}", exit_code=exit_code))

    def gone(self) -> attempts_pb2.AttemptEvent:
        """The container is gone."""
        return self._event(container_gone=attempts_pb2.ContainerGone())

    def inventory(self, state: str, last_event: int) -> gateway_pb2.InventoryAttempt:
        """The attempt as the agent knows it."""
        return gateway_pb2.InventoryAttempt(key=self.key, state=f"RUN_STATE_{state}", last_event=last_event)


def state_of(run: runs_pb2.Run | runs_pb2.Attempt) -> str:
    """Returns the state's name without prefix."""
    return runs_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
