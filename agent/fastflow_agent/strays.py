"""Containers and folders of this agent that no journal is bound to, and what was being prepared when it died."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection

import structlog

from fastflow_agent.attempts.closing import REMOVE_AGAIN_SECONDS, delete_slot
from fastflow_agent.attempts.dossier import Services
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import RuntimeFault

log = structlog.get_logger(__name__)

STRAY_STOP_SECONDS = 10.0
"""Most that a stray container gets between SIGTERM and its removal: what an attempt gets by default."""


class Strays:
    """Finds what was left behind by a lost journal, says so, and removes it after the orphans' grace."""

    def __init__(
        self, services: Services, conditions: Conditions, bound: Callable[[], Collection[SlotId]], folders: list[SlotId]
    ) -> None:
        """`bound` are the slots with a journal at any time, `folders` those without one found at the start."""
        self._services = services
        self._conditions = conditions
        self._bound = bound
        self._folders = folders

    async def clear(self, orphan_grace: asyncio.Future[float]) -> None:
        """Remove all strays there are; the grace (seconds) is known once the control plane has named it."""
        await self._clear_up_preparations()
        # One of these may be over by the time the engine has told what there was.
        bound = set(self._bound())
        containers = await self._find()
        strays = sorted(slot for slot in containers if slot not in bound.union(self._bound()))
        for slot in self._folders:
            if slot not in containers:
                await self._delete_folder(slot)
        if strays:
            self._say(f"containers of lost attempts are stopped after the grace for orphans: {', '.join(strays)}")
            await self._services.clock.sleep(await asyncio.shield(orphan_grace))
        while strays := [slot for slot in strays if not await self._removed(slot)]:
            self._say(f"containers of lost attempts can not be removed, which is tried again: {', '.join(strays)}")
            await self._services.clock.sleep(REMOVE_AGAIN_SECONDS)
        self._conditions.clear(ConditionType.STRAY_CONTAINERS)

    def _say(self, message: str) -> None:
        self._conditions.hold(ConditionType.STRAY_CONTAINERS, message)

    async def _find(self) -> Collection[SlotId]:
        """All slots that have a container. Until the engine tells, nothing is known to be gone."""
        while True:
            try:
                return await self._services.patiently(self._services.runtime.slots)
            except RuntimeFault as error:
                self._say(f"it is not known whether containers of lost attempts are left: {error}")
                await self._services.clock.sleep(REMOVE_AGAIN_SECONDS)

    async def _clear_up_preparations(self) -> None:
        try:
            await self._services.patiently(self._services.uvcache.clear_up)
        except (RuntimeFault, OSError) as error:
            # The next preparation tries again, and fails by it.
            log.warning("what a dead agent was preparing can not be removed", error=str(error))

    async def _removed(self, slot: SlotId) -> bool:
        """Stop and remove a stray; false if the engine can not do that now, as with a process that does not die."""
        runtime = self._services.runtime
        log.warning("stray container is stopped", slot=slot)
        try:
            if await self._services.patiently(lambda: runtime.signal(slot, signal.SIGTERM)):
                await self._until_end(slot)
            await self._services.patiently(lambda: runtime.remove(slot))
        except RuntimeFault as error:
            log.warning("stray container can not be removed yet", slot=slot, error=str(error))
            return False
        await self._delete_folder(slot)
        return True

    async def _until_end(self, slot: SlotId) -> None:
        """Return once a stray has ended, or has had its time."""
        end = asyncio.ensure_future(self._services.patiently(lambda: self._services.runtime.wait(slot)))
        late = asyncio.ensure_future(self._services.clock.sleep(STRAY_STOP_SECONDS))
        try:
            await asyncio.wait({end, late}, return_when=asyncio.FIRST_COMPLETED)
            if end.done() and end.exception():
                # Nobody tells when it ends.
                await late
        finally:
            end.cancel()
            late.cancel()
            await asyncio.wait({end, late})

    async def _delete_folder(self, slot: SlotId) -> None:
        paths = self._services.paths(slot)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._services.cleanup, delete_slot, paths.root, paths.journal)
        except OSError as error:
            log.warning("folder not deleted", folder=str(paths.root), error=str(error))
