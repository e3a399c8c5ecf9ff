"""Copies of a database on a PostgreSQL server, with its own programs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL

from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.store.connections import make_engine
from fastflow_controlplane.store.migrations import check_known, current_revision
from fastflow_controlplane.store.models import metadata
from fastflow_controlplane.store.ownership import SessionOwnership
from fastflow_controlplane.store.place import Place

TABLES = (*(table.name for table in metadata.sorted_tables), "alembic_version")


def dump(url: URL, copy: Path) -> None:
    """Writes our tables to `copy`, in pg_dump's own format. Raises FailedPrecondition."""
    _call("pg_dump", url, "--format=custom", f"--file={copy}", *(f"--table={name}" for name in TABLES))


def restore(url: URL, copy: Path, aside: str, *, replace: bool) -> str:
    """Puts the tables of `copy` in place; returns the schema that keeps the former ones, "" = there were none."""
    place = Place(url)
    _check_copy(copy)
    ownership = SessionOwnership(place.name)
    engine = make_engine(url, ownership.name, writing=True, size=1)
    try:
        with engine.connect() as connection:
            ownership.hold(connection)
            there = [name for name in TABLES if inspect(connection).has_table(name)]
            home = connection.execute(text("SELECT current_schema()")).scalar_one()
            connection.rollback()
            if there and not replace:
                raise place.occupied()
            if there:
                _move(connection, there, home, aside)
            try:
                _call("pg_restore", url, "--single-transaction", "--exit-on-error", "--no-owner", "--no-acl", str(copy))
                check_known(current_revision(connection) or "")
            except BaseException:
                connection.rollback()
                restored = [name for name in TABLES if inspect(connection).has_table(name)]
                connection.rollback()
                _drop(connection, restored)
                if there:
                    _move(connection, there, aside, home)
                raise
            return f'schema "{aside}"' if there else ""
    finally:
        engine.dispose()


def _move(connection: Connection, tables: list[str], home: str, target: str) -> None:
    with connection.begin():
        connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{target}"'))
        for name in tables:
            connection.execute(text(f'ALTER TABLE "{home}"."{name}" SET SCHEMA "{target}"'))


def _drop(connection: Connection, tables: list[str]) -> None:
    with connection.begin():
        for name in reversed(tables):
            connection.execute(text(f'DROP TABLE "{name}" CASCADE'))


def _check_copy(copy: Path) -> None:
    listed = _run([_program("pg_restore"), "--list", str(copy)], {})
    if " alembic_version " not in listed:
        raise FailedPrecondition(f"{copy} is no copy of a database of Fast-Flow")


def _call(program: str, url: URL, *arguments: str) -> None:
    """Runs one of PostgreSQL's programs on the database; what other users see of it shows no password."""
    from psycopg.conninfo import make_conninfo

    _, options = url.get_dialect()().create_connect_args(url)
    known: dict[str, Any] = dict(options)
    password = known.pop("password", None)
    secrets = {"PGPASSWORD": str(password)} if password else {}
    _run([_program(program), f"--dbname={make_conninfo(**known)}", "--no-password", *arguments], secrets)


def _run(command: list[str], secrets: dict[str, str]) -> str:
    done = subprocess.run(command, env={**os.environ, **secrets}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedPrecondition(f"{Path(command[0]).name} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def _program(name: str) -> str:
    """Where the program is; Debian keeps them out of PATH where several versions are installed."""
    # The newest reads and writes what older servers have; the reverse does not hold.
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise FailedPrecondition(
            f"{name} is not installed here: install PostgreSQL's client programs (Debian: postgresql-client), or copy "
            "the database with the means of your server"
        )
    return found
