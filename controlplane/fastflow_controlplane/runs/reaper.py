"""Ends runs that nobody else will end: their agent is gone, their queue deadline passed, or an operator says so."""

import structlog
from fastflow.ids import short

from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.conditions import repeat
from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.lost import Lost, LostRuns, with_waiting
from fastflow_controlplane.runs.model import RunView
from fastflow_controlplane.runs.states import LIVE, Reason, RunState
from fastflow_controlplane.runs.uptime import since
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import requests, runs, uptimes
from fastflow_controlplane.store.queries.agents import AgentRow, is_current_session
from fastflow_controlplane.store.queries.attempts import Ending
from fastflow_controlplane.store.queries.lost_attempts import is_newest, lose, lose_all
from fastflow_controlplane.store.queries.transitions import Epochs

log = structlog.get_logger(__name__)

LOST_CHECK_SECONDS = 1.0
"""How often agents that are away for too long are looked for; costs nothing while there are none."""
REPEAT_SECONDS = 60.0
"""An agent that stays away is looked at again this often, for a run that was placed on it in the last moment."""
QUEUE_CHECK_SECONDS = 10.0
"""How often waiting runs are looked at: the deadlines are minutes."""
ABANDON_RUN = "ABANDON_RUN"
LATE_SECONDS = 15.0
"""Looks at waiting runs that are further apart by the wall clock were not late: nobody was there, or it was set."""
BATCH = 500
"""Runs ended in one operation, so that others get their turn at the writer."""


class Reaper:
    """Writes LOST, with what follows by the run's retry policy, and FAILED for runs that wait in vain."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: ControlPlaneSettings,
        changes: Changes,
        scheduler: Scheduler,
        registry: AgentRegistry,
        leader_epoch: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._changes = changes
        self._scheduler = scheduler
        self._registry = registry
        self._leader_epoch = leader_epoch
        self._lost = LostRuns(changes, scheduler, registry)
        self._handled: dict[str, float] = {}
        self._queue_checked = float("-inf")

    async def run(self) -> None:
        """Works until cancelled; what the database refuses is tried again."""
        await repeat(self._clock, LOST_CHECK_SECONDS, self.tick, "runs could not be looked after")

    async def tick(self) -> None:
        """Looks once. Raises Unavailable."""
        now = self._clock.monotonic()
        lost = self._registry.lost()
        away = {row.facts.agent_id for row in lost}
        self._handled = {agent_id: when for agent_id, when in self._handled.items() if agent_id in away}
        for row in lost:
            if now - self._handled.get(row.facts.agent_id, float("-inf")) >= REPEAT_SECONDS:
                await self._lose(row)
                self._handled[row.facts.agent_id] = now
        if now - self._queue_checked >= QUEUE_CHECK_SECONDS:
            self._queue_checked = now
            await self._end_overdue()

    async def abandon(self, run_id: str, request_id: str = "") -> str:
        """Declares one run LOST on an operator's word, whatever its agent does; returns its whole id.

        Raises NotFound, and FailedPrecondition where it waits or has ended.
        """
        epochs = Epochs(session=0, leader=self._leader_epoch)

        def abandon(connection: Connection) -> tuple[str, Lost]:
            whole_id = runs.resolve(connection, run_id)
            if requests.answered(connection, ABANDON_RUN, request_id, whole_id) is not None:
                return whole_id, Lost()
            run = runs.read_run(connection, whole_id)
            if run.state not in LIVE:
                raise _can_not_abandon(run)
            message = (
                f'an operator gave it up on agent "{run.attempts[-1].agent}"; the program may still run there, and is '
                "stopped as soon as the agent is told"
            )
            ending = Ending(RunState.LOST, Reason.ABANDONED, message, self._clock.now())
            lost = lose(connection, is_newest(whole_id), ending, epochs)
            requests.remember(connection, ABANDON_RUN, request_id, whole_id, whole_id, ending.time)
            return whole_id, with_waiting(connection, lost)

        whole_id, _ = await self._store.write(abandon, lambda abandoned: self._lost.tell(abandoned[1]))
        return whole_id

    async def _lose(self, row: AgentRow) -> None:
        message = (
            f'agent "{row.facts.name}" was out of reach for more than {self._settings.lost_after:g} s; '
            "the program may still run there, it is stopped when the agent returns"
        )
        epochs = Epochs(session=0, leader=self._leader_epoch)

        def lose(connection: Connection) -> Lost:
            # An agent that came back in between has a newer session: nothing of it is lost.
            if not is_current_session(connection, row.facts.agent_id, row.session_epoch):
                return Lost()
            lost = lose_all(connection, row.facts.agent_id, message, epochs, self._clock.now())
            return with_waiting(connection, lost)

        await self._store.write(lose, self._lost.tell)

    async def _end_overdue(self) -> None:
        deadline = self._settings.queue_deadline
        if not deadline:
            return
        now = self._clock.now()

        def look(connection: Connection) -> int | None:
            known = uptimes.note(connection, now, round(LATE_SECONDS * MICROSECONDS))
            before = since(known, round(deadline * MICROSECONDS))
            if before is not None:
                uptimes.forget(connection, before)
            return before

        before = await self._store.write(look)
        if before is None or self._registry.recovering():
            return
        overdue = await self._store.read(lambda connection: runs.read_overdue(connection, before, BATCH))
        message = f"waited in the queue for more than {deadline:g} s (setting queue_deadline)"
        await self._fail(overdue, Reason.QUEUE_DEADLINE, message)

    async def _fail(self, run_ids: list[str], reason: Reason, message: str) -> None:
        if not run_ids:
            return

        def fail(connection: Connection) -> list[str]:
            now = self._clock.now()
            return [run_id for run_id in run_ids if runs.fail_waiting(connection, run_id, reason, message, now)]

        def told(failed: list[str]) -> None:
            for run_id in failed:
                log.warning("waiting run failed", run=run_id, why=message)
                self._scheduler.remove(run_id)
                self._changes.notify(run_id)

        await self._store.write(fail, told)


def _can_not_abandon(run: RunView) -> FailedPrecondition:
    if run.terminal:
        message, reason = f"run {run.id} has ended already: it is {run.state}", "RUN_HAS_ENDED"
    else:
        message = f"run {run.id} waits and is on no agent: end it with `ffctl runs cancel {short(run.id)}`"
        reason = "RUN_IS_WAITING"
    return FailedPrecondition(message, reason=reason, metadata={"run": run.id})
