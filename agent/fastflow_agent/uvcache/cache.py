"""Which environment a run gets, and having it prepared if no generation holds it."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PreparerResult, PreparerSpec
from fastflow_agent.singleflight import SingleFlight
from fastflow_agent.uvcache import tree
from fastflow_agent.uvcache.generations import Environment, Generations, Held
from fastflow_agent.uvcache.holding import constraints
from fastflow_agent.uvcache.needs import Needs, UnreadableHeader, installed, interpreter, without_listing
from fastflow_agent.uvcache.pruning import Verdict, Weighed, judge
from fastflow_agent.uvcache.refusal import explain

log = structlog.get_logger(__name__)

T = TypeVar("T")

PREPARER_ENVIRONMENT = {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "1"}
"""How uv fills a cache. Compiled once, a large package is imported five times as fast by every run (uv compiles no
file that is a symbolic link); a run could not keep what it compiles."""

THREADS = 4
"""Copying a large cache takes seconds; who only looks up an environment must not wait for it."""

LEASE_SECONDS = 60.0
"""A generation just handed out is not pruned for this long: its new user needs a moment to pin it."""


SIZE_LIMIT = 20 << 30
"""Bytes on disk of all generations together: room for some sets of the largest packages there are."""

MAX_IDLE_SECONDS = 30 * 24 * 3600.0
"""Environments of what runs once a month are still there."""

VERIFY_AGAIN_SECONDS = 300.0
"""A generation whose runs keep failing, for reasons of their own mostly, is looked at no more often."""


class EnvironmentFault(Exception):
    """The needs of a pipeline can not be met. `output` is what uv said."""

    def __init__(self, message: str, output: bytes) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Generation:
    """A generation and one environment in it. `path` never changes; `packages` are "name==version".

    `environment` names the environment; `prepared`, `seconds` and `python` as in `Environment`.
    """

    id: str
    path: Path
    packages: tuple[str, ...] = ()
    offline: bool = False
    environment: str = ""
    prepared: float = 0.0
    seconds: float = 0.0
    python: str = ""


class Preparer(Protocol):
    """What runs uv: a Runtime."""

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        """See `Runtime.run_preparer`."""

    async def remove_preparers(self) -> None:
        """See `Runtime.remove_preparers`."""


class UvCache:
    """Use from one event loop. After a restart, first pin what is in use, then ask for environments."""

    def __init__(
        self,
        generations: Generations,
        preparer: Preparer,
        index_url: str,
        disk: ThreadPoolExecutor,
        now: Callable[[], float] = time.time,
        size_limit: int = SIZE_LIMIT,
        max_idle: float = MAX_IDLE_SECONDS,
    ) -> None:
        self._size_limit = size_limit
        self._max_idle = max_idle
        self._weighed: tuple[int, ...] = ()
        self._sizes: dict[int, int] = {}
        self._suspected: dict[int, float] = {}
        self._generations = generations
        self._preparer = preparer
        self._index_url = index_url
        self._disk = disk
        self._now = now
        self._urgent = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._pins: dict[SlotId, int] = {}
        self._leases: dict[int, float] = {}
        self._uses = itertools.count()
        self._used: dict[int, int] = {}
        self._names = itertools.count(1)
        self._preparing: SingleFlight[None] = SingleFlight()
        self._changing = asyncio.Lock()
        self._cleared = False
        self._pruning: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._verifying: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        folder: Path,
        preparer: Preparer,
        *,
        owner: int | None = None,
        index_url: str = "",
        now: Callable[[], float] = time.time,
        size_limit: int = SIZE_LIMIT,
        max_idle: float = MAX_IDLE_SECONDS,
    ) -> UvCache:
        """Opens the cache under `folder`. `owner` is the user id containers run as, if it is not this process's.

        `index_url` names the package index in use: another index makes other environments. `now` is the wall clock, in
        seconds since 1970. `size_limit` is in bytes on disk; environments unused for `max_idle` seconds may go. Raises
        OSError.
        """
        disk = ThreadPoolExecutor(THREADS, "uvcache")
        generations = Generations(folder, os.geteuid() if owner is None else owner)
        await asyncio.get_running_loop().run_in_executor(disk, generations.load)
        return cls(generations, preparer, index_url, disk, now, size_limit, max_idle)

    async def ensure(
        self, code: Path, python_version: str, image_digest: str, packages: Sequence[str] = ()
    ) -> Generation:
        """Returns a generation that holds what the unpacked `code` needs, and has it prepared if there is none.

        With exactly these `packages`, "name==version", if it has them or they can still be had; else with what the
        needs resolve to, as without any. Pin it at once. Raises EnvironmentFault with uv's own output, what the runtime
        raises, or OSError.
        """
        needs, digest = await self._needs(code, python_version, image_digest)
        await self._forget_vanished()
        if packages:
            if held := self._generations.find(digest, tuple(packages)):
                return self._hand_out(digest, held)
            if needs.can_be_held:
                fixed = replace(needs, versions=tuple(packages))
                try:
                    return await self._ensure_now(fixed, python_version, image_digest)
                except EnvironmentFault as fault:
                    log.info("packages of an earlier run can not be had again", environment=digest, why=str(fault))
        return await self._ensure_now(needs, python_version, image_digest)

    async def ensure_ahead(self, code: Path, python_version: str, image_digest: str, max_age: float) -> Generation:
        """As `ensure`, for an environment no run waits for: what runs need is prepared first.

        One that was prepared more than `max_age` seconds ago (0 = no limit) is prepared again, in a new generation;
        runs get the old one until that has succeeded.
        """
        needs, digest = await self._needs(code, python_version, image_digest)
        if not self._is_fresh(digest, max_age):
            await self._calm.wait()
            # A run may have had it prepared meanwhile.
            if not self._is_fresh(digest, max_age):
                await self._prepare_once(needs, digest, python_version, image_digest)
        return self._hand_out(digest)

    def environments(self) -> list[str]:
        """Digests of all environments at hand."""
        return self._generations.environments

    def pin(self, generation: Generation | str, slot: SlotId) -> None:
        """Keeps a generation, given itself or by id, while `slot` uses it. A slot pins one; pinning again replaces."""
        self._pins[slot] = int(generation if isinstance(generation, str) else generation.id)

    def unpin(self, slot: SlotId) -> None:
        """Ends the use by `slot`, if there is one; what nobody needs any more is removed in the background."""
        if self._pins.pop(slot, None) is not None and (self._pruning is None or self._pruning.done()):
            self._pruning = asyncio.create_task(self.prune(), name="prune the uv cache")

    async def clear_up(self) -> None:
        """Removes what a dead agent left half done; only the first call finds any. Raises what the runtime raises."""
        async with self._changing:
            if not self._cleared:
                await self._preparer.remove_preparers()
                await self._on_disk(self._generations.clear_staging)
                self._cleared = True

    async def prune(self) -> None:
        """Removes generations that nothing pins and whose environments a newer one holds."""
        async with self._changing:
            now = asyncio.get_running_loop().time()
            self._leases = {number: until for number, until in self._leases.items() if until > now}
            kept = {*self._pins.values(), *self._leases}
            by_use = sorted(self._used, key=lambda number: self._used[number])

            def remove() -> list[int]:
                gone = self._generations.superseded(kept, by_use)
                remains = [number for number in self._generations.remains() if number not in kept]
                self._generations.remove(gone, remains)
                return gone

            try:
                gone = await self._on_disk(remove)
            except OSError as error:
                log.warning("the uv cache can not be pruned", error=str(error))
                return
            if gone:
                log.info("generations of the uv cache removed", generations=gone)

    async def tidy(self) -> None:
        """Removes what was not used for too long, and what was used longest ago where there is too much of it."""
        if await self._weigh():
            async with self._changing:
                await self._remove_idle()
        await self.prune()

    async def verify(self) -> None:
        """Looks at all files of all generations; damaged ones are not handed out any more, and prepared anew."""
        for held in self._generations.held:
            await self._verify(held)

    def suspect(self, slot: SlotId) -> None:
        """A run of this slot failed: what it used is looked at in the background, each generation now and then."""
        number = self._pins.get(slot)
        now = asyncio.get_running_loop().time()
        held = next((each for each in self._generations.held if each.number == number), None)
        if held is None or now < self._suspected.get(held.number, -math.inf) + VERIFY_AGAIN_SECONDS:
            return
        self._suspected[held.number] = now
        self._verifying = asyncio.create_task(self._verify(held), name="verify a generation")

    async def _verify(self, held: Held) -> None:
        damage = await self._on_disk(lambda: self._generations.damage(held))
        if not damage:
            return
        async with self._changing:
            if held in self._generations.held:
                log.error("a generation of the uv cache is damaged: prepared anew", number=held.number, damage=damage)
                try:
                    await self._on_disk(lambda: self._generations.forget({held.number}))
                except OSError as error:
                    log.warning("the index of the uv cache can not be written", error=str(error))

    async def _weigh(self) -> bool:
        """Measures the generations if there are others than at the last time; false where that can not be done."""
        held = self._generations.held[::-1]
        numbers = tuple(each.number for each in held)
        if numbers != self._weighed:
            try:
                sizes = await self._on_disk(lambda: tree.sizes(self._generations.path(number) for number in numbers))
            except OSError as error:
                # One is being removed, or damaged.
                log.info("the uv cache can not be measured now", error=str(error))
                return False
            self._weighed, self._sizes = numbers, dict(zip(numbers, sizes, strict=True))
        return True

    async def _remove_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        kept = {*self._pins.values(), *(number for number, until in self._leases.items() if until > now)}
        oldest_use = self._now() - self._max_idle if self._max_idle else 0.0

        def remove() -> Verdict:
            weighed, newer = [], set[str]()
            fresh = self._now() - LEASE_SECONDS
            for each in reversed(self._generations.held):
                own = each.environments.keys() - newer
                uses = tuple(self._generations.last_use(digest, each) for digest in own)
                weighed.append(Weighed(each.number, self._sizes.get(each.number, 0), uses))
                newer |= own
                # Whoever had it prepared is about to take it.
                kept.update({each.number} if any(e.prepared > fresh for e in each.environments.values()) else ())
            verdict = judge(weighed[::-1], kept, oldest_use=oldest_use, limit=self._size_limit)
            self._generations.remove(verdict.gone, ())
            if verdict.close:
                self._generations.close()
            return verdict

        try:
            verdict = await self._on_disk(remove)
        except OSError as error:
            log.warning("the uv cache can not be tidied", error=str(error))
            return
        if verdict.gone:
            log.info("environments removed that were not used", generations=verdict.gone)

    async def until_nothing_is_prepared(self) -> None:
        """Returns once every preparation has ended; one that was cancelled has cleared up then."""
        await self._preparing.idle()

    async def settle(self) -> None:
        """Returns once nothing is prepared or pruned any more."""
        await self.until_nothing_is_prepared()
        working = [task for task in (self._pruning, self._tidying, self._verifying) if task is not None]
        if working:
            await asyncio.wait(working)

    def _is_fresh(self, digest: str, max_age: float) -> bool:
        held = self._generations.find(digest)
        return held is not None and (not max_age or self._now() - held.environments[digest].prepared <= max_age)

    async def _ensure_now(self, needs: Needs, python_version: str, image_digest: str) -> Generation:
        digest = needs.digest(python_version, image_digest, self._index_url)
        if self._generations.find(digest) is None:
            self._urgent += 1
            self._calm.clear()
            try:
                await self._prepare_once(needs, digest, python_version, image_digest)
            finally:
                self._urgent -= 1
                if not self._urgent:
                    self._calm.set()
        return self._hand_out(digest)

    async def _forget_vanished(self) -> None:
        """No run is given a generation whose folder is gone; that is one look per generation, and there are few."""
        held = self._generations.held
        gone = await self._on_disk(lambda: {x.number for x in held if not self._generations.path(x.number).is_dir()})
        if gone:
            async with self._changing:
                gone &= {each.number for each in self._generations.held}
                log.error("generations of the uv cache have vanished: prepared anew", numbers=sorted(gone))
                await self._on_disk(lambda: self._generations.forget(gone))

    async def _needs(self, code: Path, python_version: str, image_digest: str) -> tuple[Needs, str]:
        try:
            needs = await self._on_disk(lambda: Needs.of(code))
        except UnreadableHeader as error:
            raise EnvironmentFault(str(error), f"{error}\n".encode()) from error
        return needs, needs.digest(python_version, image_digest, self._index_url)

    async def _prepare_once(self, needs: Needs, digest: str, python_version: str, image_digest: str) -> None:
        # Without requirements too: what a preparation for others leaves behind is enough for those.
        base = Needs().digest(python_version, image_digest, self._index_url)
        await self._preparing.do(digest, lambda: self._prepare(needs, digest, base, python_version))

    def _hand_out(self, digest: str, held: Held | None = None) -> Generation:
        held = held or self._generations.find(digest)
        assert held is not None
        self._leases[held.number] = asyncio.get_running_loop().time() + LEASE_SECONDS
        self._used[held.number] = next(self._uses)
        self._disk.submit(self._generations.touch, digest, self._now())
        environment = held.environments[digest]
        path = self._generations.path(held.number)
        return Generation(
            str(held.number),
            path,
            environment.packages,
            environment.offline,
            digest,
            environment.prepared,
            environment.seconds,
            environment.python,
        )

    async def _prepare(self, needs: Needs, digest: str, base_digest: str, python_version: str) -> None:
        await self.clear_up()
        began = asyncio.get_running_loop().time()
        name = f"{digest.removeprefix('sha256:')[:12]}-{next(self._names)}"
        async with self._changing:
            base = self._generations.base
            staging = await self._on_disk(lambda: self._generations.stage(name, base))
        try:
            await self._on_disk(lambda: needs.write(staging / "code"))
            log.info("preparing an environment", environment=digest)
            variables = PREPARER_ENVIRONMENT | constraints(needs.versions)
            spec = PreparerSpec(name, staging / "code", staging / "cache", python_version, variables)
            reach(AgentPoint.STAGED)
            result = await self._preparer.run_preparer(spec)
            _check(result)
            reach(AgentPoint.PACKAGES_INSTALLED)
            seconds = asyncio.get_running_loop().time() - began
            environment = Environment(
                installed(result.output), result.offline, self._now(), seconds, interpreter(result.output)
            )
            environments = {digest: environment}
            if self._generations.find(base_digest) is None:
                environments.setdefault(base_digest, replace(environment, packages=()))
            script = digest if needs.header else ""
            async with self._changing:
                held = await self._on_disk(lambda: self._generations.publish(staging, base, environments, script))
            log.info("environment prepared", environment=digest, generation=held.number, offline=result.offline)
        finally:
            await asyncio.shield(self._on_disk(lambda: self._generations.discard(staging)))
        await self.prune()
        self._tidying = asyncio.create_task(self.tidy(), name="tidy the uv cache")

    async def _on_disk(self, operation: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, operation)


def _check(result: PreparerResult) -> None:
    if result.exit_code == 0:
        return
    output = without_listing(result.output)
    if b"os error 28" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise EnvironmentFault(f"the requirements can not be installed: {explain(output)}", output)
