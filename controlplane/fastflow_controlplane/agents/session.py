"""One accepted agent stream: Hello, Welcome, inventory, the full desired set, then differences.

Per stream one task reads, one writes, one applies events and one sends what is desired. What a stream did not finish
when it broke is in rows: the next one begins with the full set and needs no replay.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from fastflow.agent.v1 import desired_pb2, gateway_pb2
from fastflow.protocol import WAITS
from fastflow.service.failpoints import ControlPlanePoint, reach

from fastflow_controlplane.agents import greeting, wire
from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.desired_push import DesiredPush
from fastflow_controlplane.agents.duplicates import Duplicates
from fastflow_controlplane.agents.events import AttemptEvent, Effects, Ended, SessionSuperseded, apply_events
from fastflow_controlplane.agents.model import AgentFacts, ReportedAttempt
from fastflow_controlplane.agents.outgoing import Outgoing
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.preheat_pages import read_report
from fastflow_controlplane.agents.preheat_push import PreheatPush
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.wanted import Before
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.errors import AlreadyExists, FastFlowError, Unavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.cluster import Leadership
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs

log = structlog.get_logger(__name__)

HELLO_SECONDS = 10.0
"""A stream without Hello for this long is no agent's."""
FAREWELL_SECONDS = 5.0
"""How long the last message of a stream may take: a peer that reads nothing must not keep it open."""
RETRY_SECONDS = 1.0
"""What could not be written (the disk is full) is tried again after this long."""
QUEUED_ANSWERS = 64
"""Answers that wait for a slow agent; behind them its events wait, and behind those its stream."""
QUEUED_EVENTS = 10_000
"""Events that wait for the database; a stream that brings more is ended, and its agent sends them again later."""
BATCH_EVENTS = 100
"""Events in one operation of the writer, so that it does not hold up those of others."""
MAX_INVENTORY = 100_000
"""Attempts one agent may report."""
Send = Callable[[gateway_pb2.ConnectResponse], Awaitable[None]]


class _StreamOver(Exception):
    """Ends the tasks of a stream."""


@dataclass(frozen=True)
class SessionParts:
    """What sessions work with."""

    store: Store
    clock: Clock
    settings: ControlPlaneSettings
    leadership: Leadership
    registry: AgentRegistry
    duplicates: Duplicates
    assignments: Assignments
    preheat: Preheat
    scheduler: Scheduler
    changes: Changes
    version: str


class AgentSessions:
    """Serves the streams of all agents."""

    def __init__(self, parts: SessionParts) -> None:
        self._parts = parts

    async def serve(self, requests: AsyncIterable[gateway_pb2.ConnectRequest], send: Send) -> None:
        """Serves one stream until either side ends it. Raises FastFlowError where the control plane can not serve."""
        await AgentSession(self._parts, requests, send).run()


class AgentSession:
    """One stream; fulfils `live.AgentStream`."""

    def __init__(self, parts: SessionParts, requests: AsyncIterable[gateway_pb2.ConnectRequest], send: Send) -> None:
        self._parts = parts
        self._requests = requests
        self._send = send
        self._row: AgentRow | None = None
        self._outgoing: Outgoing[gateway_pb2.ConnectResponse] = Outgoing(QUEUED_ANSWERS)
        self._inventory: list[ReportedAttempt] = []
        self._inventory_complete = asyncio.Event()
        self._events: list[AttemptEvent] = []
        self._events_came = asyncio.Event()
        self._desired = DesiredPush(parts.assignments, parts.clock, self._outgoing.put)
        self._preheat = PreheatPush(parts.preheat.wanted, self._outgoing.put)
        self._report_changed = asyncio.Event()
        self._probe = asyncio.Event()
        self._cut = asyncio.Event()
        self._hello_came = False
        self._ended = False
        self._protocol = 0
        self.epoch = 0

    async def run(self) -> None:
        """Serves the stream until it ends. Raises FastFlowError."""
        failure: FastFlowError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for task in (
                    self._read,
                    self._write,
                    self._apply_events,
                    self._push_desired,
                    self._desired.retry_missing,
                    self._push_preheat,
                    self._store_reports,
                    self._pass_on_probes,
                    self._await_hello,
                    self._await_farewell,
                    self._await_cut,
                ):
                    tasks.create_task(task(), name=f"agent stream {task.__name__}")
        except* _StreamOver:
            pass
        except* FastFlowError as failures:
            failure = _first(failures)
        finally:
            self._ended = True
            if self._row is not None:
                self._leave(self._row)
        if failure is not None:
            raise failure

    def supersede(self) -> None:
        """See `AgentStream.supersede`."""
        self._outgoing.finish(wire.rejection("SUPERSEDED", "a newer stream of this agent took over"))

    def cut(self) -> None:
        """See `AgentStream.cut`."""
        self._cut.set()

    def desired_changed(self) -> None:
        """See `AgentStream.desired_changed`."""
        self._desired.changed()

    def preheat_changed(self, before: Before) -> None:
        """See `AgentStream.preheat_changed`."""
        self._preheat.changed(before)

    def probe(self) -> None:
        """See `AgentStream.probe`."""
        self._probe.set()

    async def _read(self) -> None:
        async for request in self._requests:
            kind = request.WhichOneof("message")
            if self._outgoing.finished.is_set():
                continue
            if self._row is None:
                await self._greet(request.hello if kind == "hello" else None)
                continue
            agent_id = self._row.facts.agent_id
            self._parts.registry.heard(agent_id, self)
            match kind:
                case "inventory":
                    self._note_inventory(request.inventory)
                case "heartbeat":
                    heartbeat = request.heartbeat
                    self._parts.registry.applied(agent_id, self, heartbeat.applied_revision)
                    if self._parts.registry.report(
                        agent_id,
                        self,
                        wire.read_conditions(heartbeat),
                        wire.read_runtime(heartbeat),
                        heartbeat.environments,
                    ):
                        self._report_changed.set()
                        self._preheat.facts_changed()
                case "telemetry":
                    self._parts.registry.telemetry(agent_id, self, wire.read_telemetry(request.telemetry))
                case "events" if not self._row.quarantine_reason:
                    self._take_in(wire.read_events(request.events))
                case "preheat":
                    self._parts.registry.prepared(agent_id, self, read_report(request.preheat))
                case "goodbye":
                    log.info("agent says goodbye", agent=self._row.facts.name, why=request.goodbye.message)
                case _:
                    pass  # a member of a later protocol, or a second Hello
        raise _StreamOver

    async def _write(self) -> None:
        while True:
            message, last = await self._outgoing.take()
            if message is not None:
                _reach_due(message)
                await self._send(message)
                _reach_sent(message)
            if last:
                raise _StreamOver

    async def _await_hello(self) -> None:
        await self._parts.clock.sleep(HELLO_SECONDS)
        if not self._hello_came:
            self._refuse("BAD_REQUEST", f"the stream brought no Hello within {HELLO_SECONDS:g} s")

    async def _await_farewell(self) -> None:
        await self._outgoing.finished.wait()
        await self._parts.clock.sleep(FAREWELL_SECONDS)
        raise _StreamOver

    async def _await_cut(self) -> None:
        await self._cut.wait()
        raise _StreamOver

    async def _greet(self, hello: gateway_pb2.Hello | None) -> None:
        """Registers the agent and answers Welcome, or refuses it."""
        if hello is None:
            self._refuse("BAD_REQUEST", "the first message of a stream must be Hello")
            return
        self._protocol, fault = greeting.protocol_of(hello, self._parts.version)
        if fault:
            self._parts.registry.refused(hello.agent_id, fault)
            self._refuse("PROTOCOL", fault)
        elif fault := greeting.fault(facts := wire.read_hello(hello)):
            self._refuse("BAD_REQUEST", fault)
        else:
            self._hello_came = True
            await self._admit(facts, wire.read_belonging(hello))

    async def _admit(self, facts: AgentFacts, belonging: Belonging) -> None:
        parts = self._parts
        if refusal := await parts.duplicates.refusal(facts):
            self._refuse("DUPLICATE_AGENT", refusal)
            return
        try:
            row = await self._register(facts, belonging)
        except AlreadyExists as error:
            parts.registry.note_refusal(facts, error.message)
            self._refuse("DUPLICATE_AGENT", error.message)
        else:
            # To an older agent, what is missing from the full set is an orphan.
            tells_all = self._protocol >= WAITS or await parts.assignments.can_tell_all(
                row.facts.agent_id, self._protocol
            )
            await self._outgoing.put(
                greeting.welcome(
                    row, parts.settings, parts.leadership, parts.version, self._protocol, tells_all=tells_all
                )
            )

    async def _register(self, facts: AgentFacts, belonging: Belonging) -> AgentRow:
        connected = self._parts.registry.connected()
        cluster_id, now = self._parts.leadership.cluster_id, self._parts.clock.now()

        def write(connection: Connection) -> AgentRow:
            return register(connection, facts, connected, belonging, cluster_id, now)

        return await self._parts.store.write(write, self._registered)

    def _registered(self, row: AgentRow) -> None:
        """The session is in the database, so the registry must know it, even if the stream ended meanwhile."""
        self._row, self.epoch = row, row.session_epoch
        self._parts.registry.attach(row, self)
        log.info("agent connected", agent=row.facts.name, session_epoch=self.epoch)
        if row.quarantine_reason:
            log.warning("agent is in quarantine", agent=row.facts.name, why=row.quarantine_reason)
        if self._ended:
            self._leave(row)

    def _leave(self, row: AgentRow) -> None:
        self._parts.registry.detach(row.facts.agent_id, self)
        log.info("agent stream ended", agent=row.facts.name, session_epoch=self.epoch)

    def _refuse(self, code: str, message: str) -> None:
        log.warning("agent stream refused", code=code, why=message)
        self._outgoing.finish(wire.rejection(code, message))

    def _note_inventory(self, page: gateway_pb2.InventoryPage) -> None:
        if self._inventory_complete.is_set():
            return
        self._inventory.extend(map(wire.read_reported, page.attempts))
        if len(self._inventory) > MAX_INVENTORY:
            self._refuse("BAD_REQUEST", f"the inventory has more than {MAX_INVENTORY} attempts")
        elif page.last_page:
            self._inventory_complete.set()

    def _take_in(self, batch: Sequence[AttemptEvent]) -> None:
        if len(self._events) + len(batch) > QUEUED_EVENTS:
            raise Unavailable("too many events wait for the database: send them again later")
        self._events.extend(batch)
        self._events_came.set()

    async def _apply_events(self) -> None:
        while True:
            await self._events_came.wait()
            self._events_came.clear()
            while self._events:
                batch = self._events[:BATCH_EVENTS]
                try:
                    effects = await self._apply(batch)
                except SessionSuperseded:
                    raise _StreamOver from None
                except Unavailable:
                    # Nothing is acknowledged; the agent keeps them, and so do we while the stream lives.
                    await self._parts.clock.sleep(RETRY_SECONDS)
                    continue
                _reach_committed(batch)
                del self._events[: len(batch)]
                await self._outgoing.put(wire.acknowledgements(effects.acknowledgements))

    async def _apply(self, batch: Sequence[AttemptEvent]) -> Effects:
        row, parts = self._greeted, self._parts
        epochs = Epochs(session=self.epoch, leader=parts.leadership.leader_epoch)
        now = parts.clock.now()

        def apply(connection: Connection) -> Effects:
            return apply_events(connection, row.facts, batch, epochs, parts.settings.max_placements, now)

        return await parts.store.write(apply, self._act_on)

    def _act_on(self, effects: Effects) -> None:
        parts = self._parts
        for key in effects.released:
            parts.scheduler.released(key)
        for run in effects.waiting_again:
            parts.scheduler.add(run)
        for run_id in effects.changed_runs:
            parts.changes.notify(run_id)
        if effects.desired_changed:
            parts.registry.desired_changed(self._greeted.facts.agent_id)

    async def _push_desired(self) -> None:
        await self._inventory_complete.wait()
        agent_id = self._greeted.facts.agent_id
        inventory, self._inventory = self._inventory, []
        if self._greeted.quarantine_reason:
            self._parts.registry.reported(agent_id, self, inventory)
            return
        reported = frozenset(attempt.key for attempt in inventory)
        await self._desired.run(agent_id, self.epoch, reported, self._protocol)
        raise _StreamOver

    async def _push_preheat(self) -> None:
        await self._desired.full_sent.wait()
        registry, agent_id = self._parts.registry, self._greeted.facts.agent_id
        await self._preheat.run(lambda: registry.facts(agent_id), self._protocol)

    async def _store_reports(self) -> None:
        while True:
            await self._report_changed.wait()
            self._report_changed.clear()
            try:
                await self._parts.registry.store_report(self._greeted.facts.agent_id, self)
            except Unavailable:
                self._report_changed.set()
                await self._parts.clock.sleep(RETRY_SECONDS)

    async def _pass_on_probes(self) -> None:
        while True:
            await self._probe.wait()
            self._probe.clear()
            await self._outgoing.put(wire.PROBE)

    @property
    def _greeted(self) -> AgentRow:
        if self._row is None:
            raise _StreamOver
        return self._row


def _reach_due(message: gateway_pb2.ConnectResponse) -> None:
    if any(attempt.action == desired_pb2.DESIRED_ACTION_FORGET for attempt in message.desired.attempts):
        reach(ControlPlanePoint.FORGET_DUE)


def _reach_sent(message: gateway_pb2.ConnectResponse) -> None:
    for attempt in message.desired.attempts:
        if attempt.action == desired_pb2.DESIRED_ACTION_RUN:
            reach(ControlPlanePoint.ASSIGNMENT_SENT)
        elif attempt.action == desired_pb2.DESIRED_ACTION_FORGET:
            reach(ControlPlanePoint.FORGET_SENT)


def _reach_committed(batch: Sequence[AttemptEvent]) -> None:
    reach(ControlPlanePoint.EVENTS_COMMITTED)
    if any(isinstance(event.fact, Ended) for event in batch):
        reach(ControlPlanePoint.EXIT_COMMITTED)


def _first(group: BaseExceptionGroup[FastFlowError]) -> FastFlowError:
    """One of several failures of the same stream is enough to tell."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
