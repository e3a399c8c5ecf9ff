"""How an environment is prepared: nothing that code of its packages could have written, another one is made of.

Packages are fetched into the stock by uv alone. The environment is made in a copy of that, without network and logins,
for code of its packages runs there: uv itself starts a Python that sees them, and that runs their `.pth` files. What
has to be built, or can not be said in a requirements file, is had all at once, in a copy of which nothing goes back.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.runtime.base import PreparerResult, PreparerSpec, PreparerStep
from fastflow_agent.uvcache.claims import Claims
from fastflow_agent.uvcache.disk import Disk
from fastflow_agent.uvcache.generations import Environment, Generations, Held
from fastflow_agent.uvcache.holding import commits, constraints, differences
from fastflow_agent.uvcache.needs import Needs, installed, interpreter, without_listing
from fastflow_agent.uvcache.refusal import EnvironmentFault, refused
from fastflow_agent.uvcache.soundness import Soundness
from fastflow_agent.uvcache.tree import TreeFault, close_to_builds, is_closed_to_builds, open_to_builds
from fastflow_agent.uvcache.wheels import take_fetched

log = structlog.get_logger(__name__)

FULL_BYTES = 64 << 20
"""With less room than this after a failure, the disk is taken to be why. Words would prove nothing: a package's build
may say what it likes."""


class Preparer(Protocol):
    """What runs uv: a Runtime."""

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        """See `Runtime.run_preparer`."""

    async def remove_preparers(self) -> None:
        """See `Runtime.remove_preparers`."""


@dataclass(frozen=True)
class _Order:
    """What is to be prepared; `began` is when, by the loop's clock."""

    needs: Needs
    digest: str
    python_version: str
    began: float


class Preparation:
    """Prepares environments, each when asked to and within `limit` seconds.

    `now` is the wall clock, in seconds since 1970.
    """

    def __init__(
        self,
        generations: Generations,
        preparer: Preparer,
        disk: Disk,
        claims: Claims,
        soundness: Soundness,
        now: Callable[[], float],
        limit: float,
    ) -> None:
        self._generations = generations
        self._preparer = preparer
        self._disk = disk
        self._claims = claims
        self._soundness = soundness
        self._now = now
        self._limit = limit
        self._numbers = itertools.count(1)
        self._cleared = False

    async def clear_up(self) -> None:
        """See `UvCache.clear_up`."""
        async with self._disk.changing:
            if not self._cleared:
                await self._preparer.remove_preparers()
                await self._disk.run(self._generations.clear_staging)
                self._cleared = True

    async def prepare(self, needs: Needs, digest: str, python_version: str) -> None:
        """Makes a generation of what is needed, and leases it.

        Raises EnvironmentFault, what the runtime raises, or OSError.
        """
        await self.clear_up()
        log.info("preparing an environment", environment=digest)
        order = _Order(needs, digest, python_version, asyncio.get_running_loop().time())
        stock = None if needs.is_nothing else self._generations.stock
        # From before it is looked at: another preparation may put a newer one in its place meanwhile.
        with self._claims.holding(stock):
            base = stock if stock is not None and await self._soundness.is_sound(stock) else None
            try:
                await self._prepare(order, base, apart=False)
                return
            except EnvironmentFault as fault:
                if base is None or fault.known or self._left(order) <= 0:
                    raise
                log.warning("an environment is prepared once more, from nothing", environment=digest, why=str(fault))
        await self._prepare(order, None, apart=True)
        # Whatever is wrong with it can not be seen from outside.
        if stock := self._generations.stock:
            await self._soundness.forget({stock.number}, "an environment could be prepared without it only")

    async def _prepare(self, order: _Order, base: Held | None, *, apart: bool) -> None:
        """Prepares in a copy of `base`, and what goes `apart` without a change of the stock."""
        async with self._staged(order, base) as staging:
            fetched = await self._fetch(order, staging)
            if apart or not fetched:
                step = PreparerStep.BUILD if fetched is None else PreparerStep.INSTALL
                await self._make(order, staging, base, step)
                return
            async with self._disk.changing:
                stock = await self._changed(lambda: self._generations.publish_stock(staging, base))
                self._claims.lease(stock.number)
        with self._claims.holding(stock):
            async with self._staged(order, stock, fetched) as staging:
                await self._make(order, staging, stock, PreparerStep.INSTALL)

    async def _fetch(self, order: _Order, staging: Path) -> frozenset[str] | None:
        """Returns the names of the packages' archives; None if fetching them is not all. Raises EnvironmentFault."""
        if order.needs.is_nothing:
            return frozenset()
        if not order.needs.can_be_fetched:
            return None
        cache = staging / "cache"
        await self._disk.run(lambda: close_to_builds(cache))
        result = await self._run(order, staging, PreparerStep.FETCH)
        await self._disk.run(lambda: open_to_builds(cache))
        fetched = await self._disk.run(lambda: take_fetched(cache))
        if result.exit_code and is_closed_to_builds(result.output):
            return None
        await self._check(order, result, PreparerStep.FETCH)
        return fetched

    async def _make(self, order: _Order, staging: Path, base: Held | None, step: PreparerStep) -> None:
        result = await self._run(order, staging, step)
        await self._check(order, result, step)
        reach(AgentPoint.PACKAGES_INSTALLED)
        seconds = asyncio.get_running_loop().time() - order.began
        packages = installed(result.output)
        if commits(order.needs.versions) and (others := differences(order.needs.versions, packages)):
            # Taking commits, uv forgets what extras of the package were asked for, say.
            message = f"uv could not be held to these packages: {others}"
            raise EnvironmentFault(message, without_listing(result.output))
        environment = Environment(packages, result.offline, self._now(), seconds, interpreter(result.output))
        async with self._disk.changing:
            held = await self._changed(lambda: self._generations.publish(staging, base, order.digest, environment))
            # Before anything else is awaited: whoever asked for it is about to take it.
            self._claims.lease(held.number)
        log.info("environment prepared", environment=order.digest, generation=held.number, offline=result.offline)

    @asynccontextmanager
    async def _staged(
        self, order: _Order, base: Held | None, archives: Container[str] | None = None
    ) -> AsyncIterator[Path]:
        name = f"{order.digest.removeprefix('sha256:')[:12]}-{next(self._numbers)}"
        staging = self._generations.staging(name)
        try:
            async with self._disk.changing:
                await self._disk.run(lambda: self._generations.stage(staging, base, archives))
            await self._disk.run(lambda: order.needs.write(staging / "code"))
            yield staging
        finally:
            await self._disk.run(lambda: self._generations.discard(staging))

    async def _run(self, order: _Order, staging: Path, step: PreparerStep) -> PreparerResult:
        reach(AgentPoint.STAGED)
        variables = constraints(order.needs.versions) | commits(order.needs.versions)
        return await self._preparer.run_preparer(
            PreparerSpec(
                staging.name,
                staging / "code",
                staging / "cache",
                order.python_version,
                variables,
                step,
                seconds=max(self._left(order), 0.0),
            )
        )

    def _left(self, order: _Order) -> float:
        """Seconds within which all that is still to be done has to be done."""
        return order.began + self._limit - asyncio.get_running_loop().time()

    async def _check(self, order: _Order, result: PreparerResult, step: PreparerStep) -> None:
        if result.exit_code == 0:
            return
        if await self._disk.free_bytes() < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fault = refused(without_listing(result.output), order.needs.place)
        # What was fetched is to be found again: if it is not, it is uv's words that mislead.
        fault.known &= step is not PreparerStep.INSTALL
        raise fault

    async def _changed(self, publish: Callable[[], Held]) -> Held:
        try:
            return await self._disk.run(publish)
        except TreeFault as fault:
            raise EnvironmentFault(f"the packages can not be used: {fault}", f"{fault}\n".encode()) from fault
