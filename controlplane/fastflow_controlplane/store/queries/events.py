"""What agents reported of attempts: the history of all events, warnings, losses of output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from fastflow_controlplane.runs.model import AttemptKey, LogLoss, SoftLimitWarning
from fastflow_controlplane.store.models import attempt_events, log_losses, warnings

_ADD_TO_HISTORY = insert(attempt_events)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event as it came; `rejection` says why it changed nothing, "" = it did. `time` is the agent's clock."""

    sequence: int
    kind: str
    fact: Mapping[str, Any]
    rejection: str
    time: int


def add_to_history(
    connection: Connection, key: AttemptKey, entries: Sequence[HistoryEntry], session_epoch: int, now: int
) -> None:
    """Keeps events of one attempt; there is at least one."""
    named = {"run_id": key.run_id, "attempt": key.attempt, "session_epoch": session_epoch, "receive_time": now}
    rows = [
        {
            **named,
            "sequence": entry.sequence,
            "kind": entry.kind,
            "fact": entry.fact,
            "rejection": entry.rejection,
            "time": entry.time,
        }
        for entry in entries
    ]
    connection.execute(_ADD_TO_HISTORY, rows)


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
    """Stores a loss of output that the control plane found; one that is found again is stored once."""
    found = (
        log_losses.c.run_id == key.run_id,
        log_losses.c.attempt == key.attempt,
        log_losses.c.origin == "controlplane",
    )
    same = select(log_losses.c.number).where(
        *found, log_losses.c.kind == loss.kind, log_losses.c.offset == loss.offset, log_losses.c.message == loss.message
    )
    if connection.execute(same).first() is None:
        last = select(func.coalesce(func.max(log_losses.c.number), 0)).where(*found)
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
