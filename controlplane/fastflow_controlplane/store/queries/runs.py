"""Runs: stored, found, listed, cancelled and failed while they wait."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from fastflow.pipelines.bundle import Bundle
from fastflow.pipelines.metadata import Limits
from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from fastflow_controlplane.errors import FieldViolation, InvalidArgument, NotFound
from fastflow_controlplane.runs.model import AttemptKey, FailedPlacements, Rerun, RunView, WaitingRun
from fastflow_controlplane.runs.retry import NO_RETRY, RetryPolicy
from fastflow_controlplane.runs.states import LIVE, Actor, Reason, RunState, sources
from fastflow_controlplane.sources.model import RunCode
from fastflow_controlplane.store.models import attempts, run_parameters, runs
from fastflow_controlplane.store.queries.agents import raise_revision
from fastflow_controlplane.store.queries.attempts import NO_FAILURE
from fastflow_controlplane.store.queries.transitions import note
from fastflow_controlplane.store.queries.views import limits_of, read_runs, rerun_of, retry_policy_of

SHORTEST_ID = 8
"""Hex digits a short id has at least; it is the end of the id, since the beginning is a clock."""
WHOLE_ID = 32
CANDIDATES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A new run as it is stored: everything is pinned. `parameters` = sealed values of --env, None = none."""

    id: str
    pipeline: str
    priority: int
    trigger: str
    request_id: str
    limits: Limits
    timeout_usec: int
    python_version: str
    bundle_digest: str
    bundle_size: int
    commit: str
    tree: str
    environment_names: tuple[str, ...]
    default_environment: Mapping[str, str]
    parameters: bytes | None
    log_limit_bytes: int
    on_log_backlog: str
    commit_author: str = ""
    commit_subject: str = ""
    ref: str = ""
    rerun: Rerun | None = None
    retry: RetryPolicy = NO_RETRY


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a cancel did: `agent_id` is to learn that a stop is desired; "" = there was nothing to stop."""

    run_id: str
    changed: bool
    agent_id: str = ""


# Locked where the database has row locks: what is read here decides what is written.
_LIVE = (
    select(
        attempts.c.agent_id,
        attempts.c.number,
        attempts.c.claim_token,
        attempts.c.desired,
        attempts.c.stop_cause,
        attempts.c.stop_grace_usec,
    )
    .join(runs, (runs.c.id == attempts.c.run_id) & (runs.c.attempt == attempts.c.number))
    .where(runs.c.id == bindparam("run"), attempts.c.state.in_(LIVE), attempts.c.desired != "FORGET")
    .with_for_update(of=attempts)
)


def insert_run(connection: Connection, run: StoredRun, now: int) -> None:
    """Stores a run as QUEUED."""
    connection.execute(
        insert(runs),
        {
            "id": run.id,
            "reversed_id": _reversed(run.id),
            "pipeline": run.pipeline,
            "state": RunState.QUEUED,
            "attempt": 0,
            "priority": run.priority,
            "trigger": run.trigger,
            "request_id": run.request_id,
            "create_time": now,
            "queue_time": now,
            "cpu_hard_milli_cores": run.limits.cpu_hard_milli_cores,
            "memory_hard_bytes": run.limits.memory_hard_bytes,
            "cpu_soft_milli_cores": run.limits.cpu_soft_milli_cores,
            "memory_soft_bytes": run.limits.memory_soft_bytes,
            "timeout_usec": run.timeout_usec,
            "python_version": run.python_version,
            "bundle_digest": run.bundle_digest,
            "bundle_size": run.bundle_size,
            "commit": run.commit,
            "tree": run.tree,
            "environment_names": list(run.environment_names),
            "default_environment": dict(run.default_environment),
            "log_limit_bytes": run.log_limit_bytes,
            "on_log_backlog": run.on_log_backlog,
            "commit_author": run.commit_author,
            "commit_subject": run.commit_subject,
            "ref": run.ref,
            **_rerun_columns(run.rerun),
            "retry_on": sorted(run.retry.on) or None,
            "retry_attempts": run.retry.attempts,
            "version": 1,
        },
    )
    if run.parameters is not None:
        connection.execute(
            insert(run_parameters),
            {
                "run_id": run.id,
                "sealed": run.parameters,
            },
        )


def _rerun_columns(rerun: Rerun | None) -> dict[str, Any]:
    if rerun is None:
        return {}
    packages = list(rerun.packages) or None
    return {"rerun_of": rerun.run_id, "rerun_latest": rerun.latest, "pinned_packages": packages}


def read_stored(connection: Connection, run_id: str) -> StoredRun:
    """Returns one run by its whole id as it was stored at first; raises NotFound."""
    row = connection.execute(select(runs).where(runs.c.id == run_id)).one_or_none()
    if row is None:
        raise _unknown(run_id)
    same = {field.name: row._mapping[field.name] for field in fields(StoredRun) if field.name in row._mapping}
    return StoredRun(
        **same
        | {
            "limits": limits_of(row),
            "environment_names": tuple(row.environment_names),
            "parameters": read_parameters(connection, run_id),
            "rerun": rerun_of(row),
            "retry": retry_policy_of(row),
        }
    )


def read_run(connection: Connection, run_id: str) -> RunView:
    """Returns one run by its whole id; raises NotFound."""
    found = read_runs(connection, [run_id])
    if not found:
        raise _unknown(run_id)
    return found[0]


def code_with_bundle(connection: Connection, digest: str) -> RunCode | None:
    """Returns the code of the runs with the bundle of this digest; None = there are none. Looks through all runs."""
    columns = (runs.c.bundle_digest, runs.c.bundle_size, runs.c.tree)
    row = connection.execute(select(*columns).where(runs.c.bundle_digest == digest, runs.c.tree != "").limit(1)).first()
    return RunCode(Bundle(row.bundle_digest, row.bundle_size), row.tree) if row else None


def read_parameters(connection: Connection, run_id: str) -> bytes | None:
    """Returns the sealed values of --env; None = the run has none."""
    return connection.execute(
        select(run_parameters.c.sealed).where(run_parameters.c.run_id == run_id)
    ).scalar_one_or_none()


def resolve(connection: Connection, given: str, field: str = "id") -> str:
    """Returns the whole id of the run that `given` names: an id, or its last 8 or more hex digits.

    A whole id is taken as it is, whether or not there is such a run. Raises InvalidArgument for what can be no id (of
    the request's `field`), NotFound, and InvalidArgument with the candidates where several runs end in these digits.
    """
    digits = given.replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_ID},{WHOLE_ID}}}", digits):
        message = f'"{given}" is no run id: give the whole id or at least its last {SHORTEST_ID} hexadecimal digits'
        raise InvalidArgument(message, reason="MALFORMED_RUN_ID", violations=[FieldViolation(field, message)])
    if len(digits) == WHOLE_ID:
        return str(UUID(digits))
    prefix = digits[::-1]
    query = (
        select(runs.c.id)
        .where(runs.c.reversed_id >= prefix, runs.c.reversed_id < prefix + "g")
        .order_by(runs.c.id.desc())
        .limit(CANDIDATES_SHOWN)
    )
    found: list[str] = list(connection.execute(query).scalars())
    if not found:
        raise _unknown(given)
    if len(found) > 1:
        raise InvalidArgument(
            f'"{given}" fits several runs: {", ".join(found)}; give more digits',
            reason="AMBIGUOUS_RUN_ID",
            metadata={"candidates": ",".join(found)},
        )
    return found[0]


def list_runs(
    connection: Connection, *, pipeline: str, states: Sequence[RunState], before: str, limit: int
) -> list[RunView]:
    """Returns up to `limit` runs, newest first, older than the run `before` ("" = from the newest)."""
    query: Select[Any] = select(runs.c.id).order_by(runs.c.id.desc()).limit(limit)
    if pipeline:
        query = query.where(runs.c.pipeline == pipeline)
    if states:
        query = query.where(runs.c.state.in_(states))
    if before:
        query = query.where(runs.c.id < before)
    return read_runs(connection, list(connection.execute(query).scalars()))


def read_waiting(connection: Connection, run_id: str = "") -> list[WaitingRun]:
    """Returns all runs that wait for placement, or the one named if it waits; oldest first."""
    query = (
        select(runs)
        .where(runs.c.state == RunState.QUEUED, runs.c.end_time.is_(None))
        .order_by(runs.c.queue_time, runs.c.id)
    )
    if run_id:
        query = query.where(runs.c.id == run_id)
    rows = connection.execute(query).all()
    return [
        WaitingRun(
            run_id=row.id,
            pipeline=row.pipeline,
            priority=row.priority,
            queue_time=row.queue_time,
            limits=limits_of(row),
            python_version=row.python_version,
            failed_on=_failed_on(connection, row.id) if row.failed_placements else {},
            bundle_digest=row.bundle_digest,
            lost_on=_lost_on(connection, row.id) if row.attempt else {},
        )
        for row in rows
    ]


def _failed_on(connection: Connection, run_id: str) -> dict[str, FailedPlacements]:
    query = (
        select(attempts.c.agent_id, func.count().label("failures"), func.max(attempts.c.end_time).label("last_time"))
        .where(
            attempts.c.run_id == run_id,
            attempts.c.end_time.is_not(None),
            attempts.c.start_time.is_(None),
            attempts.c.reason.not_in(NO_FAILURE),
        )
        .group_by(attempts.c.agent_id)
    )
    return {row.agent_id: FailedPlacements(row.failures, row.last_time) for row in connection.execute(query)}


def _lost_on(connection: Connection, run_id: str) -> dict[int, str]:
    query = select(attempts.c.number, attempts.c.agent_id).where(
        attempts.c.run_id == run_id, attempts.c.state == RunState.LOST, ~attempts.c.released
    )
    return {row.number: row.agent_id for row in connection.execute(query)}


def cancel(connection: Connection, run_id: str, now: int, grace_usec: int, shorten: bool = False) -> Cancelled:
    """Ends a waiting run at once; of a live one, makes a stop desired. A run that has ended stays as it is.

    The program gets `grace_usec` between SIGTERM and SIGKILL. With `shorten` it also holds for a run that is being
    stopped with more than that.
    """
    waiting = (
        update(runs)
        .where(runs.c.id == run_id, runs.c.state.in_(sources(Actor.API, RunState.CANCELLED)))
        .values(
            state=RunState.CANCELLED,
            reason=Reason.CANCEL_REQUESTED,
            message="cancelled while it waited",
            cancel_time=now,
            end_time=now,
            version=runs.c.version + 1,
        )
    )
    if connection.execute(waiting).rowcount:
        return Cancelled(run_id, changed=True)
    live = connection.execute(_LIVE, {"run": run_id}).one_or_none()
    if live is None:
        return Cancelled(run_id, changed=False)
    stopping = live.desired == "STOP"
    if stopping and live.stop_grace_usec is not None and (not shorten or live.stop_grace_usec < grace_usec):
        grace_usec = live.stop_grace_usec
    if stopping and live.stop_cause == "CANCEL" and live.stop_grace_usec == grace_usec:
        return Cancelled(run_id, changed=False)
    key = AttemptKey(run_id, live.number, live.claim_token)
    revision = raise_revision(connection, live.agent_id)
    note(
        connection,
        key,
        {"desired": "STOP", "stop_cause": "CANCEL", "stop_grace_usec": grace_usec, "revision": revision},
    )
    connection.execute(update(runs).where(runs.c.id == run_id).values(cancel_time=now, version=runs.c.version + 1))
    return Cancelled(run_id, changed=True, agent_id=live.agent_id)


def fail_waiting(connection: Connection, run_id: str, reason: Reason, message: str, now: int) -> bool:
    """Ends a run that waits as FAILED; returns False where it no longer waits."""
    failed = (
        update(runs)
        .where(runs.c.id == run_id, runs.c.state.in_(sources(Actor.REAPER, RunState.FAILED)))
        .values(state=RunState.FAILED, reason=reason, message=message, end_time=now, version=runs.c.version + 1)
    )
    return bool(connection.execute(failed).rowcount)


def read_overdue(connection: Connection, queued_before: int, limit: int) -> list[str]:
    """Returns runs that wait since before `queued_before`; while one is on an agent it does not wait."""
    placed_later = select(attempts.c.run_id).where(attempts.c.run_id == runs.c.id, attempts.c.end_time >= queued_before)
    query = (
        select(runs.c.id)
        .where(
            runs.c.state == RunState.QUEUED,
            runs.c.end_time.is_(None),
            runs.c.queue_time < queued_before,
            ~placed_later.exists(),
        )
        .order_by(runs.c.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def _reversed(run_id: str) -> str:
    return run_id.replace("-", "")[::-1]


def _unknown(given: str) -> NotFound:
    message = f'there is no run "{given}", or retention removed it (settings run_max_age and run_max_count)'
    return NotFound(message, reason="RUN_NOT_FOUND", metadata={"run": given})
