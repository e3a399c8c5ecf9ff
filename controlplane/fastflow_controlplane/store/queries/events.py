"""What agents reported of attempts: the history of all events, warnings, losses of output."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from fastflow_controlplane.runs.model import AttemptKey, LogLoss, SoftLimitWarning
from fastflow_controlplane.store.models import attempt_events, log_losses, warnings


def add_to_history(
    connection: Connection,
    key: AttemptKey,
    sequence: int,
    kind: str,
    fact: Mapping[str, Any],
    rejection: str,
    session_epoch: int,
    time: int,
    now: int,
) -> None:
    """Keeps one event as it came; `rejection` says why it changed nothing, "" = it did."""
    connection.execute(
        insert(attempt_events),
        {
            "run_id": key.run_id,
            "attempt": key.attempt,
            "sequence": sequence,
            "time": time,
            "receive_time": now,
            "session_epoch": session_epoch,
            "kind": kind,
            "fact": dict(fact),
            "rejection": rejection,
        },
    )


def put_warning(connection: Connection, key: AttemptKey, crossing: int, warning: SoftLimitWarning) -> None:
    """Stores a crossing of a soft limit; its clearing replaces its raising."""
    connection.execute(
        delete(warnings).where(
            warnings.c.run_id == key.run_id, warnings.c.attempt == key.attempt, warnings.c.crossing == crossing
        )
    )
    connection.execute(
        insert(warnings),
        {
            "run_id": key.run_id,
            "attempt": key.attempt,
            "crossing": crossing,
            "kind": warning.kind,
            "limit_value": warning.limit,
            "peak_value": warning.peak,
            "raise_time": warning.raise_time,
            "clear_time": warning.clear_time,
            "seconds_above": warning.seconds_above,
        },
    )


def add_agent_loss(connection: Connection, key: AttemptKey, sequence: int, loss: LogLoss) -> None:
    """Stores a loss of output that the agent found, under the number of its event."""
    _add_loss(connection, key, "agent", sequence, loss)


def add_own_loss(connection: Connection, key: AttemptKey, loss: LogLoss) -> None:
    """Stores a loss of output that the control plane found."""
    last = select(func.coalesce(func.max(log_losses.c.number), 0)).where(
        log_losses.c.run_id == key.run_id,
        log_losses.c.attempt == key.attempt,
        log_losses.c.origin == "controlplane",
    )
    _add_loss(connection, key, "controlplane", connection.execute(last).scalar_one() + 1, loss)


def _add_loss(connection: Connection, key: AttemptKey, origin: str, number: int, loss: LogLoss) -> None:
    connection.execute(
        insert(log_losses),
        {
            "run_id": key.run_id,
            "attempt": key.attempt,
            "origin": origin,
            "number": number,
            "kind": loss.kind,
            "offset": loss.offset,
            "bytes": loss.bytes,
            "time": loss.time,
            "message": loss.message,
        },
    )
