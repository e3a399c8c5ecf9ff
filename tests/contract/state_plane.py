"""One life of a control plane around a database, whose commits come one by one, when the model says so."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from fastflow.pipelines.metadata import Limits, Metadata
from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.duplicates import Duplicates
from fastflow_controlplane.agents.operations import AgentOperations
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.agents.unreported import Unreported
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import DataLoss, FailedPrecondition, NotFound
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.logs.uploads import Rejection
from fastflow_controlplane.runs.attempt_logs import AttemptLogRecords
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.model import PinnedCode
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs

from tests.contract.rows import GIB
from tests.contract.state_loop import settled

T = TypeVar("T")

HOP_SECONDS = 4.0
"""Steps in which time passes; an agent that is not heard of is OFFLINE after two, and lost after two more."""
TIMES: Mapping[str, Any] = {
    "heartbeat_interval": 2.0,
    "offline_after": HOP_SECONDS,
    "lost_after": HOP_SECONDS,
    "recovery_window": HOP_SECONDS,
    "placement_delay": HOP_SECONDS,
    "orphan_grace": HOP_SECONDS,
    "queue_deadline": 10 * HOP_SECONDS,
    "max_placements": 3,
}
PIPELINES: Mapping[str, Metadata] = {
    "once": Metadata(Limits(1000, GIB)),
    "again": Metadata(Limits(1000, GIB), retry_on=("lost",), retry_attempts=2),
}
EXPECTED = (FailedPrecondition, NotFound, DataLoss)
"""Refusals that a caller may meet."""


@dataclass(eq=False)
class Turn:
    """A write that waits for its turn; as in the real queue, it stays there though its caller was cancelled."""

    operation: Callable[[Connection], Any]
    committed: Callable[[Any], None] | None
    done: asyncio.Future[Any]


class SteppedStore(Store):
    """A store on which each write waits until it is let through."""

    waiting: list[Turn]
    stepped = False

    async def write(self, operation: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """See `Store.write`."""
        if not self.stepped:
            return await super().write(operation, committed)
        turn = Turn(operation, committed, asyncio.get_running_loop().create_future())
        self.waiting.append(turn)
        return cast(T, await turn.done)

    async def let_through(self, turn: Turn, *, seen: bool) -> None:
        """Writes what waited; the control plane may not live to see that it is written."""
        self.waiting.remove(turn)
        written = asyncio.ensure_future(super().write(turn.operation, turn.committed if seen else None))
        await asyncio.wait({written})
        error = written.exception()
        if not seen or turn.done.done():
            return
        if error is None:
            turn.done.set_result(written.result())
        else:
            turn.done.set_exception(error)


class WatchedScheduler(Scheduler):
    """A scheduler that shows what it keeps in memory."""

    def waiting(self) -> set[str]:
        """Runs that it takes for waiting."""
        return {*self._queue._lane_of, *self._writing, *self._lost}

    def lanes(self) -> list[list[tuple[int, str]]]:
        """Each lane's runs in order, as (time of queueing, id)."""
        return [[(run.queue_time, run.run_id) for run in lane.runs.values()] for lane in self._queue._lanes.values()]

    def reserved(self) -> dict[str, tuple[int, int, int]]:
        """Milli-cores, bytes and slots that it takes for taken on each agent."""
        return {
            agent_id: (offer.reserved.cpu_milli_cores, offer.reserved.memory_bytes, offer.reserved.slots)
            for agent_id, offer in self._offers.items()
        }


@dataclass(frozen=True)
class Value:
    """A secret."""

    name: str = "TOKEN"
    value: bytes = b"hidden"
    version: int = 1


@dataclass
class Secrets:
    """One secret that all runs get, which can not be opened for as long as the key is away."""

    readable: bool = True

    async def for_run(self, pipeline: str) -> Sequence[Value]:
        """See `assignments.Secrets`."""
        return await self.values({}, pipeline)

    async def values(self, versions: Mapping[str, int], pipeline: str) -> Sequence[Value]:
        """See `assignments.Secrets`."""
        if not self.readable:
            raise DataLoss("the key is away")
        return [Value()]

    def open(self, sealed: bytes) -> bytes:
        """See `assignments.Secrets`."""
        return sealed

    def seal(self, data: bytes) -> bytes:
        """See `service.Sealer`."""
        return data


class Code:
    """Two pipelines, whose code never changes."""

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        """See `service.CodeCatalog`."""
        return PinnedCode(name, "", "", "sha256:" + "0" * 64, 1, PIPELINES[name])

    async def open_bundle(self, digest: str) -> AbstractAsyncContextManager[object]:
        """See `service.CodeCatalog`."""
        return nullcontext()

    async def diff(self, before: str, after: str) -> str:
        """See `service.CodeCatalog`."""
        return ""


class ControlPlane:
    """One life of it, as `composition` puts it together; what it does comes to rest at each write."""

    def __init__(self, url: str, folder: Path, clock: ManualClock, secrets: Secrets) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._secrets = secrets
        self._tasks: set[asyncio.Task[None]] = set()
        self._settings = ControlPlaneSettings(data_dir=folder, **TIMES)
        self._changes = Changes()
        self._ticks: set[asyncio.Task[None]] = set()
        self.store = SteppedStore(url)
        self.store.waiting = []
        self.logs = FileLogStore(folder / "logs")
        self.scheduler = WatchedScheduler(
            clock, self._changes, self._settings.placement_delay, self._settings.priority_aging
        )
        self.registry = AgentRegistry(self.store, clock, self._settings, self.scheduler)

    async def start(self) -> None:
        """Takes over the database."""
        store, clock, settings, changes = self.store, self._clock, self._settings, self._changes
        store.open()
        await store.start()
        leadership = await store.lead(clock.now())
        epoch, grace = leadership.leader_epoch, settings.stop_grace
        scheduler, registry = self.scheduler, self.registry
        self.unreported = Unreported(store, clock, self.logs, changes, scheduler, registry, settings.orphan_grace)
        assignments = Assignments(
            store, clock, self._secrets, self.logs, changes, scheduler, registry, self.unreported, epoch, grace
        )
        self.runs = RunService(
            store, clock, settings, changes, Code(), self._secrets, self.logs, self.scheduler, self.registry
        )
        self.leader_epoch = epoch
        self.reaper = self._reaper(settings)
        self.operations = AgentOperations(store, clock, changes, self.scheduler, self.registry, epoch, grace)
        self.sessions = AgentSessions(
            SessionParts(
                store=store,
                clock=clock,
                settings=settings,
                leadership=leadership,
                registry=self.registry,
                duplicates=Duplicates(self.registry, clock, settings),
                assignments=assignments,
                preheat=Preheat(False, lambda name: None, self.registry),
                scheduler=self.scheduler,
                changes=changes,
                version="test",
            )
        )
        self._records = AttemptLogRecords(store, changes, self.registry)
        self.scheduler.restore(await store.read(runs.read_waiting), await store.read(attempts.read_held))
        await self.registry.restore()
        self.start_task(self.scheduler.run(assignments.assign))
        store.stepped = True

    def start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        """Has `work` go on by itself; it may be refused."""

        async def carry_out() -> None:
            with suppress(*EXPECTED):
                await work

        task = self._loop.create_task(carry_out())
        self._tasks.add(task)
        return task

    def raise_failures(self) -> None:
        """Raises what nobody may meet."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            task.result()

    def look_after(self) -> None:
        """Does what is done each second; a part that has not come to its end since the last time goes on with that."""
        self.registry.check()
        if all(task.done() for task in self._ticks):
            looks = self.reaper.tick(), self.operations.check(), self.unreported.check()
            self._ticks = {self.start_task(look) for look in looks}

    def wait_for_ever(self) -> None:
        """From now on no run waits in vain."""
        self.reaper = self._reaper(self._settings.model_copy(update={"queue_deadline": 0.0}))

    async def seal(self, key: AttemptKey) -> None:
        """An agent has delivered all of a log, which is empty."""
        assert await self._records.admit(key) is Rejection.NONE
        async with self.logs.open(LogKey(key.run_id, key.attempt)) as opened:
            if not opened.sealed:
                await opened.seal(0)
        await self._records.sealed(key, 0)

    async def die(self) -> None:
        """Nothing that waits is written, nobody is told anything more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await settled()
        await self.store.close()
        await self.logs.aclose()

    def _reaper(self, settings: ControlPlaneSettings) -> Reaper:
        return Reaper(
            self.store, self._clock, settings, self._changes, self.scheduler, self.registry, self.leader_epoch
        )
