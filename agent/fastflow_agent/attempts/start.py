"""From the bound slot to user code: code and dependencies, container, release. Every step may be repeated."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
from fastflow.backoff import Backoff
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.conclusion import conclude
from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS, Dossier
from fastflow_agent.attempts.output import Output
from fastflow_agent.attempts.wishes import Wishes
from fastflow_agent.bundles import BundleFault
from fastflow_agent.desired import RunSpec
from fastflow_agent.facts import Fact, ProvenanceKnown, StateChanged
from fastflow_agent.health import is_disk_full
from fastflow_agent.model import Reason, State, StopCause
from fastflow_agent.reconcile import DRAINED
from fastflow_agent.records import Created, Prepared, Released, Releasing, Started
from fastflow_agent.runtime.base import (
    Facts,
    HostFault,
    ImageMissing,
    RuntimeFault,
    RuntimeUnavailable,
    SlotSpec,
    SlotState,
)
from fastflow_agent.uvcache import EnvironmentFault, Generation, constraints

log = structlog.get_logger(__name__)
T = TypeVar("T")

COUNTED_AHEAD = 10
"""Preparations before a run's own that are told by number: each change is stored, of each run that waits."""


class Stopped(Exception):
    """The attempt is not wanted any more, and user code has not run."""

    def __init__(self, cause: StopCause) -> None:
        super().__init__(cause)
        self.cause = cause


class NotHere(Exception):
    """The attempt could not start on this host now; it may on another. The message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Failed(Exception):
    """The attempt can start nowhere. The message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Start:
    """One try to bring an attempt to life."""

    def __init__(self, dossier: Dossier, output: Output) -> None:
        self._dossier = dossier
        self._output = output
        self._services = dossier.services
        self._said = dossier.history.message

    async def bring_up(self, wishes: Wishes) -> None:
        """Start what is wanted; on return the program was released, or the end of its container is judged.

        Raises Stopped, NotHere or Failed, all of them only while it is certain that user code has not run.
        """
        self._check_wanted()
        while (word := wishes.run) is None:
            await self._unless_stopped(wishes.until(lambda: wishes.run))
        spec = word.spec
        if spec is None:
            raise Failed(Reason.REJECTED, "the assignment does not say what to run")
        slot, generation = await self._prepare(spec)
        await self._make_container(slot)
        # The cache may by now hold other versions as well, prepared for other code.
        if not await self._release(spec.environment | constraints(generation.packages)):
            await self._judge_early_end()

    async def _prepare(self, spec: RunSpec) -> tuple[SlotSpec, Generation]:
        self._services.bundles.pin(spec.bundle_digest, self._dossier.slot)
        code = await self._step(lambda: self._services.bundles.ensure(spec.bundle_digest, spec.bundle_size))
        self._dossier.reach(AgentPoint.CODE_READY)
        facts = await self._image()
        generation = await self._step(lambda: self._environment(code, spec, facts))
        # Nothing is awaited in between: an unpinned generation may be pruned.
        self._services.uvcache.pin(generation, self._dossier.slot)
        if not spec.packages:
            self._services.environment_ready(spec.bundle_digest, spec.python_version, generation)
        known: list[Fact] = [_provenance(spec, facts, generation)]
        if self._said:
            known += self._saying("its environment is ready")
        await self._dossier.record(Prepared(generation.id), facts=tuple(known))
        self._dossier.reach(AgentPoint.PREPARED)
        slot = SlotSpec(
            slot=self._dossier.slot,
            limits=spec.limits,
            paths=self._dossier.paths,
            code=code,
            cache=generation.path,
            python_version=spec.python_version,
            offline=generation.offline,
            cluster=self._services.cluster(),
        )
        return slot, generation

    async def _image(self) -> Facts:
        """The image as the engine has it; one that was missing at the last look may have come."""
        facts = self._services.health.facts
        if facts.image_digest and not facts.problem:
            return facts

        async def look() -> Facts:
            found = await self._services.health.probe()
            if found is None:
                raise RuntimeUnavailable("the container engine does not answer")
            if found.problem:
                raise ImageMissing(found.problem)
            return found

        return await self._step(look)

    async def _environment(self, code: Path, spec: RunSpec, facts: Facts) -> Generation:
        try:
            return await self._services.uvcache.ensure(
                code, spec.python_version, facts.image_digest, spec.packages, self._say_waits
            )
        except EnvironmentFault as fault:
            # uv's own words belong to the reader of the log.
            await self._output.explain(fault.output)
            raise

    def _say_waits(self, ahead: int) -> None:
        for fact in self._saying(_waits(ahead)):
            self._dossier.note(fact)

    def _saying(self, message: str) -> Sequence[StateChanged]:
        """What to journal so that the run says `message` from now on; nothing if it says so already."""
        if message == self._said:
            return ()
        self._said = message
        return (StateChanged(State.PREPARING, message=message),)

    async def _make_container(self, slot: SlotSpec) -> None:
        runtime = self._services.runtime
        await self._step(lambda: runtime.prepare_folders(slot), interruptible=False)
        self._dossier.reach(AgentPoint.FOLDERS_MADE)
        spool = await self._step(self._output.open)
        await self._step(lambda: runtime.create(slot), interruptible=False)
        self._dossier.reach(AgentPoint.CONTAINER_CREATED)
        await self._dossier.record(Created(spool.inode))
        self._dossier.reach(AgentPoint.CREATED)
        await self._step(lambda: runtime.start(slot.slot), interruptible=False)
        self._dossier.reach(AgentPoint.CONTAINER_STARTED)

    async def _release(self, environment: Mapping[str, str]) -> bool:
        wishes = self._dossier.wishes
        while not wishes.may_begin:
            await self._unless_stopped(wishes.until(lambda: wishes.may_begin))
        self._check_wanted()
        clock = self._services.clock
        releasing = Releasing(clock.now(), clock.monotonic(), self._services.boot_id)
        await self._dossier.record(Started(), releasing)
        self._dossier.reach(AgentPoint.RELEASING)
        try:
            released = await self._services.runtime.release(self._dossier.slot, environment)
        except (RuntimeFault, RuntimeUnavailable) as error:
            if not await withdraw(self._dossier):
                raise _sorted(error, self._dossier) from error
            released = True
        self._dossier.reach(AgentPoint.CONTAINER_RELEASED)
        if released:
            await self._dossier.record(Released(), facts=(StateChanged(State.RUNNING, slot=self._dossier.slot),))
            self._dossier.reach(AgentPoint.RELEASED)
        return released

    async def _judge_early_end(self) -> None:
        seen = await self._dossier.insistently(lambda: self._services.runtime.wait(self._dossier.slot))
        if seen.state is SlotState.ABSENT:
            raise NotHere(Reason.RUNTIME, "could not start: something removed the container before its release")
        await conclude(self._dossier, seen, released=False)

    async def _step(self, call: Callable[[], Coroutine[Any, Any, T]], *, interruptible: bool = True) -> T:
        """The result of `call`, its failures sorted; asked again while the engine does not answer.

        A step that speaks with the engine is not interrupted by a stop: its effect would come after the clean-up.
        """
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        deadline = None
        while True:
            self._check_wanted()
            try:
                return await (self._unless_stopped(call()) if interruptible else call())
            except RuntimeUnavailable as error:
                self._services.health.engine_refused(error)
                now = self._services.clock.monotonic()
                deadline = now + self._services.start_patience if deadline is None else deadline
                if now >= deadline:
                    raise _sorted(error, self._dossier) from error
            except (BundleFault, EnvironmentFault, ImageMissing, RuntimeFault, OSError) as error:
                raise _sorted(error, self._dossier) from error
            await self._unless_stopped(self._services.clock.sleep(backoff.next()))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; cancelled, with Stopped or NotHere raised, once the attempt is not wanted any more."""
        wishes = self._dossier.wishes
        working = asyncio.ensure_future(work)
        try:
            while not working.done():
                self._check_wanted()
                unwanted = asyncio.ensure_future(wishes.until(lambda: wishes.unstarted))
                try:
                    await asyncio.wait({working, unwanted}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _cancel(unwanted)
            return working.result()
        finally:
            await _cancel(working)

    def _check_wanted(self) -> None:
        if cause := self._dossier.wishes.stop:
            raise Stopped(cause)
        if self._dossier.wishes.unstarted:
            raise NotHere(Reason.AGENT_DRAINED, DRAINED)


async def withdraw(dossier: Dossier) -> bool:
    """Make sure that a container that waits for its release never gets it; true if the program ran after all.

    A container that was not released is removed. One that was is left as it is. Raises NotHere where the container can
    not be removed: the slot is of no use then, and whoever gives the attempt back goes on with the removal.
    """
    # Without RELEASING nothing was; the runtime, which a reboot robs of what it knew, would say in doubt that it ran.
    if dossier.history.releasing is not None and await _came_through(dossier):
        return True
    try:
        await dossier.patiently(lambda: dossier.services.runtime.remove(dossier.slot))
    except RuntimeFault as error:
        raise NotHere(Reason.RUNTIME, f"could not start: {error}") from error
    return False


async def _came_through(dossier: Dossier) -> bool:
    """Whether a release that was begun reached the container; it never will if it has not."""
    runtime, slot = dossier.services.runtime, dossier.slot
    if await dossier.insistently(lambda: runtime.was_released(slot)):
        return True
    seen = await dossier.insistently(lambda: runtime.observe(slot))
    if seen.state is not SlotState.RUNNING:
        return False
    # Words of a release may be on their way into the container. Only after its end is it certain whether they came.
    dossier.withdrawn = True
    await dossier.insistently(lambda: runtime.signal(slot, signal.SIGKILL))
    await dossier.insistently(lambda: runtime.wait(slot))
    return await dossier.insistently(lambda: runtime.was_released(slot))


def _sorted(error: Exception, dossier: Dossier) -> Exception:
    if is_disk_full(error):
        if isinstance(error, OSError):
            dossier.services.health.disk_refused(error)
        return NotHere(Reason.DISK_FULL, "could not start: the worker's disk is full")
    message = str(error)
    match error:
        case RuntimeUnavailable() | HostFault() | OSError():
            return NotHere(Reason.RUNTIME, f"could not start: {message}")
        case BundleFault():
            return Failed(Reason.BUNDLE, message)
        case EnvironmentFault():
            return Failed(Reason.ENVIRONMENT, message)
        case ImageMissing():
            return Failed(Reason.IMAGE, message)
    return Failed(Reason.RUNTIME, message)


def _waits(ahead: int) -> str:
    if not ahead:
        return "its environment is being prepared"
    others = f"{ahead} others are" if ahead > 1 else "another one is"
    if ahead > COUNTED_AHEAD:
        others = f"more than {COUNTED_AHEAD} others are"
    return f"it waits for a place to prepare its environment: {others} prepared there first"


def _provenance(spec: RunSpec, facts: Facts, generation: Generation) -> ProvenanceKnown:
    return ProvenanceKnown(
        image=facts.image,
        image_digest=facts.image_digest,
        uv_version=facts.uv_version,
        python_version=generation.python or spec.python_version,
        packages=generation.packages,
        secret_versions={secret.name: secret.version for secret in spec.secrets},
    )


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
