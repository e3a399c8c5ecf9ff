"""Syncs of sources: one row each, but for those by interval that had the outcome of the one before."""

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from fastflow_controlplane.store.models import syncs

KEPT = 1000
"""Rows per source: the history of weeks, as rows are written where something changed."""


class SyncTrigger(StrEnum):
    """What a sync was for."""

    START = "START"
    INTERVAL = "INTERVAL"
    REQUEST = "REQUEST"
    CHANGE = "CHANGE"


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """One sync that ended. Times are microseconds UTC, commits "" for a folder, the tuples names of pipelines.

    `error` "" = it succeeded. `repeat_count` = later ones by interval with the same outcome.
    """

    id: str
    source: str
    trigger: SyncTrigger
    start_time: int
    end_time: int
    from_commit: str = ""
    to_commit: str = ""
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    error: str = ""
    repeat_count: int = 0


def record(connection: Connection, sync: SyncRecord) -> SyncRecord:
    """Stores a sync and returns its row, which is that of the one before where it only repeats its outcome."""
    before = newest(connection, sync.source)
    joined = joined_with(before, sync) if before is not None else None
    if joined is not None:
        values = {"end_time": joined.end_time, "repeat_count": joined.repeat_count}
        connection.execute(update(syncs).where(syncs.c.id == joined.id).values(**values))
        return joined
    connection.execute(insert(syncs).values(**asdict(sync)))
    _prune(connection, sync.source)
    return sync


def newest(connection: Connection, source: str) -> SyncRecord | None:
    """Returns the newest sync of a source, None before its first."""
    return next(iter(list_syncs(connection, source, "", 1)), None)


def get(connection: Connection, sync_id: str) -> SyncRecord | None:
    """Returns one sync."""
    row = connection.execute(select(syncs).where(syncs.c.id == sync_id)).one_or_none()
    return _record(row) if row is not None else None


def list_syncs(connection: Connection, source: str, before: str, limit: int) -> list[SyncRecord]:
    """Returns syncs of a source, newest first, from behind the id `before` on."""
    query = select(syncs).where(syncs.c.source == source).order_by(syncs.c.id.desc()).limit(limit)
    if before:
        query = query.where(syncs.c.id < before)
    return [_record(row) for row in connection.execute(query)]


def joined_with(before: SyncRecord, sync: SyncRecord) -> SyncRecord | None:
    """Returns one record for both, None where `sync` does not only repeat the outcome of the one before."""
    if not _repeats(before, sync):
        return None
    count = before.repeat_count + 1 + sync.repeat_count
    return replace(before, end_time=sync.end_time, repeat_count=count)


def _repeats(before: SyncRecord, sync: SyncRecord) -> bool:
    return (
        sync.trigger is SyncTrigger.INTERVAL
        and before.to_commit == sync.from_commit == sync.to_commit
        and before.error == sync.error
        and not any((each.added or each.changed or each.removed) for each in (before, sync))
    )


def _prune(connection: Connection, source: str) -> None:
    oldest = select(syncs.c.id).where(syncs.c.source == source).order_by(syncs.c.id.desc()).offset(KEPT).limit(1)
    last = connection.execute(oldest).scalar()
    if last is not None:
        connection.execute(delete(syncs).where(syncs.c.source == source, syncs.c.id <= last))


def _record(row: Row[Any]) -> SyncRecord:
    values = dict(row._mapping)
    values["trigger"] = SyncTrigger(values["trigger"])
    for names in ("added", "changed", "removed", "invalid"):
        values[names] = tuple(values[names])
    return SyncRecord(**values)
