"""Calls that were answered, so that a repeat gets the same answer instead of a second effect."""

from sqlalchemy import Connection, delete, insert, select

from fastflow_controlplane.errors import AlreadyExists, FieldViolation, InvalidArgument
from fastflow_controlplane.store.models import requests

LONGEST_REQUEST_ID = 255
"""Characters; what is stored of it is not cut off."""
_TRIAL = "trial"


def answered(connection: Connection, kind: str, request_id: str, fingerprint: str) -> str | None:
    """Returns the answer's id if this very call was answered before; None = it is new, or has no request id.

    `fingerprint` is a SHA-256 of what is asked. Raises AlreadyExists where the request id belongs to another body, and
    InvalidArgument for one that is too long.
    """
    if not request_id:
        return None
    if violations := faults(request_id):
        raise InvalidArgument(violations[0].description, violations=violations)
    row = connection.execute(
        select(requests.c.fingerprint, requests.c.answer_id).where(
            requests.c.kind == kind, requests.c.request_id == request_id
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise reused(request_id, row.answer_id)
    return str(row.answer_id)


def faults(request_id: str) -> list[FieldViolation]:
    """Returns what is wrong with a request id."""
    if len(request_id) <= LONGEST_REQUEST_ID:
        return []
    return [FieldViolation("request_id", f"request_id has at most {LONGEST_REQUEST_ID} characters")]


def reused(request_id: str, answer_id: str) -> AlreadyExists:
    """The error for a request id that comes again with another body."""
    return AlreadyExists(
        f'request_id "{request_id}" was used before with another content (for {answer_id}): '
        "take a new id for a new request, or repeat the request unchanged",
        reason="REQUEST_ID_REUSED",
        metadata={"request_id": request_id, "answer": answer_id},
    )


def remember(connection: Connection, kind: str, request_id: str, fingerprint: str, answer_id: str, now: int) -> None:
    """Notes the answer; call it in the operation that has the effect. Nothing for a call without request id."""
    if request_id:
        connection.execute(
            insert(requests),
            {
                "kind": kind,
                "request_id": request_id,
                "fingerprint": fingerprint,
                "answer_id": answer_id,
                "create_time": now,
            },
        )


def try_out(connection: Connection) -> None:
    """Writes something that leaves no trace, to see whether the database takes it.

    An update to the value that is there would not do: SQLite writes nothing then.
    """
    row = {"kind": _TRIAL, "request_id": "", "fingerprint": "", "answer_id": "", "create_time": 0}
    connection.execute(insert(requests), row)
    connection.execute(delete(requests).where(requests.c.kind == _TRIAL))
