"""Every write of a state: compare-and-set on what the table of states allows, on attempt and claim token, on epochs.

Each statement is put together once per kind and kept: for SQLAlchemy that is most of the work, and a run takes about
twenty of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, Update, bindparam, update

from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import Actor, RunState, sources
from fastflow_controlplane.store.models import attempts, runs

IS_ATTEMPT = (
    attempts.c.run_id == bindparam("is_run"),
    attempts.c.number == bindparam("is_number"),
    attempts.c.claim_token == bindparam("is_token"),
)
"""Names one assignment in a WHERE; its parameters come from `naming`."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """The fences of one write: of the agent's session (0 = no agent writes) and of this control plane."""

    session: int
    leader: int


def move_attempt(
    connection: Connection, key: AttemptKey, actor: Actor, target: RunState, values: Mapping[str, Any], epochs: Epochs
) -> bool:
    """Writes `values` (columns of attempts) if `actor` may move the attempt to `target`; False = it may not any more.

    `target` is where the run goes; `values` say what becomes of the attempt.
    """
    written = {**values, "leader_epoch": epochs.leader}
    parameters = {**naming(key), "up_to_leader": epochs.leader}
    if epochs.session:
        written["session_epoch"] = parameters["up_to_session"] = epochs.session
    statement = _move_attempt(actor, target, tuple(written), fenced=bool(epochs.session))
    return bool(connection.execute(statement, parameters | _setting(written)).rowcount)


def move_run(
    connection: Connection,
    run_id: str,
    attempt: int,
    actor: Actor,
    target: RunState,
    values: Mapping[str, Any],
    counted: tuple[str, ...] = (),
) -> bool:
    """Writes `values` (columns of runs) and raises the columns `counted`, if `actor` may move the run to `target`.

    `attempt` is the number of its newest attempt. False = it may not any more.
    """
    statement = _move_run(actor, target, tuple(values), ("version", *counted))
    parameters = {"is_run": run_id, "is_number": attempt, **_setting(values)}
    return bool(connection.execute(statement, parameters).rowcount)


def note(connection: Connection, key: AttemptKey, values: Mapping[str, Any]) -> None:
    """Writes columns of an attempt that hold whatever its state, such as `known_seq` or `released`."""
    connection.execute(_note(tuple(values)), naming(key) | _setting(values))


def naming(key: AttemptKey) -> dict[str, Any]:
    """Returns the parameters of IS_ATTEMPT."""
    return {"is_run": key.run_id, "is_number": key.attempt, "is_token": key.claim_token}


@cache
def _move_attempt(actor: Actor, target: RunState, columns: tuple[str, ...], *, fenced: bool) -> Update:
    statement = (
        update(attempts)
        .where(
            *IS_ATTEMPT,
            attempts.c.state.in_(sources(actor, target)),
            attempts.c.leader_epoch <= bindparam("up_to_leader"),
        )
        .values(_columns(attempts, columns))
    )
    return statement.where(attempts.c.session_epoch <= bindparam("up_to_session")) if fenced else statement


@cache
def _move_run(actor: Actor, target: RunState, columns: tuple[str, ...], counted: tuple[str, ...]) -> Update:
    return (
        update(runs)
        .where(
            runs.c.id == bindparam("is_run"),
            runs.c.attempt == bindparam("is_number"),
            runs.c.state.in_(sources(actor, target)),
        )
        .values({**_columns(runs, columns), **{name: runs.c[name] + 1 for name in counted}})
    )


@cache
def _note(columns: tuple[str, ...]) -> Update:
    return update(attempts).where(*IS_ATTEMPT).values(_columns(attempts, columns))


def _columns(table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: bindparam(f"set_{name}", type_=table.c[name].type) for name in names}


def _setting(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"set_{name}": value for name, value in values.items()}
