"""What the phases of one attempt share: its journal, its paths, the control plane's wishes, and the host's services."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from fastflow.backoff import Backoff
from fastflow.service import failpoints
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.backlog import Backlog
from fastflow_agent.attempts.wishes import Wishes
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.clock import Clock
from fastflow_agent.facts import Fact
from fastflow_agent.health import Health
from fastflow_agent.journal import Journal
from fastflow_agent.logs.confirmed import ConfirmedLogs
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey, SlotId
from fastflow_agent.records import History, Step
from fastflow_agent.runtime.base import Runtime, RuntimeFault, RuntimeUnavailable, SlotPaths
from fastflow_agent.shutdown import Shutdown, host_is_shutting_down
from fastflow_agent.uvcache import Generation, UvCache

log = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_INITIAL_SECONDS = 0.5
RETRY_MAXIMUM_SECONDS = 5.0
"""Back-off while the engine or the disk refuses: an attempt goes on within seconds of their return."""


class CodeStore(Protocol):
    """Where the code of pipelines comes from."""

    async def ensure(self, digest: str, size: int) -> Path:
        """See `Bundles.ensure`."""

    def pin(self, digest: str, slot: SlotId) -> None:
        """See `Bundles.pin`."""

    def unpin(self, slot: SlotId) -> None:
        """See `Bundles.unpin`."""


class LogDelivery(Protocol):
    """Where the output of attempts goes."""

    def add(
        self,
        key: AttemptKey,
        spool: Spool,
        durable_offset: int,
        on_loss: Callable[[LogLoss], None],
        on_backlog: Callable[[int, int], None],
    ) -> None:
        """See `Shipper.add`."""

    def durable(self, key: AttemptKey) -> int:
        """See `Shipper.durable`."""

    async def seal(self, key: AttemptKey, until_losses_told: Callable[[], Awaitable[None]]) -> int:
        """See `Shipper.seal`."""

    async def remove(self, key: AttemptKey) -> None:
        """See `Shipper.remove`."""


@dataclass(frozen=True)
class Services:
    """What the host offers to its attempts. Times in seconds.

    `disk` are the threads of short writes that must not wait (journals), `cleanup` those of deletions, however large.
    `paths` gives the paths of a slot, `changed` is called with an attempt that has new events, `environment_ready` with
    bundle digest, Python version and environment of a run that got its own, `reach` at every AgentPoint.
    `last_shutdown` is the host's that an earlier agent saw, `shutting_down` asks whether one is under way;
    `confirmed_logs` are those that were at rest when the last boot ended.
    `until_strays_gone` returns once no container is left that a lost journal may have been about.
    """

    runtime: Runtime
    bundles: CodeStore
    uvcache: UvCache
    sampler: Sampler
    shipper: LogDelivery
    health: Health
    clock: Clock
    disk: Executor
    cleanup: Executor
    boot_id: str
    paths: Callable[[SlotId], SlotPaths]
    changed: Callable[[AttemptKey], None]
    start_patience: float
    spool_quota: int
    cluster: Callable[[], str] = field(default=lambda: "")
    last_shutdown: Shutdown | None = None
    confirmed_logs: ConfirmedLogs = field(default_factory=ConfirmedLogs)
    shutting_down: Callable[[], Awaitable[bool]] = field(default=host_is_shutting_down)
    until_strays_gone: Callable[[], Awaitable[object]] = field(default=lambda: asyncio.sleep(0))
    environment_ready: Callable[[str, str, Generation], None] = field(default=lambda *_: None)
    reach: Callable[[AgentPoint], None] = field(default=failpoints.reach)

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, asked again while the engine does not answer."""
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        while True:
            try:
                return await call()
            except RuntimeUnavailable as error:
                self.health.engine_refused(error)
                await self.clock.sleep(backoff.next())


class Dossier:
    """One attempt's papers."""

    def __init__(self, journal: Journal, services: Services) -> None:
        self.journal = journal
        self.services = services
        self.wishes = Wishes()
        self.backlog = Backlog(paused=journal.history.paused is not None)
        self.oom = asyncio.Event()
        self.oom_kills = 0
        self.signal_in_doubt = False
        """SIGTERM may have reached the program, and nobody knows: its sender died or heard no answer."""
        self.withdrawn = False
        """SIGKILL was to keep the program from beginning, and it may have begun before."""
        self._notes: deque[Fact] = deque()
        self._noted = asyncio.Event()
        self._writing = 0
        self._moved_on = asyncio.Event()

    @property
    def history(self) -> History:
        """What the journal adds up to."""
        return self.journal.history

    @property
    def key(self) -> AttemptKey:
        """Which attempt this is."""
        return self.history.intent.key

    @property
    def slot(self) -> SlotId:
        """The slot bound to it."""
        return self.history.intent.slot

    @property
    def paths(self) -> SlotPaths:
        """The slot's paths."""
        return self.services.paths(self.slot)

    @property
    def log_bytes(self) -> int | None:
        """How long the log was, all on the disk, once nobody wrote to it any more; None where nobody knows."""
        history = self.history
        if history.log_bytes is not None or history.releasing is None:
            return history.log_bytes
        return self.services.confirmed_logs.length(self.slot, history.releasing.boot_id)

    def reach(self, point: AgentPoint) -> None:
        """Pass a point where tests let the agent die."""
        self.services.reach(point)

    async def record(self, *steps: Step, facts: tuple[Fact, ...] = (), time: datetime | None = None) -> None:
        """Journal what was noted before, then `steps` and `facts`, in one write; waits while the disk refuses.

        `time` is when the facts came about; None = now.
        """
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        while (refused := await self._append(steps, facts, time)) is not None:
            self.services.health.disk_refused(refused)
            await self.services.clock.sleep(backoff.next())

    async def _append(self, steps: tuple[Step, ...], facts: tuple[Fact, ...], time: datetime | None) -> OSError | None:
        """One try to journal; what the disk said if it refused."""
        noted = tuple(self._notes)
        self._notes.clear()
        self._writing += 1
        try:
            await self.journal.append(*steps, facts=noted + facts, time=time)
        except OSError as error:
            self._notes.extendleft(reversed(noted))
            return error
        finally:
            self._writing -= 1
            self._moved_on.set()
        if noted or facts:
            self.services.changed(self.key)
        return None

    def note(self, fact: Fact) -> None:
        """Take a fact from a callback; journaled soon. Callers tell each thing once, so these stay few."""
        self._notes.append(fact)
        self._noted.set()

    def note_oom(self, kills: int) -> None:
        """The kernel killed a process of the container over its limit, and the container still lives."""
        self.oom_kills = kills
        self.oom.set()

    def acknowledge(self, sequence: int) -> None:
        """The control plane has settled all events up to `sequence`."""
        self.journal.acknowledge(sequence)
        self._moved_on.set()

    async def until_told(self) -> None:
        """Return once the control plane has settled every event there is, and every fact that is to be one."""
        while self._notes or self._writing or self.history.unacked:
            self._moved_on.clear()
            await self._moved_on.wait()

    async def keep_notes(self) -> None:
        """Journal what is noted, until cancelled."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            if self._notes:
                await self.record()

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, asked again while the engine does not answer."""
        return await self.services.patiently(call)

    async def insistently(self, call: Callable[[], Awaitable[T]]) -> T:
        """As `patiently`, and asked again where it is refused: what has to be known of a program that may run."""
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        said = ""
        while True:
            try:
                return await self.patiently(call)
            except RuntimeFault as error:
                if said != (said := str(error)):
                    log.warning("the runtime refuses to tell", attempt=str(self.key), why=said)
                await self.services.clock.sleep(backoff.next())
