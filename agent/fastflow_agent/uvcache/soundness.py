"""Whether generations are as they were published; those that are not, nobody is given any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from fastflow_agent.uvcache.disk import Disk
from fastflow_agent.uvcache.generations import Generations, Held

log = structlog.get_logger(__name__)

VERIFY_AGAIN_SECONDS = 300.0
"""A generation whose runs keep failing, for reasons of their own mostly, is looked at no more often."""


class Soundness:
    """Looks at generations, and has damaged ones forgotten."""

    def __init__(self, generations: Generations, disk: Disk) -> None:
        self._generations = generations
        self._disk = disk
        self._suspected: dict[int, float] = {}

    async def verify(self) -> None:
        """Looks at all files of all generations."""
        for held in self._generations.held:
            await self.is_sound(held)

    async def suspect(self, number: int) -> None:
        """Looks at a generation, now and then; others share its files, so if it is damaged, at all of them."""
        now = asyncio.get_running_loop().time()
        self._suspected = {each: when for each, when in self._suspected.items() if now < when + VERIFY_AGAIN_SECONDS}
        held = next((each for each in self._generations.held if each.number == number), None)
        if held is None or number in self._suspected:
            return
        self._suspected[number] = now
        if not await self.is_sound(held):
            await self.verify()

    async def forget_vanished(self) -> None:
        """No run is given a generation whose folder is gone: that is one look per generation."""
        held = self._generations.held
        paths = {each.number: self._generations.path(each.number) for each in held}
        gone = await self._disk.run(lambda: {number for number, path in paths.items() if not path.is_dir()})
        if gone:
            await self.forget(gone, "its folder has vanished")

    async def forget(self, numbers: Collection[int], why: str) -> None:
        """Has nobody be given these any more; what uses one now, keeps it."""
        async with self._disk.changing:
            out = self._generations.take_out(numbers)
            if out:
                gone = [each.number for each in out]
                log.error("generations of the uv cache are of no use: prepared anew", numbers=gone, why=why)
                try:
                    await self._disk.run(self._generations.forget)
                except OSError as error:
                    log.warning("the index of the uv cache can not be written", error=str(error))

    async def is_sound(self, held: Held) -> bool:
        """Whether a generation is as it was published: what is made of it is sealed as it is then."""
        damage = await self._disk.run(lambda: self._generations.damage(held))
        if damage:
            await self.forget({held.number}, damage)
        return not damage
