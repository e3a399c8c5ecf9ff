"""Ended attempts of which their agent no longer knows, for its data folder was lost, or which it never had.

Their logs end where they are: nobody delivers more. But a container may be left of them, which their agent finds by its
label and stops in the end. Until the agent reports that none is left, each holds its capacity.
"""

from collections.abc import Collection

import structlog
from fastflow.protocol import HOLDS_RELEASE, REPORTS_STRAYS

from fastflow_controlplane.clock import Clock
from fastflow_controlplane.conditions import is_told
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.store import LogKey, LogStore, StoreUnavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey, LogLoss
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, desired, events
from fastflow_controlplane.store.queries.desired import DesiredRow
from fastflow_controlplane.store.queries.transitions import note

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
"""How often attempts whose time is over are looked for; costs nothing while there are none."""
STRAY_STOP_SECONDS = 15.0
"""What an agent needs behind the grace for orphans: it gives a stray 10 s to end, and removes it."""


class Abandoned:
    """Closes such attempts. `orphan_grace` (seconds) is what agents are told."""

    def __init__(
        self, store: Store, clock: Clock, logs: LogStore, changes: Changes, scheduler: Scheduler, orphan_grace: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._logs = logs
        self._changes = changes
        self._scheduler = scheduler
        self._patience = orphan_grace + STRAY_STOP_SECONDS
        self._due: dict[AttemptKey, float] = {}

    async def close(self, agent_id: str, reported: Collection[AttemptKey], protocol: int) -> frozenset[AttemptKey]:
        """Ends the logs of those that the agent did not have (`reported`) at the begin of a session of `protocol`.

        Returns those that it is not to be told of: it is too old to report that nothing is left of them, and would
        report an end of its own. After the time in which it removes what is left, they are taken for gone.
        """
        rows = await self._store.read(
            lambda connection: desired.read_abandoned(connection, agent_id, frozenset(reported))
        )
        for row in rows:
            try:
                await self._close(row, may_have_begun=bool(row.known_seq) or protocol < HOLDS_RELEASE)
            except StoreUnavailable as error:
                # The next stream of the agent tries again.
                log.warning("attempt can not be closed", run=row.key.run_id, attempt=row.key.attempt, why=str(error))
        held = frozenset(row.key for row in rows if not row.released)
        if protocol >= REPORTS_STRAYS:
            for key in held:
                self._due.pop(key, None)
            return frozenset()
        due = self._clock.monotonic() + self._patience
        for key in held:
            # An agent that comes again and again does not hold them for ever.
            self._due.setdefault(key, due)
        return held

    async def watch(self) -> None:
        """Frees what was held for long enough, until cancelled; what the database refuses is tried again."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Unavailable as error:
                if not is_told(error):
                    log.warning("capacity of lost attempts could not be freed", why=error.message)

    async def check(self) -> None:
        """Looks once. Raises Unavailable."""
        now = self._clock.monotonic()
        for key in [key for key, due in self._due.items() if due <= now]:
            await self._free(key)
            self._due.pop(key, None)

    async def _free(self, key: AttemptKey) -> None:
        def free(connection: Connection) -> None:
            note(connection, key, {"released": True})
            attempts.touch_run(connection, key.run_id)
            attempts.settle(connection, key)

        def freed(_: None) -> None:
            log.warning("a container that may be left is taken for gone", run=key.run_id, attempt=key.attempt)
            self._scheduler.released(key)
            self._changes.notify(key.run_id)

        await self._store.write(free, freed)

    async def _close(self, row: DesiredRow, *, may_have_begun: bool) -> None:
        if row.log_sealed:
            # Whole, or removed by retention.
            return
        key = row.key
        end = await self._close_log(key, may_have_begun=may_have_begun)

        def close(connection: Connection) -> None:
            note(connection, key, {"log_sealed": True, "log_bytes": end})
            attempts.touch_run(connection, key.run_id)
            attempts.settle(connection, key)

        await self._store.write(close, lambda _: self._changes.notify(key.run_id))

    async def _close_log(self, key: AttemptKey, *, may_have_begun: bool) -> int:
        """Ends a log that nobody can deliver any more; returns its end."""
        async with self._logs.open(LogKey(key.run_id, key.attempt)) as opened:
            end = opened.end
            if not opened.sealed and (may_have_begun or end):
                # First: a log that is found sealed counts as delivered.
                message = "the agent no longer has the attempt; output that was not delivered before is lost"
                loss = LogLoss("DISK", end, None, self._clock.now(), message)
                await self._store.write(lambda connection: events.add_own_loss(connection, key, loss))
            if not opened.sealed:
                await opened.seal(end)
            return end
