"""A local run from its start to its last trace: says what is wanted of one attempt, and hears what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fastflow.ids import new_id
from fastflow.pipelines.folder import FolderFault
from fastflow.pipelines.metadata import matches_python

from fastflow_agent.agent import CLEANUP_THREADS, DISK_THREADS, make_runtime, open_uvcache
from fastflow_agent.attempts.dossier import Services
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.clock import Clock
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import ContainerGone, Ended, Event, LogLossFound, SoftLimitCrossed, StateChanged
from fastflow_agent.health import Health
from fastflow_agent.identity import Identity
from fastflow_agent.local import screen
from fastflow_agent.local.folder import PackedCode, take_folder
from fastflow_agent.local.plan import Plan, Refused
from fastflow_agent.local.printer import Printer
from fastflow_agent.local.screen import Screen
from fastflow_agent.model import AttemptKey, SlotId, State
from fastflow_agent.reconcile import number
from fastflow_agent.runtime.base import Runtime, RuntimeFault, SlotPaths
from fastflow_agent.runtime.release import environments_folder
from fastflow_agent.settings import AgentSettings
from fastflow_agent.strays import Strays
from fastflow_agent.uvcache import UvCache
from fastflow_agent.worker import Worker

SUCCEEDED = 0
RUN_FAILED = 1
UNREACHABLE = 3
"""Nothing ran, as what runs pipelines can not be reached: of `ffctl run` the exit code for an unreachable server."""
REFUSED = 4
INTERRUPTED = 130
"""What a shell reports after Ctrl-C (128 + SIGINT)."""

ENV_DIR = Path("/run/fastflow/env")

PATIENCE_SECONDS = 1.0
"""A start that takes longer says what it is waiting for; a warm one takes a quarter of that."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, and a terminal that is closed."""

INTERRUPTS_TO_LEAVE = 3
"""The first Ctrl-C asks the program to end, the second kills it, and this one leaves everything as it is."""


class CanNotRun(Exception):
    """What runs pipelines can not be reached; the message says what to do."""


async def run_local(settings: AgentSettings, plan: Plan, cache: Path) -> int:
    """Run `plan` with data under `cache`, and return the exit code of `ffctl run --follow`.

    The output goes to stdout byte for byte, all else to stderr. Raises Refused, CanNotRun, DataFolderInUse or OSError.
    """
    check_user(settings, os.geteuid())
    interrupted: list[int] = []
    for name in STOPPING:
        # Until there is something to stop, whoever asks for it waits the moment that takes.
        asyncio.get_running_loop().add_signal_handler(name, interrupted.append, name)
    async with AsyncExitStack() as open_parts:
        data_dir, lock = await asyncio.to_thread(take_folder, cache)
        open_parts.callback(lock.release)
        try:
            code = await asyncio.to_thread(PackedCode.of, plan.code, data_dir / "code")
        except FolderFault as fault:
            raise Refused(str(fault)) from None
        open_parts.callback(code.remove)
        identity = await asyncio.to_thread(Identity.load, data_dir)
        env_dir = await asyncio.to_thread(_environments, settings)
        runtime = make_runtime(settings, identity, data_dir, env_dir)
        open_parts.push_async_callback(runtime.aclose)
        place = _Place(data_dir, env_dir, identity.boot_id)
        return await LocalRun(settings, plan, code, runtime, place).run(interrupted)


def check_user(settings: AgentSettings, user: int) -> None:
    """Raises CanNotRun where `user` can not give a container its limits and its verdict, as an agent does."""
    if settings.runtime == "docker" and user != 0:
        raise CanNotRun(
            "containers are run by root, as on a worker: only root can make and watch their control groups, which "
            "tell an OOM kill and a crossed soft limit; run it with sudo"
        )


@dataclass(frozen=True)
class _Place:
    """The folders of a local run, and the boot of its host."""

    data_dir: Path
    env_dir: Path
    boot_id: str

    def paths(self, slot: SlotId) -> SlotPaths:
        return SlotPaths.of(self.data_dir, self.env_dir, slot)


class LocalRun:
    """One run. Plays the control plane's part for one attempt; `run` may be called once."""

    def __init__(self, settings: AgentSettings, plan: Plan, code: PackedCode, runtime: Runtime, place: _Place) -> None:
        self._settings = settings
        self._plan = plan
        self._code = code
        self._runtime = runtime
        self._place = place
        self._screen = Screen()
        self._clock = Clock()
        self._conditions = Conditions(self._clock, changed=self._tell_conditions)
        self._told: set[str] = set()
        self._key = AttemptKey(new_id(), 1, new_id())
        self._slot = SlotId("")
        self._worker: Worker | None = None
        self._printer: Printer
        self._uvcache: UvCache
        self._interrupts = 0
        self._signals: set[asyncio.Task[bool]] = set()
        self._began: datetime | None = None
        self._end: Event | None = None
        self._given_up: StateChanged | None = None
        self._gone = self._sealed = False

    async def run(self, interrupted: Sequence[int] = ()) -> int:
        """Return the exit code once the run has ended and nothing of it is left but caches.

        `interrupted` are the signals that came before.
        """
        loop = asyncio.get_running_loop()
        self._interrupts = len(interrupted)
        for name in STOPPING:
            loop.add_signal_handler(name, self._interrupt)
        for warning in self._plan.warnings:
            self._screen.say(warning)
        async with AsyncExitStack() as open_parts:
            services = await self._services(open_parts)
            await self._check_host(services.health)
            if self._interrupts:
                self._screen.say("stopped before the program began")
                return RUN_FAILED
            late = loop.call_later(PATIENCE_SECONDS, self._say_waiting)
            async with asyncio.TaskGroup() as attendants:
                attending = [
                    attendants.create_task(services.health.run()),
                    attendants.create_task(services.sampler.run()),
                ]
                try:
                    await self._attempt(services)
                finally:
                    late.cancel()
                    for task in attending:
                        task.cancel()
            await self._uvcache.settle()
        return self._conclude()

    async def _services(self, open_parts: AsyncExitStack) -> Services:
        disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="journal")
        cleanup = ThreadPoolExecutor(CLEANUP_THREADS, thread_name_prefix="cleanup")
        open_parts.callback(disk.shutdown)
        open_parts.callback(cleanup.shutdown)
        self._printer = Printer(
            sys.stdout.fileno(),
            on_written=self._screen.written,
            on_sealed=self._log_sealed,
            on_reader_left=self._reader_left,
        )
        open_parts.callback(self._printer.close)
        self._uvcache = await open_uvcache(self._settings, self._runtime, self._place.data_dir)
        sampler = Sampler(
            self._clock,
            on_usage=lambda *_: None,
            on_crossing=lambda slot, crossed: self._here.crossed(slot, crossed),
            on_oom=lambda slot, kills: self._here.oom_killed(slot, kills),
        )
        open_parts.callback(sampler.close)
        health = Health(
            self._runtime,
            self._conditions,
            self._clock,
            disk,
            data_dir=self._place.data_dir,
            disk_reserve=self._settings.disk_reserve_bytes,
            interval=self._settings.probe_interval,
            runtime_name=self._settings.runtime,
        )
        return Services(
            runtime=self._runtime,
            bundles=self._code,
            uvcache=self._uvcache,
            sampler=sampler,
            shipper=self._printer,
            health=health,
            clock=self._clock,
            disk=disk,
            cleanup=cleanup,
            boot_id=self._place.boot_id,
            paths=self._place.paths,
            changed=self._changed,
            start_patience=self._settings.start_patience,
            spool_quota=self._settings.spool_quota_bytes,
        )

    async def _check_host(self, health: Health) -> None:
        """What an agent tells its control plane before it gets a run."""
        await health.look()
        for condition in self._conditions.all():
            if condition.type in (ConditionType.DOCKER_UNAVAILABLE, ConditionType.RUNTIME_UNAVAILABLE):
                raise CanNotRun(condition.message)
        wanted, versions = self._plan.metadata.python_version, health.facts.python_versions
        if wanted and versions and not any(matches_python(wanted, version) for version in versions):
            where = "the runner image" if self._settings.runtime == "docker" else "this machine"
            raise Refused(f"python_version {wanted} is not in {where}; there are: {', '.join(versions)}")

    async def _attempt(self, services: Services) -> None:
        """From the binding of a slot until it is deleted, with what an earlier run that was killed left behind."""
        async with asyncio.TaskGroup() as attempts:
            slots_dir = self._place.data_dir / "slots"
            worker = self._worker = Worker(services, self._conditions, attempts, slots_dir, lambda *_: None)
            leftovers = await worker.adopt()
            at_once: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            at_once.set_result(0.0)
            strays = Strays(services, self._conditions, lambda: worker.bound_slots, leftovers)
            attempts.create_task(strays.clear(at_once), name="strays")
            worker.take_full([self._word(Action.STOP if self._interrupts else Action.RUN)], orphan_grace=0.0)
            # Adopted attempts are nobody's any more: this second look stops them.
            worker.converge()

    def _word(self, action: Action) -> Desired:
        spec = self._plan.spec(self._code.packed.digest, self._code.packed.size)
        return Desired(
            self._key, action, spec=spec if action is Action.RUN else None, secrets=self._plan.secrets, stop_grace=None
        )

    # What the attempt tells.

    @property
    def _here(self) -> Worker:
        assert self._worker is not None, "nothing is sampled before there is a worker"
        return self._worker

    def _changed(self, key: AttemptKey) -> None:
        asyncio.get_running_loop().call_soon(self._hear, key)

    def _hear(self, key: AttemptKey) -> None:
        """Settle an attempt's new events; like a control plane, let ours go once nothing more can come."""
        known = self._here.unacknowledged(number(key))
        events = known[1] if known else []
        if events:
            self._here.acknowledge(number(key), events[-1].sequence, stored=True)
        if key != self._key:
            return
        for event in events:
            self._take(event)
        if (self._end or self._given_up) and self._gone and self._sealed:
            self._here.take_delta([self._word(Action.FORGET)])

    def _take(self, event: Event) -> None:
        match event.fact:
            case StateChanged(state=State.RUNNING):
                self._began = event.time
            case StateChanged(state=State.QUEUED) as refusal:
                self._given_up = refusal
            case StateChanged(slot=slot):
                self._slot = SlotId(slot) if slot else self._slot
            case Ended():
                self._end = event
            case ContainerGone():
                self._gone = True
            case SoftLimitCrossed() as fact:
                self._screen.say(screen.crossing(fact))
            case LogLossFound() as fact:
                self._screen.say(screen.loss(fact))

    def _log_sealed(self) -> None:
        self._sealed = True
        asyncio.get_running_loop().call_soon(self._hear, self._key)

    def _conclude(self) -> int:
        if self._end is None:
            message = self._given_up.message if self._given_up else "could not start"
            raise CanNotRun(message)
        ended = self._end.fact
        assert isinstance(ended, Ended)
        seconds = (self._end.time - self._began).total_seconds() if self._began else None
        self._screen.say(screen.verdict(self._plan.pipeline, ended, seconds))
        if self._began:
            self._screen.say(screen.usage(ended.usage, self._plan.limits))
        return SUCCEEDED if ended.state is State.SUCCEEDED else RUN_FAILED

    # What the person at the terminal does.

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts >= INTERRUPTS_TO_LEAVE:
            self._screen.say("left as it is; the next local run clears up what was left behind")
            os._exit(INTERRUPTED)
        if self._worker is None or self._end:
            return
        if self._interrupts == 1:
            grace = self._plan.spec("", 0).stop_grace
            self._screen.say(f"stopping: SIGTERM, and SIGKILL after {grace:g} s (Ctrl-C again: at once)")
            self._worker.take_delta([self._word(Action.STOP)])
            return
        self._printer.give_up()
        if self._slot:
            task = asyncio.create_task(self._runtime.signal(self._slot, signal.SIGKILL))
            self._signals.add(task)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _reader_left(self, why: str) -> None:
        """Nobody reads the output any more; a program in a pipe ends then."""
        self._screen.release_stdout()
        if not self._interrupts:
            self._screen.say(why or "nobody reads the output any more")
            self._interrupt()

    def _say_waiting(self) -> None:
        if self._began is None and self._end is None:
            self._screen.say("preparing: packages are installed once for each new set of requirements")

    def _tell_conditions(self) -> None:
        # Before there is a worker, an engine that is away ends the command with these words.
        told = _TOLD if self._worker else {ConditionType.UNCONFINED}
        for condition in self._conditions.all():
            if condition.type in told and condition.message not in self._told:
                self._told.add(condition.message)
                self._screen.say(f"warning: {condition.message}")


_TOLD = frozenset({ConditionType.UNCONFINED, ConditionType.DISK_FULL, ConditionType.DOCKER_UNAVAILABLE})
"""What somebody who waits for a run wants to know of the host. A missing image is said by the verdict."""


def _environments(settings: AgentSettings) -> Path:
    try:
        return environments_folder(settings.env_dir or ENV_DIR, Path(f"/dev/shm/fastflow-env-{os.geteuid()}"))
    except RuntimeFault as error:
        raise CanNotRun(str(error)) from error
