"""A control plane that does what a test tells it: the real protocol over a real connection, for its edge cases."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

import grpc.aio
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, gateway_pb2_grpc
from fastflow.ids import new_id
from fastflow.pipelines.bundle import Bundle, pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow.v1 import limits_pb2
from fastflow_controlplane.server import server_options
from google.protobuf.duration_pb2 import Duration

from tests.ports import HeldPort

PATIENCE = 60.0
"""Seconds a test waits for a message before it fails."""

HEARTBEAT_SECONDS = 0.2
WINDOW = 1 << 30


class Stream:
    """One accepted Connect stream."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._received: asyncio.Queue[gateway_pb2.ConnectRequest | None] = asyncio.Queue()
        self.over = asyncio.Event()

    async def read(self, requests: AsyncIterator[gateway_pb2.ConnectRequest]) -> None:
        try:
            async for request in requests:
                self._received.put_nowait(request)
        finally:
            self._received.put_nowait(None)

    async def next(self, *kinds: str) -> Any:
        """The next message of one of `kinds`; others in between are passed over. None once the agent closed."""
        async with asyncio.timeout(PATIENCE):
            while request := await self._received.get():
                kind = request.WhichOneof("message")
                if kind in kinds:
                    return getattr(request, kind)
        return None

    async def events(self, last: int) -> list[attempts_pb2.AttemptEvent]:
        """Events as they come, up to the one with number `last`."""
        found: list[attempts_pb2.AttemptEvent] = []
        while not found or found[-1].sequence < last:
            batch = await self.next("events")
            assert batch is not None, f"the stream ended after {found}"
            found += batch.events
        return found

    async def until_fact(self, fact: str) -> list[attempts_pb2.AttemptEvent]:
        """Acknowledged events up to the first with `fact` ("ended")."""
        found: list[attempts_pb2.AttemptEvent] = []
        while not found or found[-1].WhichOneof("fact") != fact:
            batch = await self.next("events")
            assert batch is not None, f"the stream ended after {found}"
            for event in batch.events:
                found.append(event)
                await self.ack(event.key, event.sequence)
                if event.WhichOneof("fact") == fact:
                    break
        return found

    async def send(self, **message: Any) -> None:
        await self._context.write(gateway_pb2.ConnectResponse(**message))

    async def send_bytes(self, data: bytes) -> None:
        """Send a message this version does not know."""
        await self._context.write(gateway_pb2.ConnectResponse.FromString(data))

    async def welcome(self, **changes: Any) -> gateway_pb2.Hello:
        """Take Hello and the inventory, and answer Welcome."""
        hello = await self.next("hello")
        fields = {
            "protocol": 1,
            "cluster_id": "cluster-1",
            "session_epoch": 1,
            "heartbeat_interval": _duration(HEARTBEAT_SECONDS),
            "orphan_grace": _duration(300.0),
            "agent_id": hello.agent_id,
        }
        await self.send(welcome=gateway_pb2.Welcome(**{**fields, **changes}))
        assert isinstance(hello, gateway_pb2.Hello)
        return hello

    async def inventory(self) -> list[gateway_pb2.InventoryAttempt]:
        """All pages of the inventory."""
        found: list[gateway_pb2.InventoryAttempt] = []
        while True:
            page = await self.next("inventory")
            found += page.attempts
            if page.last_page:
                return found

    async def full(self, *words: desired_pb2.DesiredAttempt, revision: int = 1, per_page: int = 100) -> None:
        """Send the whole desired state."""
        pages = [words[start : start + per_page] for start in range(0, len(words), per_page)] or [()]
        for index, page in enumerate(pages):
            await self.send(
                desired=desired_pb2.DesiredPage(
                    revision=revision, full=True, last_page=index == len(pages) - 1, attempts=page
                )
            )

    async def delta(self, *words: desired_pb2.DesiredAttempt, previous: int, revision: int) -> None:
        """Send a difference."""
        await self.send(
            desired=desired_pb2.DesiredPage(
                revision=revision, previous_revision=previous, last_page=True, attempts=words
            )
        )

    async def ack(self, key: attempts_pb2.AttemptKey, sequence: int, rejection: str = "UNSPECIFIED") -> None:
        """Acknowledge events, or reject them."""
        ack = attempts_pb2.AttemptEventAck(
            run_id=key.run_id, attempt=key.attempt, sequence=sequence, rejection=f"EVENT_REJECTION_{rejection}"
        )
        await self.send(events_ack=attempts_pb2.AttemptEventsAck(acks=[ack]))

    async def hear_of(self, word: desired_pb2.DesiredAttempt) -> None:
        """Acknowledge the first event of an attempt: before that its program is not released."""
        await self.events(1)
        await self.ack(word.key, 1)

    async def until_applied(self, revision: int) -> gateway_pb2.Heartbeat:
        """The first heartbeat that says that `revision` was taken over."""
        while True:
            heartbeat = await self.next("heartbeat")
            assert heartbeat is not None
            if heartbeat.applied_revision >= revision:
                assert isinstance(heartbeat, gateway_pb2.Heartbeat)
                return heartbeat

    def end(self) -> None:
        """End the stream from this side."""
        self.over.set()


class ScriptedControlPlane(gateway_pb2_grpc.AgentGatewayServiceServicer):
    """Accepts streams for a test to handle; takes in all logs and serves the bundles it was given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._bundles: dict[str, bytes] = {}
        self._packed = 0
        self._server: grpc.aio.Server | None = None
        self._port = HeldPort()
        self.logs: dict[str, bytes] = {}
        self.sealed: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self._port.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port.number}"

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        self._server = grpc.aio.server(options=server_options())
        gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Break all connections."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def stream(self) -> Stream:
        """The next stream an agent opens."""
        async with asyncio.timeout(PATIENCE):
            return await self._streams.get()

    @property
    def waiting_streams(self) -> int:
        """Streams that were opened and not looked at."""
        return self._streams.qsize()

    def pipeline(self, main: str) -> Bundle:
        """Pack a pipeline of one file."""
        self._packed += 1
        folder = self._folder / f"pipeline-{self._packed}"
        folder.mkdir()
        (folder / "main.py").write_text(main)
        archive = io.BytesIO()
        bundle = pack(read_code(DiskFolder(folder)), archive)
        self._bundles[bundle.digest] = archive.getvalue()
        return bundle

    def run(self, main: str, **changes: Any) -> desired_pb2.DesiredAttempt:
        """A word that lets a new run of `main` run."""
        bundle = self.pipeline(main)
        spec = desired_pb2.RunSpec(
            pipeline="p",
            bundle_digest=bundle.digest,
            bundle_size=bundle.size,
            limits=limits_pb2.Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=1 << 28),
            stop_grace=_duration(5.0),
            log_limit_bytes=1 << 30,
        )
        key = attempts_pb2.AttemptKey(run_id=new_id(), attempt=1, claim_token="token")
        word = desired_pb2.DesiredAttempt(key=key, action=desired_pb2.DESIRED_ACTION_RUN, spec=spec)
        word.MergeFrom(desired_pb2.DesiredAttempt(**changes))
        return word

    async def Connect(self, request_iterator: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        stream = Stream(context)
        self._streams.put_nowait(stream)
        reading = asyncio.create_task(stream.read(request_iterator))
        over = asyncio.create_task(stream.over.wait())
        try:
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            over.cancel()

    async def UploadLogs(self, request_iterator: Any, context: Any) -> AsyncIterator[gateway_pb2.UploadLogsResponse]:
        async for request in request_iterator:
            part = getattr(request, request.WhichOneof("message"))
            run = part.key.run_id
            log = self.logs.get(run, b"")
            if request.HasField("chunk"):
                self.logs[run] = log[: part.offset] + part.data if part.data else log
            elif request.HasField("gap"):
                self.logs[run] = log[: part.offset] + bytes(part.bytes)
            elif request.HasField("seal"):
                self.sealed[run] = part.end_offset
            durable = len(self.logs[run])
            yield gateway_pb2.UploadLogsResponse(
                run_id=run,
                attempt=part.key.attempt,
                durable_offset=durable,
                window_end=durable + WINDOW,
                sealed=run in self.sealed,
            )

    async def FetchBundle(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
        data = self._bundles.get(request.digest)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such bundle")
            return
        yield gateway_pb2.FetchBundleResponse(offset=0, data=data, total_size=len(data))


def stop(word: desired_pb2.DesiredAttempt, **changes: Any) -> desired_pb2.DesiredAttempt:
    """A word that asks for the end of an attempt."""
    return desired_pb2.DesiredAttempt(
        key=word.key,
        action=desired_pb2.DESIRED_ACTION_STOP,
        stop_cause=desired_pb2.STOP_CAUSE_CANCEL,
        stop_grace=_duration(5.0),
        **changes,
    )


def forget(word: desired_pb2.DesiredAttempt) -> desired_pb2.DesiredAttempt:
    """A word that lets go of an attempt."""
    return desired_pb2.DesiredAttempt(key=word.key, action=desired_pb2.DESIRED_ACTION_FORGET)


def facts(events: Iterable[attempts_pb2.AttemptEvent]) -> list[str]:
    """What the events are."""
    return [str(event.WhichOneof("fact")) for event in events]


def _duration(seconds: float) -> Duration:
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e9))
    return found
