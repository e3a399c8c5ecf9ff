"""Which environment a run gets, and having it prepared if no generation holds it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PREPARE_SECONDS
from fastflow_agent.singleflight import SingleFlight
from fastflow_agent.uvcache.claims import Claims
from fastflow_agent.uvcache.disk import Disk, free_bytes
from fastflow_agent.uvcache.generations import Generations, Held
from fastflow_agent.uvcache.needs import Needs, UnreadableHeader
from fastflow_agent.uvcache.preparation import Preparation, Preparer
from fastflow_agent.uvcache.refusal import EnvironmentFault
from fastflow_agent.uvcache.soundness import Soundness
from fastflow_agent.uvcache.turns import Turns
from fastflow_agent.uvcache.upkeep import Upkeep

log = structlog.get_logger(__name__)

SIZE_LIMIT = 20 << 30
"""Bytes on disk of all generations together: room for some sets of the largest packages there are."""

MAX_IDLE_SECONDS = 30 * 24 * 3600.0
"""Environments of what runs once a month are still there."""


Waits = Callable[[int], None]
"""Is told how many are prepared before what it waits for, whenever that may have changed; 0 = it is being prepared."""


@dataclass(frozen=True)
class Generation:
    """A generation and one environment in it. `path` never changes; `packages` as `origins.told` tells them.

    `environment` names the environment; `prepared`, `seconds` and `python` as in `Environment`. `unmet` says that the
    code asks for another Python, "" if it does not or the generation was not prepared ahead.
    """

    id: str
    path: Path
    packages: tuple[str, ...] = ()
    offline: bool = False
    environment: str = ""
    prepared: float = 0.0
    seconds: float = 0.0
    python: str = ""
    unmet: str = ""


class UvCache:
    """Use from one event loop. After a restart, first pin what is in use, then ask for environments."""

    def __init__(
        self,
        generations: Generations,
        preparer: Preparer,
        index_url: str,
        disk: Disk,
        *,
        now: Callable[[], float],
        size_limit: int,
        max_idle: float,
        prepare_seconds: float,
    ) -> None:
        self._generations = generations
        self._index_url = index_url
        self._disk = disk
        self._now = now
        self._claims = Claims(asyncio.get_running_loop().time)
        self._soundness = Soundness(generations, disk)
        self._preparation = Preparation(
            generations, preparer, disk, self._claims, self._soundness, now, prepare_seconds
        )
        self._upkeep = Upkeep(generations, disk, self._claims, now, size_limit, max_idle)
        self._awaited: dict[str, list[Waits]] = {}
        self._ahead: dict[str, list[Waits]] = {}
        self._turns = Turns(self._awaited.__contains__, self._tell, asyncio.get_running_loop().call_later)
        self._calm = asyncio.Event()
        self._calm.set()
        self._preparing: SingleFlight[None] = SingleFlight()
        self._background: dict[str, asyncio.Task[None]] = {}

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
        prepare_seconds: float = PREPARE_SECONDS,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> UvCache:
        """Opens the cache under `folder`. `owner` is the user id containers run as, if it is not this process's.

        `index_url` names the package index in use: another index makes other environments. `now` is the wall clock, in
        seconds since 1970. `size_limit` is in bytes on disk; environments unused for `max_idle` seconds may go (0 =
        they may stay). A preparation is stopped after `prepare_seconds`. `free_bytes` is the room on the disk of a
        folder. Raises OSError.
        """
        disk = Disk(folder, free_bytes)
        generations = Generations(folder, os.geteuid() if owner is None else owner)
        await disk.run(generations.load)
        return cls(
            generations,
            preparer,
            index_url,
            disk,
            now=now,
            size_limit=size_limit,
            max_idle=max_idle,
            prepare_seconds=prepare_seconds,
        )

    async def ensure(
        self,
        code: Path,
        python_version: str,
        image_digest: str,
        packages: Sequence[str] = (),
        waits: Waits = lambda ahead: None,
    ) -> Generation:
        """Returns a generation that holds what the unpacked `code` needs, and has it prepared if there is none.

        With exactly these `packages`, as `origins.told` tells them, if it has them or they can still be had; else with
        what the needs resolve to, as without any. While it is prepared or waits for that, `waits` is told so. Pin it at
        once. Raises EnvironmentFault with uv's own output, what the runtime raises, or OSError.
        """
        needs, digest = await self._needs(code, python_version, image_digest)
        await self._soundness.forget_vanished()
        if packages:
            if held := self._generations.find(digest, tuple(packages)):
                return self._hand_out(digest, held)
            if needs.can_be_held:
                fixed = replace(needs, versions=tuple(packages))
                fixed_digest = await self._digest(fixed, python_version, image_digest)
                try:
                    return await self._ensure_now(fixed, fixed_digest, python_version, waits)
                except EnvironmentFault as fault:
                    log.info("packages of an earlier run can not be had again", environment=digest, why=str(fault))
        return await self._ensure_now(needs, digest, python_version, waits)

    async def ensure_ahead(
        self,
        code: Path,
        python_version: str,
        image_digest: str,
        max_age: float,
        waits: Waits = lambda ahead: None,
    ) -> Generation:
        """As `ensure`, for an environment no run waits for: what runs need is prepared first.

        One that was prepared more than `max_age` seconds ago (0 = no limit) is prepared again, in a new generation;
        runs get the old one until that has succeeded.
        """
        needs, digest = await self._needs(code, python_version, image_digest)
        if not self._is_fresh(digest, max_age):
            await self._calm.wait()
            # A run may have had it prepared meanwhile.
            if not self._is_fresh(digest, max_age):
                await self._prepare_ahead(needs, digest, python_version, waits)
        held = self._hand_out(digest)
        return replace(held, unmet=await self._disk.run(lambda: needs.unmet(held.python)))

    def environments(self) -> list[str]:
        """Digests of all environments at hand."""
        return self._generations.environments

    def pin(self, generation: Generation | str, slot: SlotId) -> None:
        """Keeps a generation, given itself or by id, while `slot` uses it. A slot pins one; pinning again replaces."""
        self._claims.pin(int(generation if isinstance(generation, str) else generation.id), slot)

    def unpin(self, slot: SlotId) -> None:
        """Ends the use by `slot`, if there is one; what nobody needs any more is removed in the background."""
        if self._claims.unpin(slot):
            self._begin("prune the uv cache", self._upkeep.prune)

    async def clear_up(self) -> None:
        """Removes what a dead agent left half done; only the first call finds any. Raises what the runtime raises."""
        await self._preparation.clear_up()

    async def tidy(self) -> None:
        """Removes what nobody needs, what was not used for too long, and of too much what was used longest ago."""
        await self._upkeep.tidy()

    async def verify(self) -> None:
        """Looks at all files of all generations; damaged ones are not handed out any more, and prepared anew."""
        await self._soundness.verify()

    def suspect(self, slot: SlotId) -> None:
        """A run of this slot failed: what it used is looked at in the background, each generation now and then."""
        number = self._claims.pinned(slot)
        if number is not None:
            self._begin("verify a generation", lambda: self._soundness.suspect(number))

    async def until_nothing_is_prepared(self) -> None:
        """Returns once every preparation has ended; one that was cancelled has cleared up then."""
        await self._preparing.idle()

    async def settle(self) -> None:
        """Returns once nothing is prepared, removed, looked at or noted any more."""
        await self.until_nothing_is_prepared()
        if self._background:
            await asyncio.wait(self._background.values())
        await self._disk.settle()

    def _begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work that nobody waits for; while it is done, no more of the same is begun."""
        if name not in self._background:
            task = self._background[name] = asyncio.create_task(work(), name=name)
            task.add_done_callback(lambda _: self._background.pop(name))

    def _is_fresh(self, digest: str, max_age: float) -> bool:
        held = self._generations.find(digest)
        return held is not None and (not max_age or self._now() - held.environments[digest].prepared <= max_age)

    async def _ensure_now(self, needs: Needs, digest: str, python_version: str, waits: Waits) -> Generation:
        if self._generations.find(digest) is None:
            self._awaited.setdefault(digest, []).append(waits)
            self._calm.clear()
            self._turns.look()
            try:
                await self._prepare_once(needs, digest, python_version)
            finally:
                self._awaited[digest].remove(waits)
                if not self._awaited[digest]:
                    del self._awaited[digest]
                if not self._awaited:
                    self._calm.set()
                self._turns.look()
        return self._hand_out(digest)

    async def _prepare_ahead(self, needs: Needs, digest: str, python_version: str, waits: Waits) -> None:
        told = self._ahead.setdefault(digest, [])
        told.append(waits)
        # It may be under way already, begun by another.
        self._tell()
        try:
            await self._prepare_once(needs, digest, python_version)
        finally:
            told.remove(waits)
            if not told:
                del self._ahead[digest]

    def _tell(self) -> None:
        for digest, ahead in self._turns.ahead().items():
            for waits in (*self._awaited.get(digest, ()), *self._ahead.get(digest, ())):
                waits(ahead)

    async def _needs(self, code: Path, python_version: str, image_digest: str) -> tuple[Needs, str]:
        try:
            needs = await self._disk.run(lambda: Needs.of(code))
        except UnreadableHeader as error:
            raise EnvironmentFault(str(error), f"{error}\n".encode()) from error
        return needs, await self._digest(needs, python_version, image_digest)

    async def _digest(self, needs: Needs, python_version: str, image_digest: str) -> str:
        # Needs may be as large as code may be: what reads all of them is no work for the event loop.
        return await self._disk.run(lambda: needs.digest(python_version, image_digest, self._index_url))

    async def _prepare_once(self, needs: Needs, digest: str, python_version: str) -> None:
        async def prepare() -> None:
            async with self._turns.turn(digest):
                await self._preparation.prepare(needs, digest, python_version)
            self._begin("tidy the uv cache", self._upkeep.tidy)

        await self._preparing.do(digest, prepare)

    def _hand_out(self, digest: str, held: Held | None = None) -> Generation:
        held = held or self._generations.find(digest)
        assert held is not None
        self._claims.lease(held.number)
        self._disk.begin(lambda: self._generations.touch(digest, self._now()))
        environment = held.environments[digest]
        return Generation(
            str(held.number),
            self._generations.path(held.number),
            environment.packages,
            environment.offline,
            digest,
            environment.prepared,
            environment.seconds,
            environment.python,
        )
