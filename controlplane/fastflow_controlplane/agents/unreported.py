"""Ended attempts that their agent did not report, for its data folder was lost, or it never had them.

Their logs end where they are: nobody delivers more. But a container may be left of them, which their agent finds by its
label and stops in the end. Until the agent reports that none is left, each holds its capacity.
"""

from collections.abc import Sequence

import structlog
from fastflow.protocol import HOLDS_RELEASE, REPORTS_STRAYS

from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.conditions import repeat
from fastflow_controlplane.logs.store import LogKey, LogStore, StoreUnavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey, LogLoss
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, events
from fastflow_controlplane.store.queries.desired import DesiredRow
from fastflow_controlplane.store.queries.transitions import note

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
"""How often attempts whose time is over are looked for; costs nothing while there are none."""
STRAY_STOP_SECONDS = 15.0
"""What an agent needs for each stray behind the grace for orphans: it gives it 10 s to end, removes it, and only then
turns to the next."""


class Unreported:
    """Closes logs of such attempts, and frees their capacity. `orphan_grace` (seconds) is what agents are told."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        logs: LogStore,
        changes: Changes,
        scheduler: Scheduler,
        registry: AgentRegistry,
        orphan_grace: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._logs = logs
        self._changes = changes
        self._scheduler = scheduler
        self._registry = registry
        self._orphan_grace = orphan_grace
        self._due: dict[str, dict[AttemptKey, float]] = {}

    async def close_logs(self, rows: Sequence[DesiredRow], protocol: int) -> None:
        """Ends the logs of attempts that were not reported at the begin of a session of `protocol`."""
        for row in rows:
            try:
                await self._close(row, may_have_begun=bool(row.known_seq) or protocol < HOLDS_RELEASE)
            except StoreUnavailable as error:
                # The next stream of the agent tries again.
                log.warning("attempt can not be closed", run=row.key.run_id, attempt=row.key.attempt, why=str(error))

    def hold(self, agent_id: str, rows: Sequence[DesiredRow], protocol: int) -> frozenset[AttemptKey]:
        """Has those of all that the agent did not report keep their capacity; returns those it is not to be told of.

        An agent of an old `protocol` can not report that nothing is left of them, and would report an end of its own.
        After the time in which it removes what is left, they are taken for gone.
        """
        before = self._due.pop(agent_id, {})
        held = frozenset(row.key for row in rows if not row.released)
        if not held or protocol >= REPORTS_STRAYS:
            return frozenset()
        due = self._clock.monotonic() + self._orphan_grace + STRAY_STOP_SECONDS * len(held)
        # An agent that comes again and again does not hold them for ever.
        self._due[agent_id] = {key: before.get(key, due) for key in held}
        return held

    async def watch(self) -> None:
        """Frees what was held for long enough, until cancelled; what the database refuses is tried again."""
        await repeat(self._clock, CHECK_SECONDS, self.check, "capacity of lost attempts could not be freed")

    async def check(self) -> None:
        """Looks once. Raises Unavailable."""
        now = self._clock.monotonic()
        over = [(agent_id, key) for agent_id, held in self._due.items() for key, due in held.items() if due <= now]
        for agent_id, key in over:
            held = self._due.get(agent_id, {})
            # Not what a session reported that began meanwhile.
            if key in held:
                await self._free(key)
                held.pop(key)

    async def _free(self, key: AttemptKey) -> None:
        def free(connection: Connection) -> str:
            note(connection, key, {"released": True})
            attempts.touch_run(connection, key.run_id)
            return attempts.settle(connection, key)

        def freed(agent_id: str) -> None:
            log.warning("a container that may be left is taken for gone", run=key.run_id, attempt=key.attempt)
            self._scheduler.released(key)
            self._changes.notify(key.run_id)
            if agent_id:
                self._registry.desired_changed(agent_id)

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
