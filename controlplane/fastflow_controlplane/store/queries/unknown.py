"""What an agent has, and this database does not know: an older copy of itself, or that of another cluster."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from fastflow_controlplane.agents.model import ReportedAttempt, UnknownAttempt
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import TERMINAL, RunState
from fastflow_controlplane.store.models import attempts, runs

PORTION = 500
"""Ids in one query: databases bound the number of parameters."""


def read_unknown(connection: Connection, *, agent_id: str, reported: Sequence[ReportedAttempt]) -> list[UnknownAttempt]:
    """Returns those of the attempts an agent `reported` that are none of its own here; first what had not ended."""
    known: set[AttemptKey] = set()
    found: dict[str, tuple[str, RunState]] = {}
    run_ids = sorted({attempt.key.run_id for attempt in reported})
    for start in range(0, len(run_ids), PORTION):
        portion = run_ids[start : start + PORTION]
        own = select(attempts.c.run_id, attempts.c.number, attempts.c.claim_token).where(
            attempts.c.agent_id == agent_id, attempts.c.run_id.in_(portion)
        )
        known |= {AttemptKey(row.run_id, row.number, row.claim_token) for row in connection.execute(own)}
        of_runs = select(runs.c.id, runs.c.pipeline, runs.c.state).where(runs.c.id.in_(portion))
        found |= {row.id: (row.pipeline, RunState(row.state)) for row in connection.execute(of_runs)}
    unknown = [attempt for attempt in reported if attempt.key not in known]
    unknown.sort(key=lambda attempt: (attempt.state in TERMINAL, attempt.key.run_id, attempt.key.attempt))
    return [_unknown(attempt, *found.get(attempt.key.run_id, (attempt.pipeline, None))) for attempt in unknown]


def _unknown(attempt: ReportedAttempt, pipeline: str, run_state: RunState | None) -> UnknownAttempt:
    return UnknownAttempt(attempt.key.run_id, attempt.key.attempt, pipeline, attempt.state, run_state)
