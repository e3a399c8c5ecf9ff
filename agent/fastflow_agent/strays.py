"""Containers and folders of this agent that no journal is bound to, and what was being prepared when it died."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection

import structlog

from fastflow_agent.attempts.closing import delete_slot
from fastflow_agent.attempts.dossier import Services
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import RuntimeFault

log = structlog.get_logger(__name__)

STRAY_STOP_SECONDS = 10.0
"""Between SIGTERM and the removal of a stray container: what an attempt gets by default."""


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
        containers = await self._services.patiently(self._services.runtime.slots)
        strays = sorted(slot for slot in containers if slot not in self._bound())
        for slot in self._folders:
            if slot not in containers:
                await self._delete_folder(slot)
        if not strays:
            return
        self._conditions.hold(
            ConditionType.STRAY_CONTAINERS,
            f"containers of lost attempts are stopped after the grace for orphans: {', '.join(strays)}",
        )
        await self._services.clock.sleep(await asyncio.shield(orphan_grace))
        for slot in strays:
            await self._remove(slot)
        self._conditions.clear(ConditionType.STRAY_CONTAINERS)

    async def _clear_up_preparations(self) -> None:
        try:
            await self._services.patiently(self._services.uvcache.clear_up)
        except (RuntimeFault, OSError) as error:
            # The next preparation tries again, and fails by it.
            log.warning("what a dead agent was preparing can not be removed", error=str(error))

    async def _remove(self, slot: SlotId) -> None:
        runtime = self._services.runtime
        log.warning("stray container is stopped", slot=slot)
        if await self._services.patiently(lambda: runtime.signal(slot, signal.SIGTERM)):
            await self._services.clock.sleep(STRAY_STOP_SECONDS)
        await self._services.patiently(lambda: runtime.remove(slot))
        await self._delete_folder(slot)

    async def _delete_folder(self, slot: SlotId) -> None:
        paths = self._services.paths(slot)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._services.cleanup, delete_slot, paths.root, paths.journal)
        except OSError as error:
            log.warning("folder not deleted", folder=str(paths.root), error=str(error))
