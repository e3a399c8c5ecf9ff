"""Looks whether a database is whole: its schema, its pages and keys, and what must hold between rows and log files."""

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, or_, select, text, tuple_
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.runs.states import LIVE, TERMINAL
from fastflow_controlplane.store.connections import make_engine, parse_url
from fastflow_controlplane.store.migrations import HEAD, check_known, current_revision
from fastflow_controlplane.store.models import attempts, runs
from fastflow_controlplane.store.place import RESTORE, Place

SHOWN = 10
"""Faults of one kind that are named; the others are counted."""
_PORTION = 500

LogSize = Callable[[str, int], int]
"""Bytes on disk of the log of a run's attempt."""


def check(url: str, log_size: LogSize) -> tuple[str, list[str]]:
    """Looks at a database, also while a control plane uses it. Returns what it is, and each fault with what to do.

    Raises FailedPrecondition where there is no database of ours, or one of a newer version, Unavailable where it can
    not be opened.
    """
    parsed = parse_url(url)
    place = Place(parsed)
    if place.folder is not None and not Path(place.name).exists():
        raise _none_there(place)
    engine = make_engine(parsed, "fastflow db check", writing=False, size=1)
    try:
        with engine.connect() as connection:
            revision = current_revision(connection)
            if revision is None:
                raise _none_there(place)
            check_known(revision)
            if revision != HEAD:
                old = f"it has schema {revision}, and {HEAD} is needed: `fastflow-controlplane db upgrade`, or a start"
                return f"schema {revision}", [*_damage(connection), old]
            faults = list(_damage(connection)) or [*_contradictions(connection), *_logs(connection, log_size)]
            return (
                f"schema {revision}, {_count(connection, runs)} runs, {_count(connection, attempts)} attempts",
                faults,
            )
    except DBAPIError as error:
        raise place.failure(error, "read") from error
    finally:
        engine.dispose()


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _none_there(place: Place) -> FailedPrecondition:
    return FailedPrecondition(
        f"there is no database of Fast-Flow at {place.name}: check database_url and data_dir; "
        "`fastflow-controlplane serve` makes one"
    )


def _damage(connection: Connection) -> Iterator[str]:
    """What SQLite finds in its file; a server looks after its pages and keys itself."""
    if connection.dialect.name != "sqlite":
        return
    try:
        found = [row[0] for row in connection.execute(text(f"PRAGMA integrity_check({SHOWN})"))]
    except DBAPIError as error:
        found = [str(error.orig)]
    if found != ["ok"]:
        yield f"the file is damaged ({'; '.join(found)}): {RESTORE}"
        return
    dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
    if dangling:
        tables = ", ".join(sorted({row[0] for row in dangling}))
        yield f"{len(dangling)} rows of {tables} belong to rows that are gone: {RESTORE}"


def _contradictions(connection: Connection) -> Iterator[str]:
    """Where runs and their attempts say different things."""
    mirrored = exists().where(
        attempts.c.run_id == runs.c.id, attempts.c.number == runs.c.attempt, attempts.c.state == runs.c.state
    )
    live = exists().where(attempts.c.run_id == runs.c.id, attempts.c.state.in_(LIVE))
    later = exists().where(attempts.c.run_id == runs.c.id, attempts.c.number > runs.c.attempt)
    rules = {
        "do not mirror their newest attempt": and_(runs.c.state.in_(LIVE), ~mirrored),
        "do not live, but an attempt of theirs does": and_(runs.c.state.not_in(LIVE), live),
        "have attempts they do not know of": later,
        "ended at no time, or go on after their end": or_(
            and_(runs.c.state.in_(TERMINAL), runs.c.end_time.is_(None)),
            and_(runs.c.state.not_in(TERMINAL), runs.c.end_time.is_not(None)),
        ),
    }
    for what, rule in rules.items():
        found = list(connection.execute(select(runs.c.id).where(rule).order_by(runs.c.id)).scalars())
        if found:
            yield f"{_named(found)} {what}: {RESTORE}, and report it, for this must not happen"


def _logs(connection: Connection, log_size: LogSize) -> Iterator[str]:
    """Whether each log that is complete is there."""
    lacking = [*_differing_logs(connection, log_size)]
    # Retention may have removed some since their rows were read: looked at once more, in rows of now.
    connection.rollback()
    still: list[str] = []
    for start in range(0, len(lacking), _PORTION):
        which = tuple_(attempts.c.run_id, attempts.c.number).in_(lacking[start : start + _PORTION])
        still += [run_id for run_id, _ in _differing_logs(connection, log_size, which)]
    if still:
        yield f"the log files of {_named(still)} are not as long as they were: put back the folder logs of data_dir"


def _differing_logs(
    connection: Connection, log_size: LogSize, *which: ColumnElement[bool]
) -> Iterator[tuple[str, int]]:
    kept = (
        select(attempts.c.run_id, attempts.c.number, attempts.c.log_bytes)
        .where(attempts.c.log_sealed, attempts.c.log_remove_time.is_(None), attempts.c.log_bytes > 0, *which)
        .order_by(attempts.c.run_id, attempts.c.number)
    )
    for row in connection.execution_options(yield_per=_PORTION).execute(kept):
        if log_size(row.run_id, row.number) != row.log_bytes:
            yield row.run_id, row.number


def _named(run_ids: list[str]) -> str:
    shown = ", ".join(run_ids[:SHOWN])
    more = f" and {len(run_ids) - SHOWN} more" if len(run_ids) > SHOWN else ""
    return f"{'runs' if len(run_ids) > 1 else 'run'} {shown}{more}"
