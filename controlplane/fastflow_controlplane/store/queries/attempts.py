"""Attempts: made, moved, ended, settled; `lost_attempts` declares them LOST.

Each write compares-and-sets on state, attempt and claim token. A run mirrors its newest attempt: both are written in
one operation, and the row count of each write is checked.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from fastflow_controlplane.errors import Aborted
from fastflow_controlplane.runs.model import AttemptKey, Held, OutOfMemory, Provenance, Usage
from fastflow_controlplane.runs.states import LIVE, TERMINAL, Actor, Reason, RunState
from fastflow_controlplane.store.models import attempts, runs
from fastflow_controlplane.store.queries.agents import raise_revision
from fastflow_controlplane.store.queries.transitions import (
    IS_ATTEMPT,
    Epochs,
    move_attempt,
    move_run,
    naming,
    note,
)

NO_FAILURE = frozenset({Reason.AGENT_DRAINED})
"""Reasons for which an attempt comes back from its agent through no fault of anybody: it does not count."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended."""

    state: RunState
    reason: Reason
    message: str
    time: int
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage | None = None
    out_of_memory: OutOfMemory | None = None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """What decisions about an attempt rest on.

    `newest` = the run mirrors it, `drained` = it is to stop as its agent is drained, and nobody cancelled its run.
    """

    key: AttemptKey
    agent_id: str
    state: RunState
    known_seq: int
    assign_time: int
    start_time: int | None
    newest: bool
    cancelled: bool
    drained: bool
    failed_placements: int
    log_bytes: int
    log_sealed: bool
    log_removed: bool
    released: bool


# Built once: putting a statement together costs SQLAlchemy more than SQLite needs to answer it.
_ASKED = select(runs.c.attempt, runs.c.cpu_hard_milli_cores, runs.c.memory_hard_bytes).where(
    runs.c.id == bindparam("run")
)
_ATTEMPT = (
    select(attempts, runs.c.attempt, runs.c.cancel_time, runs.c.failed_placements)
    .join(runs, runs.c.id == attempts.c.run_id)
    .where(attempts.c.run_id == bindparam("run"), attempts.c.number == bindparam("number"))
)
_SETTLED = (
    *IS_ATTEMPT,
    attempts.c.state.in_(TERMINAL),
    attempts.c.log_sealed,
    attempts.c.released,
    attempts.c.desired != "FORGET",
)
_SETTLING = select(attempts.c.agent_id).where(*_SETTLED)
_FORGET = update(attempts).where(*_SETTLED).values(desired="FORGET", revision=bindparam("new_revision"))
_TOUCH = update(runs).where(runs.c.id == bindparam("run")).values(version=runs.c.version + 1)


def assign(
    connection: Connection,
    run_id: str,
    agent_id: str,
    claim_token: str,
    secret_versions: Mapping[str, int],
    epochs: Epochs,
    now: int,
) -> AttemptKey | None:
    """Makes the next attempt of a waiting run; None = the run no longer waits."""
    run = connection.execute(_ASKED, {"run": run_id}).one_or_none()
    if run is None:
        return None
    number = run.attempt + 1
    placed = {"state": RunState.ASSIGNED, "attempt": number, "reason": "", "message": ""}
    if not move_run(connection, run_id, run.attempt, Actor.SCHEDULER, RunState.ASSIGNED, placed):
        return None
    connection.execute(
        insert(attempts),
        {
            "run_id": run_id,
            "number": number,
            "agent_id": agent_id,
            "claim_token": claim_token,
            "state": RunState.ASSIGNED,
            "assign_time": now,
            "desired": "RUN",
            "revision": raise_revision(connection, agent_id),
            "leader_epoch": epochs.leader,
            "cpu_milli_cores": run.cpu_hard_milli_cores,
            "memory_bytes": run.memory_hard_bytes,
            "secret_versions": dict(secret_versions),
        },
    )
    return AttemptKey(run_id, number, claim_token)


def read_attempt(connection: Connection, run_id: str, number: int) -> AttemptRow | None:
    """Returns one attempt; None = there is none."""
    row = connection.execute(_ATTEMPT, {"run": run_id, "number": number}).one_or_none()
    if row is None:
        return None
    return AttemptRow(
        key=AttemptKey(run_id, number, row.claim_token),
        agent_id=row.agent_id,
        state=RunState(row.state),
        known_seq=row.known_seq,
        assign_time=row.assign_time,
        start_time=row.start_time,
        newest=row.attempt == number,
        cancelled=row.cancel_time is not None,
        drained=row.stop_cause == "DRAIN" and row.cancel_time is None,
        failed_placements=row.failed_placements,
        log_bytes=row.log_bytes,
        log_sealed=row.log_sealed,
        log_removed=row.log_remove_time is not None,
        released=row.released,
    )


def advance(
    connection: Connection,
    key: AttemptKey,
    target: RunState,
    reason: Reason,
    message: str,
    slot: str,
    sequence: int,
    epochs: Epochs,
    time: int,
) -> bool:
    """Moves a live attempt on to a further live state, and the run with it; False = the table forbids it.

    `sequence` is the number of the event that says so, `slot` where the attempt is ("" = not told).
    """
    changed: dict[str, Any] = {"state": target, "reason": reason, "message": message}
    if target is RunState.RUNNING:
        changed["start_time"] = time
    details = {"known_seq": sequence, **({"slot": slot} if slot else {})}
    if not move_attempt(connection, key, Actor.AGENT, target, changed | details, epochs):
        return False
    if target is RunState.RUNNING:
        changed["failed_placements"] = 0
    _mirror(connection, key, Actor.AGENT, target, changed)
    return True


def end(
    connection: Connection, key: AttemptKey, actor: Actor, ending: Ending, epochs: Epochs, further: Mapping[str, Any]
) -> bool:
    """Ends a live attempt, and the run with it; False = it had ended, or the table forbids it.

    `further` are columns of the attempt that change with this ending.
    """
    changed = {
        "state": ending.state,
        "reason": ending.reason,
        "message": ending.message,
        "exit_code": ending.exit_code,
        "end_time": ending.time,
    }
    details = {
        "signal": ending.signal,
        "usage": ending.usage and asdict(ending.usage),
        "out_of_memory": ending.out_of_memory and asdict(ending.out_of_memory),
        **further,
    }
    if not move_attempt(connection, key, actor, ending.state, changed | details, epochs):
        return False
    _mirror(connection, key, actor, ending.state, changed)
    return True


def give_back(
    connection: Connection,
    key: AttemptKey,
    attempt_reason: Reason,
    message: str,
    run: Ending | None,
    sequence: int,
    epochs: Epochs,
    time: int,
) -> bool:
    """Ends an attempt that could not start as `state_given_back` says. The run waits again, or ends as `run` says.

    False = the attempt had gone too far for that.
    """
    given_back = {
        "state": state_given_back(attempt_reason),
        "reason": attempt_reason,
        "message": message,
        "end_time": time,
        "known_seq": sequence,
    }
    if not move_attempt(connection, key, Actor.AGENT, RunState.QUEUED, given_back, epochs):
        return False
    if run is None:
        changed = {"state": RunState.QUEUED, "reason": attempt_reason, "message": message}
        counted = () if attempt_reason in NO_FAILURE else ("failed_placements",)
        _mirror(connection, key, Actor.AGENT, RunState.QUEUED, changed, counted)
    else:
        changed = {"state": run.state, "reason": run.reason, "message": run.message}
        _mirror(connection, key, Actor.AGENT, run.state, {**changed, "end_time": run.time})
    return True


def state_given_back(reason: Reason) -> RunState:
    """Returns how an attempt ends that did not start and whose run is placed elsewhere."""
    return RunState.CANCELLED if reason in NO_FAILURE else RunState.FAILED


def give_back_untold(
    connection: Connection, key: AttemptKey, reason: Reason, message: str, epochs: Epochs, now: int
) -> bool:
    """Ends an attempt that its agent was never told of, and settles it. The run waits again, or is cancelled if asked.

    False = the attempt had gone too far for that.
    """
    attempt = read_attempt(connection, key.run_id, key.attempt)
    end = None
    if attempt is not None and attempt.cancelled:
        end = Ending(RunState.CANCELLED, Reason.CANCEL_REQUESTED, "cancelled before it started", now)
    if not give_back(connection, key, reason, message, end, 0, epochs, now):
        return False
    note(connection, key, {"log_sealed": True, "released": True})
    settle(connection, key)
    return True


def stop_all(connection: Connection, agent_id: str, cause: str, grace_usec: int) -> list[AttemptKey]:
    """Makes the stop of all live attempts of an agent desired; one that is to stop already keeps its cause.

    None gets more than `grace_usec` between SIGTERM and SIGKILL. Returns those for which something changed.
    """
    runs_on = attempts.c.desired == "RUN"
    query = select(attempts.c.run_id, attempts.c.number, attempts.c.claim_token, attempts.c.stop_cause).where(
        attempts.c.agent_id == agent_id,
        attempts.c.state.in_(LIVE),
        runs_on | ((attempts.c.desired == "STOP") & (attempts.c.stop_grace_usec > grace_usec)),
    )
    changed = []
    # Locked where the database has row locks: what is read here decides what is written.
    for run_id, number, token, known_cause in connection.execute(query.with_for_update()).all():
        key = AttemptKey(run_id, number, token)
        revision = raise_revision(connection, agent_id)
        stop = {"desired": "STOP", "stop_cause": known_cause or cause, "stop_grace_usec": grace_usec}
        note(connection, key, {**stop, "revision": revision})
        touch_run(connection, run_id)
        changed.append(key)
    return changed


def read_unended(connection: Connection, agent_id: str) -> list[str]:
    """Returns the runs of which something is still to come from an agent: an end, or the rest of a log.

    Those that are LOST are none: nobody counts on them any more.
    """
    query = (
        select(attempts.c.run_id)
        .where(attempts.c.agent_id == agent_id, attempts.c.desired != "FORGET", attempts.c.state != RunState.LOST)
        .order_by(attempts.c.run_id)
    )
    return list(connection.execute(query).scalars())


def provenance_column(provenance: Provenance) -> dict[str, Any]:
    """Returns what a row keeps of what exactly ran."""
    known = asdict(provenance)
    del known["secret_versions"]  # the control plane pinned them itself
    return known


def settle(connection: Connection, key: AttemptKey) -> str:
    """Makes the attempt one to forget, once it ended, its log is whole and its container gone.

    Returns the id of the agent that is to forget it; "" = not yet, or done before.
    """
    agent_id: str | None = connection.execute(_SETTLING, naming(key)).scalar_one_or_none()
    if agent_id is None:
        return ""
    forgotten = naming(key) | {"new_revision": raise_revision(connection, agent_id)}
    return agent_id if connection.execute(_FORGET, forgotten).rowcount else ""


def touch_run(connection: Connection, run_id: str) -> None:
    """Changes the run's etag after a write that only concerns its attempts."""
    connection.execute(_TOUCH, {"run": run_id})


def read_held(connection: Connection) -> list[Held]:
    """Returns every attempt that holds capacity."""
    query = select(
        attempts.c.run_id,
        attempts.c.number,
        attempts.c.agent_id,
        attempts.c.cpu_milli_cores,
        attempts.c.memory_bytes,
    ).where(attempts.c.desired != "FORGET", ~attempts.c.released)
    return [Held(*row) for row in connection.execute(query)]


def _mirror(
    connection: Connection,
    key: AttemptKey,
    actor: Actor,
    target: RunState,
    values: Mapping[str, Any],
    counted: tuple[str, ...] = (),
) -> None:
    if not move_run(connection, key.run_id, key.attempt, actor, target, values, counted):
        # A live attempt is its run's newest and has its state: the operation is undone as a whole.
        raise Aborted(f"run {key.run_id} does not mirror its live attempt {key.attempt}")
