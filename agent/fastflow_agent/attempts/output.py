"""The output of one attempt: its spool, and its way to the control plane."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from fastflow.backoff import Backoff
from fastflow.finishing import take_over

from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS, Dossier
from fastflow_agent.desired import Desired
from fastflow_agent.facts import LogLossFound
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.lost import Lost
from fastflow_agent.logs.redact import Masks
from fastflow_agent.logs.spool import Spool, losses_at
from fastflow_agent.reconcile import rebooted

log = structlog.get_logger(__name__)
T = TypeVar("T")

_NO_LIMIT = 2**62


class Output:
    """Ships nothing before the control plane has named the secrets to hide; after a restart that is with FULL."""

    def __init__(self, dossier: Dossier) -> None:
        self._dossier = dossier
        self._spool: Spool | None = None
        self._opening = asyncio.Lock()
        self._noted: set[tuple[str, int]] = set()

    @property
    def offset(self) -> int:
        """Bytes the control plane is known to have."""
        history = self._dossier.history
        if self._spool is None or history.sealed:
            return history.end_offset
        return self._dossier.services.shipper.durable(self._dossier.key)

    async def open(self, *, empty: bool = False) -> Spool:
        """Begin to ship, once the masks are known; an `empty` log needs none. Raises OSError."""
        wishes = self._dossier.wishes
        while True:
            await wishes.until(lambda: wishes.log or (empty and wishes.newest))
            async with self._opening:
                if self._spool is not None:
                    return self._spool
                # It may have been retracted while another one tried.
                if (word := wishes.log or wishes.newest) is not None:
                    return await self._begin(word)

    async def ship(self) -> None:
        """Begin to ship, and try again while the disk refuses."""
        await self._patiently(self.open)

    async def explain(self, words: bytes) -> None:
        """Put what kept the attempt from starting into its log, unless an earlier try did."""
        try:
            spool = await self.open()
            if spool.size() == 0:
                await self._blocking(lambda: spool.append(words))
        except OSError as error:
            log.warning("output not kept", attempt=str(self._dossier.key), error=str(error))

    async def seal(self) -> int:
        """Ship the rest, now that nobody writes any more; the offset at which the log ends."""
        await self.open(empty=await self._blocking(self._is_empty))
        return await self._dossier.services.shipper.seal(self._dossier.key, self._until_losses_told)

    async def close(self) -> None:
        """Let go of the spool; its files stay."""
        if self._spool is not None:
            # At once: the shipper knows it no more from here on, and may be asked meanwhile how far it is.
            self._spool = None
            await self._dossier.services.shipper.remove(self._dossier.key)

    async def note_losses(self) -> None:
        """Let go of the spool, and note what is lost of the log, as far as that was not noted.

        A dropped range is noted when it is acknowledged, before the log is sealed; but a control plane that wants no
        more of it may have all of it forgotten before that.
        """
        durable = self.offset
        await self.close()
        history = self._dossier.history
        if not self._dossier.slot:
            return
        look = partial(losses_at, self._dossier.paths.log, history.intent.log_limit, durable)
        for loss in await self._patiently(lambda: self._blocking(look)):
            # What lies behind the end of a sealed log was found out before the seal, and is part of why it ends there.
            if not history.sealed or loss.offset < history.end_offset:
                self._lost(loss)

    async def _begin(self, word: Desired) -> Spool:
        opening = self._begun(lambda: self._open(word))
        self._spool = spool = await take_over(opening, Spool.close)
        services = self._dossier.services
        services.shipper.add(self._dossier.key, spool, word.durable_offset, self._lost, self._dossier.backlog.tell)
        return spool

    def _open(self, word: Desired) -> Spool:
        history = self._dossier.history
        if not self._dossier.slot:
            return _nothing(word.durable_offset)
        path = self._dossier.paths.log
        if not history.created:
            _make(path)
        return Spool.open(
            path,
            spool_quota=self._dossier.services.spool_quota,
            start_offset=word.durable_offset,
            masks=word.masks,
            log_limit=history.intent.log_limit,
            inode=history.log_inode,
            host_went_down=rebooted(history, self._dossier.services.boot_id),
            length=self._dossier.log_bytes,
            pauses=history.intent.pause_on_backlog,
        )

    def _is_empty(self) -> bool:
        """Whether nothing was ever written: no program ran, and nobody explained why."""
        if not self._dossier.slot:
            return True
        try:
            return self._dossier.history.releasing is None and self._dossier.paths.log.stat().st_size == 0
        except FileNotFoundError:
            return not self._dossier.history.created

    def _lost(self, loss: LogLoss) -> None:
        found = (loss.kind, loss.offset)
        if found not in self._noted and found not in self._dossier.history.losses:
            self._noted.add(found)
            now = self._dossier.services.clock.now()
            self._dossier.note(LogLossFound(loss.kind, loss.offset, now, loss.bytes, loss.message))

    async def _until_losses_told(self) -> None:
        if self._noted or self._dossier.history.losses:
            await self._dossier.until_told()

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, asked again while the disk refuses."""
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        while True:
            try:
                return await call()
            except OSError as error:
                self._dossier.services.health.disk_refused(error)
                await self._dossier.services.clock.sleep(backoff.next())

    async def _blocking(self, call: Callable[[], T]) -> T:
        return await self._begun(call)

    def _begun(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._dossier.services.disk, call)


def _make(path: Path) -> None:
    # Only the agent's, until the runtime hands it to the container's user: no container exists yet.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def _nothing(end: int) -> Spool:
    """The log of an attempt that never was here: nothing follows what the control plane has."""
    descriptor = os.memfd_create("no-output", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, end)
    return Spool(
        descriptor,
        Lost(Path(os.devnull)),
        start_offset=end,
        masks=Masks(),
        log_limit=_NO_LIMIT,
        spool_quota=_NO_LIMIT,
    )
