"""One stream to the control plane, from Hello to its end: one reader task, one writer task."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, preheat_pb2
from fastflow.protocol import PROTOCOLS

from fastflow_agent.clock import Clock
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.desired import Desired
from fastflow_agent.runtime.base import Facts
from fastflow_agent.stream import wire
from fastflow_agent.stream.outbox import Due, EventsDue, GoodbyeDue, HeartbeatDue, Outbox, PreheatDue, TelemetryDue
from fastflow_agent.uvcache.preheat import Key, PreheatReport, Wanted

log = structlog.get_logger(__name__)

WELCOME_SECONDS = 15.0
"""A control plane that has not answered Hello after this time is stuck; the stream is opened anew."""

GOODBYE_SECONDS = 2.0
"""How long the control plane gets to take Goodbye before the stream is cut: nothing durable is lost by cutting."""

DEFAULT_HEARTBEAT_SECONDS = 5.0
DEFAULT_ORPHAN_GRACE_SECONDS = 300.0
"""Used where Welcome names none."""

_TOKEN_REMEDY = "start this agent with the FASTFLOW_TOKEN that the control plane was started with"


class StreamBroken(Exception):
    """The stream ended; another one is opened after a back-off."""


class Refused(Exception):
    """The control plane does not want this agent now; trying again soon changes nothing."""


class NoCommonProtocol(Refused):
    """Control plane and agent are too far apart in age; the message says which is to be upgraded."""


class SessionHost(Protocol):
    """What a session needs of the agent behind it."""

    def welcomed(self, welcome: gateway_pb2.Welcome) -> bool:
        """Take Welcome; false if the agent is to keep still (quarantine): desired state is not applied.

        Raises IdentityGiven where the agent is to start anew under the id it had before.
        """

    def full(self, words: list[Desired], revision: int) -> bool:
        """Take the whole desired state; false as for `welcomed`."""

    def delta(self, words: list[Desired], revision: int) -> None:
        """Take changes of the desired state."""

    def drain(self, draining: bool) -> None:
        """Take whether anything may be begun here; comes before the words it was sent with."""

    def acknowledged(self, ack: attempts_pb2.AttemptEventAck) -> None:
        """Take one acknowledgement."""

    def preheat(self, wanted: list[Wanted]) -> None:
        """Take all environments that are to be ready before a run needs them."""

    def preheat_changed(self, wanted: list[Wanted], gone: list[Key]) -> None:
        """Take what is wanted besides, and what no longer."""

    def preheat_report(self) -> PreheatReport:
        """News of those environments."""

    def beat(self) -> None:
        """Called with every heartbeat interval while desired state is known."""

    def environments(self) -> list[str]:
        """Environments the uv cache holds."""

    def facts(self) -> Facts:
        """What runs containers here."""


class Session:
    """One stream. `run` returns after Goodbye and raises StreamBroken or Refused otherwise."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[gateway_pb2.ConnectRequest, gateway_pb2.ConnectResponse],
        host: SessionHost,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self._call = call
        self._host = host
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._welcome: gateway_pb2.Welcome | None = None
        self._welcomed = asyncio.Event()
        self._still = False
        self._revision = 0
        self._pages: list[desired_pb2.DesiredAttempt] | None = []
        self._wanted: list[Wanted] = []
        self._beats = 0
        self._facts_sent: Facts | None = None
        self.synced = False
        """Whether the whole desired state was taken over on this stream."""

    async def run(
        self, hello: gateway_pb2.Hello, inventory: list[gateway_pb2.InventoryPage], stopping: asyncio.Event
    ) -> None:
        """Live until the stream breaks or `stopping` is set."""
        self._outbox.begin()
        self._facts_sent = self._host.facts()
        reader = asyncio.create_task(self._read(), name="stream reader")
        writer = asyncio.create_task(self._write(hello, inventory), name="stream writer")
        ticker = asyncio.create_task(self._tick(), name="stream heartbeat")
        stop = asyncio.create_task(stopping.wait(), name="stream stop")
        tasks: set[asyncio.Task[Any]] = {reader, writer, ticker, stop}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stop in done and not done & {reader, writer, ticker}:
                if self._welcome is None:
                    return
                self._outbox.say_goodbye()
                await asyncio.wait({reader}, timeout=GOODBYE_SECONDS)
                return
            for task in (reader, writer, ticker):
                if task in done:
                    task.result()
            raise StreamBroken("the control plane closed the stream")
        finally:
            # Before the tasks: cancelling one of them inside gRPC would do it less cleanly.
            self._call.cancel()
            for task in tasks:
                task.cancel()
            # Reader and writer may both have failed; the first that is heard is told.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, hello: gateway_pb2.Hello, inventory: list[gateway_pb2.InventoryPage]) -> None:
        try:
            # They come once the call is accepted. Where a stream ends while it is written to, gRPC puts INTERNAL in the
            # place of the server's answer (grpc issue 36066), so a refusal has to come before the first write.
            await self._call.initial_metadata()
            await self._call.write(gateway_pb2.ConnectRequest(hello=hello))
            for page in inventory:
                await self._call.write(gateway_pb2.ConnectRequest(inventory=page))
            await self._welcomed.wait()
            while True:
                due = await self._outbox.next()
                await self._call.write(self._message(due))
                if isinstance(due, GoodbyeDue):
                    await self._call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._broken(error) from error

    def _message(self, due: Due) -> gateway_pb2.ConnectRequest:
        match due:
            case HeartbeatDue():
                return gateway_pb2.ConnectRequest(heartbeat=self._heartbeat())
            case EventsDue(events=events):
                return gateway_pb2.ConnectRequest(events=wire.events(events))
            case PreheatDue():
                return gateway_pb2.ConnectRequest(preheat=wire.preheat_report(self._host.preheat_report()))
            case TelemetryDue(samples=samples):
                return gateway_pb2.ConnectRequest(telemetry=wire.telemetry(samples))
            case GoodbyeDue():
                return gateway_pb2.ConnectRequest(goodbye=gateway_pb2.Goodbye(message="the agent is stopping"))

    def _heartbeat(self) -> gateway_pb2.Heartbeat:
        self._beats += 1
        facts = self._host.facts()
        heartbeat = gateway_pb2.Heartbeat(
            number=self._beats,
            applied_revision=self._revision,
            conditions=[wire.condition(held) for held in self._conditions.all()],
            environments=self._host.environments(),
        )
        if facts != self._facts_sent:
            heartbeat.runtime.CopyFrom(wire.runtime_facts(facts))
            self._facts_sent = facts
        return heartbeat

    async def _tick(self) -> None:
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                await self._welcomed.wait()
        except TimeoutError:
            raise StreamBroken(f"the control plane did not answer within {WELCOME_SECONDS:g} s") from None
        assert self._welcome is not None
        interval = wire.seconds(self._welcome.heartbeat_interval) or DEFAULT_HEARTBEAT_SECONDS
        while True:
            self._outbox.ask_heartbeat()
            if self.synced:
                self._host.beat()
            await self._clock.sleep(interval)

    async def _read(self) -> None:
        try:
            while True:
                response: object = await self._call.read()
                if not isinstance(response, gateway_pb2.ConnectResponse):
                    raise await self._broken(None)
                self._take(response)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._broken(error) from error

    def _take(self, response: gateway_pb2.ConnectResponse) -> None:
        match response.WhichOneof("message"):
            case "welcome":
                self._take_welcome(response.welcome)
            case "desired":
                self._take_page(response.desired)
            case "events_ack":
                for ack in response.events_ack.acks:
                    self._host.acknowledged(ack)
            case "probe":
                self._outbox.ask_heartbeat()
            case "preheat":
                self._take_preheat(response.preheat)
            case "rejection":
                name = wire.name(gateway_pb2.RejectionCode.DESCRIPTOR, response.rejection.code)
                code = name.removeprefix("REJECTION_CODE_")
                kind = NoCommonProtocol if code == "PROTOCOL" else Refused
                raise kind(f"{code}: {response.rejection.message}")

    def _take_welcome(self, welcome: gateway_pb2.Welcome) -> None:
        if not PROTOCOLS.oldest <= welcome.protocol <= PROTOCOLS.newest:
            raise NoCommonProtocol(
                f"the control plane (version {welcome.controlplane_version}) speaks protocol {welcome.protocol}, this "
                f"agent {PROTOCOLS}: install versions of Fast-Flow that fit together"
            )
        self._conditions.clear(ConditionType.PROTOCOL_MISMATCH)
        self._still = not self._host.welcomed(welcome)
        self._welcome = welcome
        self._welcomed.set()

    def _take_page(self, page: desired_pb2.DesiredPage) -> None:
        if self._welcome is None:
            raise StreamBroken("desired state came before Welcome")
        if self._still:
            return
        if page.full:
            self._take_full(page)
        elif self._pages is not None or page.previous_revision != self._revision:
            raise StreamBroken(f"desired state jumped from {self._revision} to {page.previous_revision}")
        else:
            self._take_agent(page)
            self._host.delta(_words(page.attempts), page.revision)
            self._revision = page.revision

    def _take_full(self, page: desired_pb2.DesiredPage) -> None:
        if self._pages is None:
            self._pages = []
        self._pages.extend(page.attempts)
        if not page.last_page:
            return
        words, self._pages = _words(self._pages), None
        self._revision = page.revision
        self._take_agent(page)
        self._still = not self._host.full(words, page.revision)
        self.synced = not self._still

    def _take_agent(self, page: desired_pb2.DesiredPage) -> None:
        if page.HasField("agent"):
            self._host.drain(page.agent.draining)

    def _take_preheat(self, page: preheat_pb2.PreheatPage) -> None:
        if not self.synced:
            return
        items = [wire.wanted(item) for item in page.items]
        if page.difference:
            self._host.preheat_changed(items, [wire.no_longer_wanted(key) for key in page.gone])
            return
        self._wanted.extend(items)
        if page.last_page:
            wanted, self._wanted = self._wanted, []
            self._host.preheat(wanted)

    async def _broken(self, error: BaseException | None) -> StreamBroken | Refused:
        if isinstance(error, grpc.aio.AioRpcError):
            code, details = error.code(), error.details()
        else:
            code, details = await self._call.code(), await self._call.details()
        said = f"{code.name}: {details}"
        return Refused(f"{said}; {_TOKEN_REMEDY}") if code is grpc.StatusCode.UNAUTHENTICATED else StreamBroken(said)


def _words(attempts: Any) -> list[Desired]:
    words = (wire.desired(attempt) for attempt in attempts)
    return [word for word in words if word is not None]
