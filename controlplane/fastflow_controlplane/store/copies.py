"""Copies of a database: made while it is in use, put in its place while nobody uses it."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from fastflow.durable import sync_folder
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.disk import full_message, is_full, says_full
from fastflow_controlplane.errors import AlreadyExists, FailedPrecondition, Unavailable
from fastflow_controlplane.store import server_copies
from fastflow_controlplane.store.connections import parse_url
from fastflow_controlplane.store.migrations import check_known
from fastflow_controlplane.store.ownership import FileOwnership
from fastflow_controlplane.store.place import Place


def back_up(url: str, copy: Path) -> None:
    """Writes the database as it is at one moment to `copy`, which is there whole or not at all.

    A control plane that uses it goes on meanwhile. Raises AlreadyExists, FailedPrecondition and Unavailable.
    """
    parsed = parse_url(url)
    if copy.exists():
        raise AlreadyExists(f"{copy} is there already: name another file, or remove it")
    if not copy.parent.is_dir():
        raise FailedPrecondition(f"there is no folder {copy.parent}: make it, or name another file")
    draft = copy.with_name(f".{copy.name}.partial")
    with _explained(copy, parsed):
        # It holds what runs printed as messages, and who did what: for its owner alone.
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            if parsed.get_backend_name() == "sqlite":
                _copy(_file_of(parsed), draft)
            else:
                server_copies.dump(parsed, draft)
            _sync(draft)
            draft.rename(copy)
            sync_folder(copy.absolute().parent)
        finally:
            draft.unlink(missing_ok=True)


def restore(url: str, copy: Path, *, replace: bool) -> str:
    """Puts `copy` in the place of the database; returns where the former one is kept, "" = there was none.

    Raises FailedPrecondition while a control plane uses the database, for what is no copy of one, and where there is a
    database that it may not `replace`.
    """
    parsed = parse_url(url)
    if not copy.is_file():
        raise FailedPrecondition(f"{copy} is no file")
    # In UTC, as schemas and files are named after it.
    aside = time.strftime("replaced_%Y%m%d_%H%M%S", time.gmtime())
    with _explained(copy, parsed):
        if parsed.get_backend_name() != "sqlite":
            return server_copies.restore(parsed, copy, aside, replace=replace)
        return _restore_file(Place(parsed), copy, aside, replace=replace)


def _restore_file(place: Place, copy: Path, aside: str, *, replace: bool) -> str:
    _check_copy(copy)
    database = Path(place.name)
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ownership = FileOwnership(database)
    ownership.prepare()
    try:
        if database.exists() and not replace:
            raise place.occupied()
        draft = database.with_name(f".{database.name}.restored")
        draft.unlink(missing_ok=True)
        _copy(copy, draft)
        draft.chmod(0o600)
        _sync(draft)
        former = database.with_name(f"{database.name}.{aside}")
        kept = str(former) if database.exists() else ""
        _settle(database)
        # A log that is left would be applied to whatever database bears this name.
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                database.with_name(database.name + suffix).rename(former.with_name(former.name + suffix))
        # At no moment there is none: whoever dies in between would have the next start make an empty one.
        with suppress(FileNotFoundError):
            former.hardlink_to(database)
        draft.rename(database)
        sync_folder(database.parent)
        return kept
    finally:
        ownership.release()


def _copy(source: Path, target: Path) -> None:
    """Copies a database that may be in use: what it is at one moment, in one file."""
    with _read_only(source) as original, closing(sqlite3.connect(target)) as copied:
        if not original.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            raise FailedPrecondition(f"{source} is no database of Fast-Flow")
        original.backup(copied)
        copied.execute("PRAGMA journal_mode = DELETE")
        found = copied.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise FailedPrecondition(f"{source} is damaged ({found}): no copy is made of it")


def _check_copy(copy: Path) -> None:
    with _read_only(copy) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError as error:
            # No such table, or no database at all.
            if error.sqlite_errorcode not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB):
                raise
            row = None
    if row is None:
        raise FailedPrecondition(f"{copy} is no copy of a database of Fast-Flow")
    check_known(row[0])


def _settle(database: Path) -> None:
    """Brings what its log holds into the file, if it can still be used."""
    if database.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def _read_only(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_of(url: URL) -> Path:
    return Path(url.database or "")


@contextmanager
def _explained(copy: Path, url: URL) -> Iterator[None]:
    """Says of what goes wrong below what it means."""
    place = Place(url)
    try:
        yield
    except DBAPIError as error:
        raise place.failure(error, "used") from error
    except sqlite3.Error as error:
        if says_full(str(error)):
            raise Unavailable(full_message(copy, "no copy is made")) from error
        raise FailedPrecondition(f"the database at {place.name}, or {copy}, can not be used: {error}") from error
    except OSError as error:
        if is_full(error):
            raise Unavailable(full_message(error.filename or copy, "no copy is made")) from error
        raise FailedPrecondition(f"{error.filename or copy}: {error.strerror}") from error
