"""What one agent shall do: the whole set for a new session, then what changed since a revision."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastflow.pipelines.metadata import Limits
from sqlalchemy import Connection, Row, Select, bindparam, select

from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import TERMINAL, RunState
from fastflow_controlplane.store.models import agents, attempts, run_parameters, runs
from fastflow_controlplane.store.queries.views import limits_of

PORTION = 500
"""Ids in one query: databases bound the number of parameters."""


@dataclass(frozen=True, slots=True)
class DesiredRow:
    """One attempt as its agent shall see it. `action` is RUN, STOP or FORGET.

    `environment_names` are those given with --env, `parameters` their sealed values.
    """

    key: AttemptKey
    action: str
    stop_cause: str
    stop_grace_usec: int | None
    known_seq: int
    ended: bool
    log_bytes: int
    log_sealed: bool
    released: bool
    pipeline: str
    bundle_digest: str
    bundle_size: int
    limits: Limits
    timeout_usec: int
    default_environment: Mapping[str, str]
    environment_names: tuple[str, ...]
    parameters: bytes | None
    secret_versions: Mapping[str, int]
    python_version: str
    pinned_packages: tuple[str, ...]
    log_limit_bytes: int
    on_log_backlog: str
    revision: int


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Attempts to tell, as of `revision`; `session_epoch` is the agent's newest session."""

    revision: int
    session_epoch: int
    draining: bool
    drain_deadline_time: int | None
    rows: tuple[DesiredRow, ...]


# Built once: putting a statement together costs SQLAlchemy more than SQLite needs to answer it.
_DESIRED: Select[Any] = (
    select(
        attempts.c.run_id,
        attempts.c.number,
        attempts.c.claim_token,
        attempts.c.state,
        attempts.c.desired,
        attempts.c.stop_cause,
        attempts.c.stop_grace_usec,
        attempts.c.known_seq,
        attempts.c.log_bytes,
        attempts.c.log_sealed,
        attempts.c.released,
        attempts.c.secret_versions,
        attempts.c.revision,
        runs.c.pipeline,
        runs.c.bundle_digest,
        runs.c.bundle_size,
        runs.c.cpu_hard_milli_cores,
        runs.c.memory_hard_bytes,
        runs.c.cpu_soft_milli_cores,
        runs.c.memory_soft_bytes,
        runs.c.timeout_usec,
        runs.c.default_environment,
        runs.c.environment_names,
        runs.c.python_version,
        runs.c.pinned_packages,
        runs.c.log_limit_bytes,
        runs.c.on_log_backlog,
        run_parameters.c.sealed,
    )
    .join(runs, runs.c.id == attempts.c.run_id)
    .outerjoin(run_parameters, run_parameters.c.run_id == attempts.c.run_id)
    .where(attempts.c.agent_id == bindparam("agent"))
)
# In the order in which they were placed, or changed since: agents begin and prepare in it.
_UNSETTLED = _DESIRED.where(attempts.c.desired != "FORGET").order_by(attempts.c.revision)
_ENDED = _UNSETTLED.where(attempts.c.state.in_(TERMINAL))
_UNBEGUN = _UNSETTLED.where(attempts.c.state == RunState.ASSIGNED, attempts.c.known_seq == 0)
_CHANGED = _DESIRED.where(attempts.c.revision > bindparam("since")).order_by(attempts.c.revision)
_OF_RUNS = _DESIRED.where(attempts.c.run_id.in_(bindparam("runs", expanding=True)))
_AGENT = select(agents.c.revision, agents.c.session_epoch, agents.c.draining, agents.c.drain_deadline_time).where(
    agents.c.agent_id == bindparam("agent")
)


def read_all(connection: Connection, agent_id: str, reported: Collection[AttemptKey]) -> DesiredState:
    """Returns everything unsettled of an agent, in order of change, and behind it its own of what it `reported`."""
    rows = [*map(_row, connection.execute(_UNSETTLED, {"agent": agent_id}))]
    settled = {*reported} - {row.key for row in rows}
    return _state(connection, agent_id, [*rows, *_named(connection, agent_id, settled)])


def read_since(
    connection: Connection, agent_id: str, revision: int, missing: Collection[AttemptKey] = ()
) -> DesiredState:
    """Returns what changed after `revision`, in order of change, behind those of `missing` that did not."""
    changed = [*map(_row, connection.execute(_CHANGED, {"agent": agent_id, "since": revision}))]
    unchanged = {*missing} - {row.key for row in changed}
    return _state(connection, agent_id, [*_named(connection, agent_id, unchanged), *changed])


def _named(connection: Connection, agent_id: str, keys: Collection[AttemptKey]) -> list[DesiredRow]:
    """Those of `keys` that are the agent's own."""
    run_ids = sorted({key.run_id for key in keys})
    rows = []
    for start in range(0, len(run_ids), PORTION):
        wanted = connection.execute(_OF_RUNS, {"agent": agent_id, "runs": run_ids[start : start + PORTION]})
        rows += [row for row in map(_row, wanted) if row.key in keys]
    return rows


def read_unreported(connection: Connection, agent_id: str, reported: Collection[AttemptKey]) -> list[DesiredRow]:
    """Returns ended attempts that wait for something from their agent, which no longer knows of them."""
    ended = connection.execute(_ENDED, {"agent": agent_id})
    return [row for row in map(_row, ended) if row.key not in reported]


def read_unbegun(connection: Connection, agent_id: str, reported: Collection[AttemptKey]) -> list[DesiredRow]:
    """Returns attempts of an agent that nothing was heard of, neither an event nor that it has them (`reported`)."""
    unbegun = connection.execute(_UNBEGUN, {"agent": agent_id})
    return [row for row in map(_row, unbegun) if row.key not in reported]


def read_doubtful(connection: Connection, agent_id: str, reported: Collection[AttemptKey]) -> list[AttemptKey]:
    """Returns those of `read_unbegun` that were assigned before an operator accepted the agent with this database."""
    doubtful = connection.execute(
        select(agents.c.doubtful_revision).where(agents.c.agent_id == agent_id)
    ).scalar_one_or_none()
    if not doubtful:
        return []
    return [row.key for row in read_unbegun(connection, agent_id, reported) if row.revision <= doubtful]


def _state(connection: Connection, agent_id: str, rows: Iterable[DesiredRow]) -> DesiredState:
    agent = connection.execute(_AGENT, {"agent": agent_id}).one()
    return DesiredState(agent.revision, agent.session_epoch, agent.draining, agent.drain_deadline_time, tuple(rows))


def _row(row: Row[Any]) -> DesiredRow:
    return DesiredRow(
        key=AttemptKey(row.run_id, row.number, row.claim_token),
        action=row.desired,
        stop_cause=row.stop_cause,
        stop_grace_usec=row.stop_grace_usec,
        known_seq=row.known_seq,
        ended=row.state in TERMINAL,
        log_bytes=row.log_bytes,
        log_sealed=row.log_sealed,
        released=row.released,
        pipeline=row.pipeline,
        bundle_digest=row.bundle_digest,
        bundle_size=row.bundle_size,
        limits=limits_of(row),
        timeout_usec=row.timeout_usec,
        default_environment=row.default_environment,
        environment_names=tuple(row.environment_names),
        parameters=row.sealed,
        secret_versions=row.secret_versions,
        python_version=row.python_version,
        pinned_packages=tuple(row.pinned_packages or ()),
        log_limit_bytes=row.log_limit_bytes,
        on_log_backlog=row.on_log_backlog,
        revision=row.revision,
    )
