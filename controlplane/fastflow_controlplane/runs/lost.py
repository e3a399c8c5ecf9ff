"""What follows from declaring attempts LOST: their runs may wait again, and everybody who goes by them is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import WaitingRun
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.queries import runs
from fastflow_controlplane.store.queries.lost_attempts import LostAttempt

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """Attempts that were declared LOST, and those of their runs that wait again."""

    attempts: Sequence[LostAttempt] = ()
    waiting: Sequence[WaitingRun] = ()


def with_waiting(connection: Connection, lost: Sequence[LostAttempt]) -> Lost:
    """Adds the runs that wait again; call it in the operation that declared the attempts LOST."""
    retried = [attempt.key.run_id for attempt in lost if attempt.retried]
    return Lost(lost, [run for run_id in retried for run in runs.read_waiting(connection, run_id)])


class LostRuns:
    """Tells of lost runs, after the commit."""

    def __init__(self, changes: Changes, scheduler: Scheduler, registry: AgentRegistry) -> None:
        self._changes = changes
        self._scheduler = scheduler
        self._registry = registry

    def tell(self, lost: Lost) -> None:
        """Lets runs be placed again, and those who watch them and the agents know."""
        for run in lost.waiting:
            self._scheduler.add(run)
        for attempt in lost.attempts:
            key = attempt.key
            log.warning("run is lost", run=key.run_id, attempt=key.attempt, retried=attempt.retried)
            self._changes.notify(key.run_id)
        for agent_id in {attempt.agent_id for attempt in lost.attempts}:
            self._registry.desired_changed(agent_id)
