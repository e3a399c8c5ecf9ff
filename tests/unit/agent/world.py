"""A worker host with everything that outlives an agent: engine, disk, and a control plane's memory."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from fastflow.ids import new_id
from fastflow.service.failpoints import AgentPoint
from fastflow_agent.attempts.attempt import Attempt
from fastflow_agent.attempts.dossier import Services
from fastflow_agent.bundles import Bundles
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.conditions import Conditions
from fastflow_agent.desired import Action, Desired, RunSpec, Secret
from fastflow_agent.facts import ContainerGone, Ended, Event, StateChanged
from fastflow_agent.health import Health
from fastflow_agent.logs.confirmed import ConfirmedLogs
from fastflow_agent.logs.shipper import Shipper
from fastflow_agent.model import AttemptKey, Limits, SlotId, State, StopCause
from fastflow_agent.reconcile import number
from fastflow_agent.records import Intent
from fastflow_agent.runtime.base import SlotPaths
from fastflow_agent.shutdown import Shutdown
from fastflow_agent.uvcache import UvCache
from fastflow_agent.worker import Worker

from tests.unit.agent.doubles import FakeBundles, FakeClock, FakeRuntime, FakeShipper, FakeUvCache

SPEC = RunSpec(
    pipeline="p",
    bundle_digest="sha256:00",
    bundle_size=1,
    limits=Limits(1000, 1 << 28),
    timeout=0.0,
    stop_grace=10.0,
    python_version="",
    log_limit=0,
    variables={"GREETING": "hello"},
    secrets=(Secret("TOKEN", b"s3cret-value", 4),),
)
NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
INTENT = Intent(
    run_id="0190aaaa-0000-7000-8000-000000000001",
    attempt=2,
    claim_token="token",
    slot=SlotId("00112233aabbccdd"),
    pipeline="p",
    bundle_digest="sha256:00",
    limits=Limits(500, 1 << 28, 400, 1 << 27),
    timeout=30.0,
    stop_grace=10.0,
    python_version="3.11",
    log_limit=1 << 30,
    boot_id="boot-1",
    time=NOW,
)


class Died(BaseException):
    """The agent was killed here."""


@dataclass
class Known:
    """What the control plane knows of one attempt."""

    word: Desired
    events: list[Event] = field(default_factory=list)

    @property
    def facts(self) -> list[object]:
        return [event.fact for event in self.events]

    @property
    def ends(self) -> list[Ended | StateChanged]:
        return [
            fact
            for fact in self.facts
            if isinstance(fact, Ended) or (isinstance(fact, StateChanged) and fact.state is State.QUEUED)
        ]

    @property
    def end(self) -> Ended | StateChanged:
        (end,) = self.ends
        return end

    @property
    def states(self) -> list[State]:
        return [fact.state for fact in self.facts if isinstance(fact, StateChanged | Ended)]

    @property
    def gone(self) -> bool:
        return any(isinstance(fact, ContainerGone) for fact in self.facts)


class World:
    """Use as an async context manager; `start` an agent, `kill` it, `start` the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = ThreadPoolExecutor(1)
        self.clock = FakeClock(self.disk)
        self.runtime = FakeRuntime()
        self.bundles = FakeBundles(folder)
        self.uvcache = FakeUvCache(folder)
        self.shipper = FakeShipper()
        self.conditions = Conditions(self.clock)
        self.known: dict[AttemptKey, Known] = {}
        self.boot_id = "boot-1"
        self.grace = 300.0
        self.last_shutdown: Shutdown | None = None
        self.confirmed_logs = ConfirmedLogs()
        self.shutting_down = False
        self.connected = True
        self.strays_gone = asyncio.Event()
        """Set as long as there is no container without a journal."""
        self.strays_gone.set()
        self.gone: set[AttemptKey] = set()
        """Attempts that were told to have changed once they were not here any more."""
        self.worker: Worker
        self.services: Services
        self.died_at: AgentPoint | None = None
        self._life: asyncio.Task[None] | None = None
        self.health: Health

    async def __aenter__(self) -> "World":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self.disk.shutdown()

    # The agent.

    async def start(self, die_at: AgentPoint | None = None, *, connect: bool = True) -> None:
        """Start an agent on this host; with `die_at` it dies the first time it comes there."""
        self.died_at = None
        self.uvcache.pins.clear()
        self.bundles.pins.clear()

        def reach(place: AgentPoint) -> None:
            if place is die_at and self.died_at is None:
                self.died_at = place
                raise Died

        ready = asyncio.Event()
        self._life = asyncio.create_task(self._live(reach, ready))
        await ready.wait()
        if connect:
            self.connect()

    async def kill(self) -> None:
        """Kill the agent, or bury it if it died."""
        if self._life is None:
            return
        self._life.cancel()
        await asyncio.wait([self._life])
        if not self._life.cancelled() and (error := self._life.exception()):
            assert isinstance(error, BaseExceptionGroup), error
            rest = error.split(lambda found: isinstance(found, Died))[1]
            assert rest is None, rest
        self._life = None
        for spool in self.shipper.spools.values():
            spool.close()
        self.shipper.spools.clear()

    async def restart(self) -> None:
        """Kill the agent and start another."""
        await self.kill()
        await self.start()

    async def reboot(self, code: int | None = None) -> None:
        """Restart the host, at which its containers end with `code`, None = unseen; no agent is started yet."""
        await self.kill()
        self.runtime.reboot(code)
        self.boot_id = f"after {self.boot_id}"

    @property
    def alive(self) -> bool:
        return self._life is not None and not self._life.done()

    async def _live(self, reach: Callable[[AgentPoint], None], ready: asyncio.Event) -> None:
        sampler = Sampler(self.clock, on_usage=lambda *_: None, on_crossing=lambda *_: None, on_oom=lambda *_: None)
        self.health = Health(
            self.runtime,
            self.conditions,
            self.clock,
            self.disk,
            data_dir=self.folder,
            disk_reserve=0,
            interval=3.0,
            runtime_name="docker",
        )
        self.services = services = Services(
            runtime=self.runtime,
            bundles=cast(Bundles, self.bundles),
            uvcache=cast(UvCache, self.uvcache),
            sampler=sampler,
            shipper=cast(Shipper, self.shipper),
            health=self.health,
            clock=self.clock,
            disk=self.disk,
            cleanup=self.disk,
            boot_id=self.boot_id,
            paths=self.paths,
            changed=self._changed,
            start_patience=20.0,
            spool_quota=1 << 30,
            last_shutdown=self.last_shutdown,
            confirmed_logs=self.confirmed_logs,
            shutting_down=self._shutting_down,
            until_strays_gone=self.strays_gone.wait,
            reach=reach,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                self.worker = Worker(services, self.conditions, tasks, self.folder / "slots", lambda *_: None)
                await self.health.look()
                await self.worker.adopt()
                ready.set()
                await asyncio.Event().wait()
        finally:
            ready.set()
            sampler.close()

    async def _shutting_down(self) -> bool:
        return self.shutting_down

    def _changed(self, key: AttemptKey) -> None:
        if key not in self.worker.keys:
            self.gone.add(key)

    def paths(self, slot: SlotId) -> SlotPaths:
        return SlotPaths.of(self.folder, self.folder / "env", slot)

    def attempt(self, key: AttemptKey) -> Attempt:
        return self.worker._attempts[number(key)]

    def slot(self, key: AttemptKey) -> SlotId:
        return self.attempt(key).slot

    # The control plane.

    def assign(self, **changes: object) -> AttemptKey:
        """Assign a new run to this agent."""
        key = AttemptKey(new_id(), 1, "token")
        spec = replace(SPEC, **changes)
        self.known[key] = Known(Desired(key, Action.RUN, spec=spec))
        self.say(key)
        return key

    def ended(self, key: AttemptKey) -> Ended:
        """The one end that was told of an attempt, which had begun."""
        end = self.known[key].end
        assert isinstance(end, Ended)
        return end

    def stop(self, key: AttemptKey, cause: StopCause = StopCause.CANCEL, grace: float = 10.0) -> None:
        """Ask for the end of an attempt."""
        word = self.known[key].word
        secrets = word.spec.secrets if word.spec else ()
        self.known[key].word = Desired(key, Action.STOP, stop_cause=cause, stop_grace=grace, secrets=secrets)
        self.say(key)

    def word(self, key: AttemptKey) -> Desired:
        known = self.known[key]
        offset = len(self.shipper.logs.get(key, b""))
        return replace(known.word, known_seq=len(known.events), durable_offset=offset)

    def say(self, key: AttemptKey) -> None:
        if self.alive and self.connected:
            self.worker.take_delta([self.word(key)])

    def connect(self) -> None:
        """A new stream: the whole desired state."""
        if self.alive:
            self.worker.take_full([self.word(key) for key in self.known], self.grace)

    def pump(self) -> None:
        """Take all events there are, and let go of what is settled."""
        if not self.alive or not self.connected:
            return
        for report in self.worker.reports:
            if report.key not in self.known:
                self.worker.acknowledge(number(report.key), report.last_event, stored=False)
        for key, known in list(self.known.items()):
            found = self.worker.unacknowledged(number(key))
            for event in found[1] if found and found[0] == key else []:
                assert event.sequence <= len(known.events) + 1, "a gap"
                if event.sequence == len(known.events) + 1:
                    known.events.append(event)
                self.worker.acknowledge(number(key), event.sequence, stored=True)
            settled = known.ends and known.gone and key in self.shipper.sealed
            if settled and known.word.action is not Action.FORGET:
                known.word = Desired(key, Action.FORGET)
                self.say(key)

    async def until(self, condition: Callable[[], object], *, passing: float = 0.0, seconds: float = 60.0) -> None:
        """Wait until `condition` is true, while the control plane works; each look lets `passing` seconds pass."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.pump()
                if passing:
                    await self.clock.advance(passing)
                await self.clock.settle(2)

    async def running(self, key: AttemptKey) -> None:
        """Wait until the attempt's program runs."""
        await self.until(lambda: State.RUNNING in self.known[key].states)

    async def forgotten_one(self, key: AttemptKey, *, passing: float = 0.0) -> None:
        """Wait until the agent has let go of the attempt."""
        await self.until(
            lambda: self.known[key].word.action is Action.FORGET and number(key) not in self.worker._attempts,
            passing=passing,
        )

    async def forgotten(self, key: AttemptKey, *, passing: float = 0.0) -> None:
        """Wait until nothing is left on this host, of this attempt and of any."""
        await self.forgotten_one(key, passing=passing)
        assert not list(self.folder.glob("slots/*"))
        assert not self.runtime.containers
        assert not self.uvcache.pins
        assert not self.bundles.pins

    def write(self, key: AttemptKey, data: bytes) -> None:
        """The program writes output."""
        self.write_to(self.slot(key), data)

    def write_to(self, slot: SlotId, data: bytes) -> None:
        """The program in a slot writes output, whether an agent is there or not."""
        with self.paths(slot).log.open("ab") as log:
            log.write(data)
