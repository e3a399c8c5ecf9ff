"""Removes generations that are of no more use.

What is removed is chosen and taken out without an await between, so that nobody is given it meanwhile; its files go
after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import structlog

from fastflow_agent.uvcache import tree
from fastflow_agent.uvcache.claims import Claims
from fastflow_agent.uvcache.disk import Disk
from fastflow_agent.uvcache.generations import Generations, Held
from fastflow_agent.uvcache.pruning import Stock, Weighed, judge

log = structlog.get_logger(__name__)


class Upkeep:
    """Prunes and tidies. `now` is the wall clock; for the limits see `UvCache.open`."""

    def __init__(
        self,
        generations: Generations,
        disk: Disk,
        claims: Claims,
        now: Callable[[], float],
        size_limit: int,
        max_idle: float,
    ) -> None:
        self._generations = generations
        self._disk = disk
        self._claims = claims
        self._now = now
        self._size_limit = size_limit
        self._max_idle = max_idle
        self._weighed: tuple[int, ...] = ()
        self._sizes: dict[int, int] = {}
        self._stock_size = 0

    async def prune(self) -> None:
        """Removes generations that nobody uses and of whose environments there are newer ones."""
        async with self._disk.changing:
            try:
                remains = await self._disk.run(self._generations.remains)
                kept = self._claims.kept()
                gone = self._generations.superseded(kept)
                await self._remove(gone, [number for number in remains if number not in kept])
            except OSError as error:
                log.warning("the uv cache can not be pruned", error=str(error))

    async def tidy(self) -> None:
        """Removes what was not used for too long, and what was used longest ago where there is too much of it."""
        try:
            await self._weigh()
            async with self._disk.changing:
                weighed = await self._disk.run(self._environments)
                await self._remove(self._judge(weighed), [])
        except OSError as error:
            log.warning("the uv cache can not be tidied", error=str(error))
        await self.prune()

    async def _remove(self, numbers: Collection[int], remains: Sequence[int]) -> None:
        out = self._generations.take_out(numbers)
        if out or remains:
            log.info("generations of the uv cache removed", generations=[each.number for each in out], remains=remains)
            await self._disk.run(lambda: self._generations.remove(out, remains))

    async def _weigh(self) -> None:
        """Measures the generations if there are others than at the last time. Raises OSError."""
        while True:
            before = self._generations.held
            try:
                await self._measure(before)
                return
            except FileNotFoundError:
                # One that was pruned meanwhile is missed by nobody.
                if before == self._generations.held:
                    raise

    async def _measure(self, generations: Sequence[Held]) -> None:
        held = sorted(generations, key=lambda each: (each.stock, -each.number))
        numbers = tuple(each.number for each in held)
        if numbers != self._weighed:
            paths = [self._generations.path(number) for number in numbers]
            stock = [path for each, path in zip(held, paths, strict=True) if each.stock]
            sizes = await self._disk.run(lambda: tree.sizes(paths))
            self._stock_size = sum(await self._disk.run(lambda: tree.sizes(stock)))
            self._weighed, self._sizes = numbers, dict(zip(numbers, sizes, strict=True))

    def _environments(self) -> list[Weighed]:
        """All generations with an environment. Blocks."""
        weighed, newer = [], set[str]()
        for each in reversed(self._generations.held):
            if not each.stock:
                own = each.environments.keys() - newer
                uses = [self._generations.last_use(digest, each) for digest in own]
                # One with nothing of its own is for `prune`.
                weighed.append(Weighed(each.number, self._sizes.get(each.number, 0), max(uses, default=math.inf)))
                newer |= own
        return weighed

    def _judge(self, weighed: Sequence[Weighed]) -> tuple[int, ...]:
        held = self._generations.stock
        stock = Stock(held.number, self._stock_size, self._sizes.get(held.number, 0)) if held else None
        oldest_use = self._now() - self._max_idle if self._max_idle else -math.inf
        return judge(weighed, stock, self._claims.kept(), oldest_use=oldest_use, limit=self._size_limit)
