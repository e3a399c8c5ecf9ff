"""After the verdict: the container goes, the log is delivered to its last byte, and at the end nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog
from fastflow.backoff import Backoff
from fastflow.deletion import delete_trees
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, Dossier
from fastflow_agent.attempts.output import Output
from fastflow_agent.facts import ContainerGone
from fastflow_agent.model import Reason
from fastflow_agent.records import Forget, Sealed
from fastflow_agent.runtime.base import RuntimeFault

log = structlog.get_logger(__name__)

REMOVE_AGAIN_SECONDS = 5.0
"""A container the engine can not remove (a process that does not die) holds its capacity; asked again this often."""

DELETE_AGAIN_MAXIMUM_SECONDS = 60.0
"""Back-off where a slot's folder can not be deleted: it holds up nothing but its own room on the disk."""


async def remove_container(dossier: Dossier) -> None:
    """Remove the container and tell that its resources are free; returns only when they are."""
    services, slot = dossier.services, dossier.slot
    if not slot:
        # Its container is one of those that no journal is bound to any more, if it had one.
        await services.until_strays_gone()
        await dossier.record(facts=(ContainerGone(),))
        return
    while True:
        try:
            await dossier.patiently(lambda: services.runtime.remove(slot))
            break
        except RuntimeFault as error:
            log.warning("container can not be removed yet", attempt=str(dossier.key), error=str(error))
            await services.clock.sleep(REMOVE_AGAIN_SECONDS)
    dossier.reach(AgentPoint.CONTAINER_REMOVED)
    if not dossier.history.container_gone:
        await dossier.record(facts=(ContainerGone(),))
    dossier.reach(AgentPoint.GONE)
    ended = dossier.history.ended
    if ended is not None and ended.reason is Reason.EXIT_CODE:
        # Mostly the program's own fault; but a damaged environment fails runs until somebody looks.
        services.uvcache.suspect(slot)
    services.uvcache.unpin(slot)
    services.bundles.unpin(slot)
    paths = dossier.paths
    await _delete(dossier, paths.tmp, paths.upper, paths.work)


async def seal_log(dossier: Dossier, output: Output) -> None:
    """Deliver the log to its last byte; returns when the control plane has it, or wants to forget it."""
    if not dossier.history.sealed:
        dossier.wishes.doubted = False
        await _seal(dossier, output)


async def seal_log_again(dossier: Dossier, output: Output) -> None:
    """See that the log is whole at a control plane that wants the attempt still: what it had, it may have lost."""
    dossier.wishes.doubted = False
    await output.close()
    await _seal(dossier, output)


async def _seal(dossier: Dossier, output: Output) -> None:
    sealing = asyncio.ensure_future(output.seal())
    forgotten = asyncio.ensure_future(dossier.wishes.until(lambda: dossier.wishes.forget))
    try:
        await asyncio.wait({sealing, forgotten}, return_when=asyncio.FIRST_COMPLETED)
        if sealing.done():
            dossier.reach(AgentPoint.LOG_SEALED)
            await dossier.record(Sealed(sealing.result()))
            dossier.reach(AgentPoint.SEALED)
    finally:
        for task in (sealing, forgotten):
            task.cancel()
        await asyncio.wait({sealing, forgotten})


async def delete_all(dossier: Dossier, output: Output) -> None:
    """Delete all that is kept of the attempt, its journal last."""
    await output.close()
    if not dossier.history.forgotten:
        # Without it, a deletion that is interrupted goes on once the control plane says FORGET again. So a full disk
        # must not hold up what makes room on it.
        with contextlib.suppress(OSError):
            await dossier.journal.append(Forget())
    dossier.reach(AgentPoint.FORGET)
    await dossier.journal.close()
    if dossier.slot:
        await _until_deleted(dossier)
    dossier.reach(AgentPoint.DELETED)


async def _until_deleted(dossier: Dossier) -> None:
    """Delete the slot's folder, and try again while something in it can not be deleted."""
    services, paths = dossier.services, dossier.paths
    backoff = Backoff(RETRY_INITIAL_SECONDS, DELETE_AGAIN_MAXIMUM_SECONDS)
    loop = asyncio.get_running_loop()
    while True:
        try:
            await loop.run_in_executor(services.cleanup, delete_slot, paths.root, paths.journal)
            return
        except OSError as error:
            log.warning("slot not deleted yet", folder=str(paths.root), error=str(error))
            await services.clock.sleep(backoff.next())


def delete_slot(root: Path, journal: Path) -> None:
    """Delete a slot's folder; the journal only once all else is gone, so that a crash is seen again.

    Blocks; raises OSError.
    """
    if root.is_dir():
        delete_trees(*(entry for entry in root.iterdir() if entry != journal))
        delete_trees(root)


async def _delete(dossier: Dossier, *folders: Path) -> None:
    try:
        await asyncio.get_running_loop().run_in_executor(dossier.services.cleanup, delete_trees, *folders)
    except OSError as error:
        # Not lost: the whole slot folder is deleted at the end.
        log.warning("folders not deleted", slot=dossier.slot, error=str(error))
