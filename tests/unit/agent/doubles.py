"""In-memory doubles at the agent's seams, for branches that depend on time or on a death at one exact place."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastflow_agent.cgroups.paths import SlotGroup
from fastflow_agent.clock import Clock
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey, SlotId
from fastflow_agent.runtime.base import (
    Facts,
    Observation,
    PreparerResult,
    PreparerSpec,
    Runtime,
    RuntimeFault,
    RuntimeUnavailable,
    Sent,
    SlotSpec,
    SlotState,
)

FACTS = Facts("docker", "1", "none", "image", "sha256:image", ("3.11",), "0.9")


class FakeClock(Clock):
    """Time that passes only when a test says so. `disk` is the one thread that does the work of the agent's threads."""

    def __init__(self, disk: Executor) -> None:
        self._now = 1000.0
        self._set_by = 0.0
        self._disk = disk
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now + self._set_by)

    def jump(self, seconds: float) -> None:
        """Set the time of day, and nothing else, forward or back."""
        self._set_by += seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._count), waiting))
        await waiting

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking each sleeper at its time."""
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, waiting = heapq.heappop(self._sleepers)
            if not waiting.done():
                waiting.set_result(None)
                await self.settle()
        self._now = end
        await self.settle()

    async def settle(self, rounds: int = 25) -> None:
        """Let tasks and their thread work until nothing moves."""
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            await loop.run_in_executor(self._disk, _nothing)
            for _ in range(5):
                await asyncio.sleep(0)


def _nothing() -> None:
    """What is asked of the thread before this is done after it."""


@dataclass
class Container:
    state: SlotState = SlotState.CREATED
    exit_code: int | None = None
    error: str = ""
    wrapper_failed: bool = False
    finished_at: datetime | None = None
    environment: dict[str, str] | None = None
    signals: list[int] = field(default_factory=list)
    sent: tuple[Sent, ...] = ()
    """What the engine tells of signals, to whoever waited for the end."""
    ignores: set[int] = field(default_factory=set)
    perhaps_unseen: bool = False
    """The engine tells an exit code that it may have made up."""
    frozen: bool = False
    stuck: bool = False
    """A process in it does not die, so the engine can not remove it."""
    gate_lost: bool = False
    """What told whether it was released was in memory, and the host was restarted."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def seen(self) -> Observation:
        return Observation(
            self.state,
            self.exit_code,
            error=self.error,
            wrapper_failed=self.wrapper_failed,
            finished_at=self.finished_at,
            end_unseen=self.state is SlotState.EXITED and (self.exit_code is None or self.perhaps_unseen),
            signals=self.sent,
        )


class FakeRuntime(Runtime):
    """An engine in memory. It survives the agent, as engines do."""

    def __init__(self) -> None:
        self.containers: dict[SlotId, Container] = {}
        self.releases: list[SlotId] = []
        self.starts: list[SlotId] = []
        self.unavailable = False
        self.facts = FACTS
        self.fail: dict[str, Exception] = {}
        self.ends_at_once: int | None = None
        self.slow_release: asyncio.Event | None = None

    def _check(self, call: str) -> None:
        if self.unavailable:
            raise RuntimeUnavailable("the engine is away")
        if call in self.fail:
            raise self.fail[call]

    def end(self, slot: SlotId, code: int | None) -> None:
        """The program of a slot ends; with None the engine does not see how."""
        container = self.containers[slot]
        container.state, container.exit_code = SlotState.EXITED, code
        container.changed.set()

    def reboot(self, code: int | None) -> None:
        """The host is restarted; what lives ends with `code`."""
        for slot, container in self.containers.items():
            container.gate_lost = True
            if container.state is SlotState.RUNNING:
                self.end(slot, code)

    async def probe(self) -> Facts:
        self._check("probe")
        return self.facts

    async def prepare_folders(self, spec: SlotSpec) -> None:
        self._check("prepare_folders")
        spec.paths.log.touch()

    async def create(self, spec: SlotSpec) -> None:
        self._check("create")
        self.containers.setdefault(spec.slot, Container())

    async def start(self, slot: SlotId) -> None:
        self._check("start")
        container = self.containers[slot]
        if container.state is SlotState.CREATED:
            container.state = SlotState.RUNNING
            self.starts.append(slot)

    async def release(self, slot: SlotId, environment: Mapping[str, str]) -> bool:
        self._check("release")
        container = self.containers[slot]
        if container.state is not SlotState.RUNNING:
            return False
        if container.environment is None:
            container.environment = dict(environment)
            self.releases.append(slot)
            if self.ends_at_once is not None:
                self.end(slot, self.ends_at_once)
        return True

    async def was_released(self, slot: SlotId) -> bool:
        self._check("was_released")
        container = self.containers.get(slot)
        if container is None or container.gate_lost:
            # Nobody knows; in doubt, what ran was released.
            return container is not None and container.state in (SlotState.RUNNING, SlotState.EXITED)
        return container.environment is not None

    async def observe(self, slot: SlotId) -> Observation:
        self._check("observe")
        return self.containers[slot].seen if slot in self.containers else Observation(SlotState.ABSENT)

    async def wait(self, slot: SlotId) -> Observation:
        self._check("wait")
        while slot in self.containers and self.containers[slot].state is not SlotState.EXITED:
            container = self.containers[slot]
            container.changed.clear()
            await container.changed.wait()
        return await self.observe(slot)

    async def oom_flag(self, slot: SlotId) -> bool:
        self._check("oom_flag")
        return False

    async def signal(self, slot: SlotId, signal: int) -> bool:
        self._check("signal")
        container = self.containers.get(slot)
        if container is None or container.state is not SlotState.RUNNING:
            return False
        container.signals.append(signal)
        container.frozen = False
        if signal not in container.ignores:
            self.end(slot, 128 + signal)
        return True

    async def freeze(self, slot: SlotId) -> bool:
        self._check("freeze")
        container = self.containers.get(slot)
        if container is None or container.state is not SlotState.RUNNING:
            return False
        container.frozen = True
        return True

    async def thaw(self, slot: SlotId) -> None:
        self._check("thaw")
        if container := self.containers.get(slot):
            container.frozen = False

    async def remove(self, slot: SlotId) -> None:
        self._check("remove")
        if slot in self.containers and self.containers[slot].stuck:
            raise RuntimeFault("a process of it does not die")
        if container := self.containers.pop(slot, None):
            container.changed.set()

    async def slots(self) -> dict[SlotId, Observation]:
        self._check("slots")
        return {slot: container.seen for slot, container in self.containers.items()}

    def group(self, slot: SlotId) -> SlotGroup | None:
        return None

    async def remove_preparers(self) -> None:
        self._check("remove_preparers")

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        return PreparerResult(0, b"")

    async def aclose(self) -> None:
        pass


class FakeShipper:
    """Delivers every log at once."""

    def __init__(self) -> None:
        self.logs: dict[AttemptKey, bytes] = {}
        self.sealed: dict[AttemptKey, int] = {}
        self.spools: dict[AttemptKey, Spool] = {}
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.slow_removal = asyncio.Event()
        self.slow_removal.set()
        self.on_loss: dict[AttemptKey, Callable[[LogLoss], None]] = {}
        self.on_backlog: dict[AttemptKey, Callable[[int, int], None]] = {}

    def add(
        self,
        key: AttemptKey,
        spool: Spool,
        durable_offset: int,
        on_loss: Callable[[LogLoss], None],
        on_backlog: Callable[[int, int], None],
    ) -> None:
        self.spools[key] = spool
        self.on_loss[key] = on_loss
        self.on_backlog[key] = on_backlog
        self.logs[key] = self.logs.get(key, b"")[:durable_offset]

    def durable(self, key: AttemptKey) -> int:
        assert key in self.spools, "as the real one, it knows only what it has"
        return len(self.logs.get(key, b""))

    async def seal(self, key: AttemptKey, until_losses_told: Callable[[], Awaitable[None]]) -> int:
        await self.blocked.wait()
        spool = self.spools[key]
        end = spool.finish()
        while len(self.logs[key]) < end:
            data = spool.read(len(self.logs[key]), end)
            self.logs[key] += data if isinstance(data, bytes) else b"\0" * (end - len(self.logs[key]))
        for loss in spool.take_losses():
            self.on_loss[key](loss)
        await until_losses_told()
        self.sealed[key] = end
        return end

    async def remove(self, key: AttemptKey) -> None:
        if spool := self.spools.pop(key, None):
            await self.slow_removal.wait()
            spool.close()


class FakeBundles:
    """Code that is always there, or fails as told, or is waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.pins: dict[SlotId, str] = {}

    def pin(self, digest: str, slot: SlotId) -> None:
        self.pins[slot] = digest

    def unpin(self, slot: SlotId) -> None:
        self.pins.pop(slot, None)

    async def ensure(self, digest: str, size: int) -> Path:
        await self.gate.wait()
        if self.fault:
            raise self.fault
        return self.folder


@dataclass(frozen=True)
class FakeGeneration:
    id: str
    path: Path
    offline: bool = True
    packages: tuple[str, ...] = ()
    python: str = "3.11.2"


class FakeUvCache:
    """One generation that holds everything; its pins are those of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Exception | None = None
        self.pins: dict[SlotId, str] = {}
        self.suspected: list[SlotId] = []
        self.cleared_up = False
        self.asked_packages: tuple[str, ...] = ()
        self.ahead: Sequence[int] = ()
        """What is told one after the other of how many are prepared before."""
        self.ready = asyncio.Event()
        """Cleared by who wants environments to take their time."""
        self.ready.set()

    async def ensure(
        self,
        code: Path,
        python_version: str,
        image_digest: str,
        packages: Sequence[str] = (),
        waits: Callable[[int], None] = lambda ahead: None,
    ) -> FakeGeneration:
        self.asked_packages = tuple(packages)
        for ahead in self.ahead:
            waits(ahead)
        await self.ready.wait()
        if self.fault:
            raise self.fault
        return FakeGeneration("generation-1", self.folder)

    def pin(self, generation: str, slot: SlotId) -> None:
        self.pins[slot] = generation

    def unpin(self, slot: SlotId) -> None:
        self.pins.pop(slot, None)

    def suspect(self, slot: SlotId) -> None:
        assert slot in self.pins
        self.suspected.append(slot)

    async def clear_up(self) -> None:
        self.cleared_up = True

    def environments(self) -> list[str]:
        return ["environment"]
