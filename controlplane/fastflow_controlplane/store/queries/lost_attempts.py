"""Attempts that are declared LOST; in the same operation their runs wait again, where their policy says so."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select

from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.retry import RetryPolicy, explanation, is_retried
from fastflow_controlplane.runs.states import LIVE, Actor, Reason, RunState
from fastflow_controlplane.store.models import attempts, runs
from fastflow_controlplane.store.queries.agents import raise_revision
from fastflow_controlplane.store.queries.attempts import Ending, end
from fastflow_controlplane.store.queries.transitions import Epochs, move_run, naming
from fastflow_controlplane.store.queries.views import retry_policy_of

_RETRIED = (
    select(func.count())
    .select_from(attempts)
    .where(
        attempts.c.run_id == bindparam("is_run"),
        attempts.c.number < bindparam("is_number"),
        attempts.c.state.in_(bindparam("endings", expanding=True)),
    )
)


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt that was declared LOST on the agent `agent_id`; `retried` = its run waits again."""

    key: AttemptKey
    agent_id: str
    retried: bool


def lose_all(connection: Connection, agent_id: str, message: str, epochs: Epochs, now: int) -> list[LostAttempt]:
    """Declares all live attempts of an agent LOST; see `lose`."""
    ending = Ending(RunState.LOST, Reason.AGENT_LOST, message, now)
    return lose(connection, attempts.c.agent_id == agent_id, ending, epochs)


def lose(connection: Connection, which: ColumnElement[bool], ending: Ending, epochs: Epochs) -> list[LostAttempt]:
    """Declares the live attempts that `which` (a condition on attempts) names LOST, as `ending` says.

    Their stop is desired, in case they still live. A run whose policy says so waits again with the same commit.
    """
    query: Select[Any] = (
        select(
            attempts.c.run_id,
            attempts.c.number,
            attempts.c.claim_token,
            attempts.c.agent_id,
            runs.c.retry_on,
            runs.c.retry_attempts,
            runs.c.cancel_time,
        )
        .join(runs, runs.c.id == attempts.c.run_id)
        .where(which, attempts.c.desired != "FORGET", attempts.c.state.in_(LIVE))
    )
    lost = []
    for row in connection.execute(query).all():
        key = AttemptKey(row.run_id, row.number, row.claim_token)
        stop = {"desired": "STOP", "stop_cause": "SUPERSEDED", "revision": raise_revision(connection, row.agent_id)}
        if end(connection, key, Actor.REAPER, ending, epochs, stop):
            policy, cancelled = retry_policy_of(row), row.cancel_time is not None
            retried = _retry(connection, key, policy, ending, cancelled=cancelled)
            lost.append(LostAttempt(key, row.agent_id, retried))
    return lost


def is_newest(run_id: str) -> ColumnElement[bool]:
    """Returns the condition that names the attempt a run mirrors."""
    newest = select(runs.c.attempt).where(runs.c.id == run_id).scalar_subquery()
    return (attempts.c.run_id == run_id) & (attempts.c.number == newest)


def _retry(connection: Connection, key: AttemptKey, policy: RetryPolicy, ended: Ending, *, cancelled: bool) -> bool:
    """Lets the run of an attempt that just ended wait again, if its policy says so."""
    if ended.state not in policy.on:
        return False
    before = connection.execute(_RETRIED, naming(key) | {"endings": policy.on}).scalar_one()
    if not is_retried(policy, ended.state, before, cancelled=cancelled):
        return False
    waits = {
        "state": RunState.QUEUED,
        "reason": ended.reason,
        "message": explanation(key.attempt, ended.message, before + 1, policy),
        "queue_time": ended.time,
        "exit_code": None,
        "start_time": None,
        "end_time": None,
    }
    return move_run(connection, key.run_id, key.attempt, Actor.RETRY, RunState.QUEUED, waits)
