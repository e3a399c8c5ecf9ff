"""Builds what callers see of runs from rows: one query per table for a whole page of runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fastflow.pipelines.metadata import Limits
from sqlalchemy import BindParameter, Connection, Row, Select, bindparam, select

from fastflow_controlplane.runs.model import (
    AttemptView,
    LateResult,
    LogLoss,
    OutOfMemory,
    Provenance,
    Rerun,
    RunView,
    SoftLimitWarning,
    Usage,
)
from fastflow_controlplane.runs.retry import RetryPolicy
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.models import agents, attempt_events, attempts, log_losses, runs, warnings

# Built once: putting a statement together costs SQLAlchemy more than SQLite needs to answer it.
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_RUNS = select(runs).where(runs.c.id.in_(_IDS))
_ATTEMPTS = (
    select(attempts, agents.c.name.label("agent"))
    .join(agents, agents.c.agent_id == attempts.c.agent_id)
    .where(attempts.c.run_id.in_(_IDS))
    .order_by(attempts.c.run_id, attempts.c.number)
)
_WARNINGS = select(warnings).where(warnings.c.run_id.in_(_IDS)).order_by(warnings.c.crossing)
_LOSSES = select(log_losses).where(log_losses.c.run_id.in_(_IDS)).order_by(log_losses.c.time)
_LATE_RESULTS = (
    select(attempt_events)
    .where(attempt_events.c.run_id.in_(_IDS), attempt_events.c.kind == "ended", attempt_events.c.rejection != "")
    .order_by(attempt_events.c.sequence)
)


def read_runs(connection: Connection, run_ids: Sequence[str]) -> list[RunView]:
    """Returns the runs that exist of `run_ids`, in that order, with attempts, warnings and losses."""
    rows = {row.id: row for row in connection.execute(_RUNS, {"ids": run_ids})}
    attempts_of = _attempts(connection, [run_id for run_id, row in rows.items() if row.attempt])
    return [_run(rows[run_id], attempts_of[run_id]) for run_id in run_ids if run_id in rows]


def limits_of(row: Row[Any]) -> Limits:
    """Returns the limits in a row of a run."""
    return Limits(row.cpu_hard_milli_cores, row.memory_hard_bytes, row.cpu_soft_milli_cores, row.memory_soft_bytes)


def rerun_of(row: Row[Any]) -> Rerun | None:
    """Returns what a row of a run says of the run it repeats."""
    if row.rerun_of is None:
        return None
    return Rerun(row.rerun_of, bool(row.rerun_latest), tuple(row.pinned_packages or ()))


def retry_policy_of(row: Row[Any]) -> RetryPolicy:
    """Returns what a row of a run says of retries."""
    return RetryPolicy(frozenset(map(RunState, row.retry_on or ())), row.retry_attempts)


def _attempts(connection: Connection, run_ids: Sequence[str]) -> Mapping[str, list[AttemptView]]:
    found: defaultdict[str, list[AttemptView]] = defaultdict(list)
    if run_ids:
        warnings_of = _per_attempt(connection, _WARNINGS, run_ids)
        losses_of = _per_attempt(connection, _LOSSES, run_ids)
        rows = connection.execute(_ATTEMPTS, {"ids": run_ids}).all()
        lost = sorted({row.run_id for row in rows if row.state == RunState.LOST})
        late_of = _per_attempt(connection, _LATE_RESULTS, lost) if lost else {}
        for row in rows:
            key = (row.run_id, row.number)
            found[row.run_id].append(_attempt(row, warnings_of[key], losses_of[key], late_of.get(key, ())))
    return found


def _per_attempt(
    connection: Connection, query: Select[Any], run_ids: Sequence[str]
) -> defaultdict[tuple[str, int], list[Row[Any]]]:
    found: defaultdict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query, {"ids": run_ids}):
        found[row.run_id, row.attempt].append(row)
    return found


def _run(row: Row[Any], attempt_views: Sequence[AttemptView]) -> RunView:
    return RunView(
        id=row.id,
        pipeline=row.pipeline,
        state=RunState(row.state),
        reason=Reason(row.reason),
        message=row.message,
        exit_code=row.exit_code,
        attempt=row.attempt,
        attempts=tuple(attempt_views),
        limits=limits_of(row),
        create_time=row.create_time,
        queue_time=row.queue_time,
        start_time=row.start_time,
        end_time=row.end_time,
        cancel_time=row.cancel_time,
        timeout_usec=row.timeout_usec,
        environment_names=tuple(row.environment_names),
        placements=(),
        request_id=row.request_id,
        bundle_digest=row.bundle_digest,
        commit=row.commit,
        tree=row.tree,
        trigger=row.trigger,
        priority=row.priority,
        python_version=row.python_version,
        etag=str(row.version),
        commit_author=row.commit_author,
        commit_subject=row.commit_subject,
        ref=row.ref,
        default_environment=row.default_environment,
        rerun=rerun_of(row),
        retry=retry_policy_of(row),
    )


def _attempt(
    row: Row[Any], warning_rows: Sequence[Row[Any]], loss_rows: Sequence[Row[Any]], late_rows: Sequence[Row[Any]]
) -> AttemptView:
    return AttemptView(
        number=row.number,
        agent_id=row.agent_id,
        agent=row.agent,
        state=RunState(row.state),
        reason=Reason(row.reason),
        message=row.message,
        exit_code=row.exit_code,
        signal=row.signal,
        assign_time=row.assign_time,
        start_time=row.start_time,
        end_time=row.end_time,
        usage=None if row.usage is None else Usage(**row.usage),
        out_of_memory=None if row.out_of_memory is None else OutOfMemory(**row.out_of_memory),
        warnings=tuple(
            SoftLimitWarning(
                kind=warning.kind,
                limit=warning.limit_value,
                peak=warning.peak_value,
                raise_time=warning.raise_time,
                clear_time=warning.clear_time,
                seconds_above=warning.seconds_above,
            )
            for warning in warning_rows
        ),
        log_bytes=row.log_bytes,
        log_sealed=row.log_sealed,
        log_remove_time=row.log_remove_time,
        log_removed_by=row.log_removed_by,
        log_losses=tuple(
            LogLoss(kind=loss.kind, offset=loss.offset, bytes=loss.bytes, time=loss.time, message=loss.message)
            for loss in loss_rows
        ),
        released=row.released,
        provenance=_provenance(row.provenance, row.secret_versions),
        slot=row.slot,
        late_result=_late_result(late_rows[-1]) if late_rows else None,
    )


def _late_result(row: Row[Any]) -> LateResult:
    fact = row.fact
    return LateResult(
        state=RunState(fact["state"]),
        reason=Reason(fact["reason"]),
        message=fact["message"],
        exit_code=fact["exit_code"],
        signal=fact["signal"],
        time=row.time,
    )


def _provenance(known: Mapping[str, Any] | None, secret_versions: Mapping[str, int]) -> Provenance | None:
    if known is None:
        return Provenance(secret_versions=dict(secret_versions)) if secret_versions else None
    return Provenance(
        image=known["image"],
        image_digest=known["image_digest"],
        uv_version=known["uv_version"],
        python_version=known["python_version"],
        packages=tuple(known["packages"]),
        secret_versions=dict(secret_versions),
    )
