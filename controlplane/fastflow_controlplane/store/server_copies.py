"""Copies of a database on a PostgreSQL server, with its own programs."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text
from sqlalchemy.engine import URL

from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.programs import environment_of
from fastflow_controlplane.store.connections import LOCK_SECONDS, make_engine
from fastflow_controlplane.store.migrations import check_known
from fastflow_controlplane.store.models import metadata
from fastflow_controlplane.store.ownership import SessionOwnership
from fastflow_controlplane.store.place import Place

TABLES = (*(table.name for table in metadata.sorted_tables), "alembic_version")

_HOME = text(
    "SELECT coalesce((SELECT CAST(CAST(relnamespace AS regnamespace) AS text) FROM pg_class "
    "WHERE oid = to_regclass('alembic_version')), quote_ident(current_schema()))"
)
_SEARCHED = text("SELECT quote_ident(name) FROM unnest(current_schemas(false)) AS name")
_VERSION = re.compile(
    r"^COPY (?P<schema>.+)\.alembic_version \(version_num\) FROM stdin;\n(?P<revision>.+)$", re.MULTILINE
)

_SECRETS = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Parameters of libpq besides the password that are for nobody's eyes; there are no variables for them."""

_SERVICE = "fastflow"
"""What the section is called in the file that holds _SECRETS."""


def dump(url: URL, copy: Path) -> None:
    """Writes our tables to `copy`, in pg_dump's own format. Raises FailedPrecondition."""
    tables = [f"--table={name}" for name in TABLES]
    with _reached(url) as server:
        command = [_program("pg_dump"), server.argument, "--no-password", "--format=custom", f"--file={copy}", *tables]
        _run(command, server.environment)


def restore(url: URL, copy: Path, aside: str, *, replace: bool) -> str:
    """Puts the tables of `copy` in place; returns the schema that keeps the former ones, "" = there were none.

    All of it is one transaction of the server: whoever dies in between leaves what was there.
    """
    place = Place(url)
    revision, schema = _read_header(copy)
    check_known(revision)
    ownership = SessionOwnership(place.name)
    engine = make_engine(url, ownership.name, writing=True, size=1)
    try:
        with engine.connect() as connection:
            ownership.hold(connection)
            there = [name for name in TABLES if inspect(connection).has_table(name)]
            home = connection.execute(_HOME).scalar_one()
            searched = list(connection.execute(_SEARCHED).scalars())
            connection.rollback()
            if there and not replace:
                raise place.occupied()
            if schema not in searched:
                raise FailedPrecondition(
                    f"{copy} holds tables of the schema {schema}, and those of this database are looked for in "
                    f"{', '.join(searched)}: make the schema, or put it into the search_path of this user"
                )
            _replay(url, copy, _moves(there, home, aside))
            return f'schema "{aside}"' if there else ""
    finally:
        engine.dispose()


def _read_header(copy: Path) -> tuple[str, str]:
    """Returns the revision of a copy, and the schema that its tables are in, quoted where that is needed."""
    command = [_program("pg_restore"), "--data-only", "--table=alembic_version", "--file=-", str(copy)]
    found = _VERSION.search(_run(command, environment_of()))
    if found is None:
        raise FailedPrecondition(f"{copy} is no copy of a database of Fast-Flow")
    return found["revision"], found["schema"]


def _moves(tables: list[str], home: str, target: str) -> list[str]:
    """Returns the statements that take tables out of the way."""
    if not tables:
        return []
    return [
        f"SET lock_timeout = '{LOCK_SECONDS}s'",
        f'CREATE SCHEMA IF NOT EXISTS "{target}"',
        *(f'ALTER TABLE {home}."{name}" SET SCHEMA "{target}"' for name in tables),
    ]


def _replay(url: URL, copy: Path, before: list[str]) -> None:
    """Executes the statements `before` and then those of the copy, in one transaction."""
    read = [_program("pg_restore"), "--no-owner", "--no-acl", "--file=-", str(copy)]
    execute = [_program("psql"), "--no-password", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    with (
        _reached(url) as server,
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(read, env=environment_of(), stdout=subprocess.PIPE, stderr=said) as reader,
        subprocess.Popen(
            [*execute, server.argument],
            env=server.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
        ) as executor,
    ):
        assert reader.stdout is not None
        assert executor.stdin is not None
        with suppress(BrokenPipeError), executor.stdin as script:
            script.write("".join(f"{statement};\n" for statement in ["BEGIN", *before]).encode())
            shutil.copyfileobj(reader.stdout, script)
            # Without it the server undoes all: a copy that can not be read to its end is no copy.
            if reader.wait() == 0:
                script.write(b"COMMIT;\n")
        reader.stdout.close()
        failed = [name for name, program in ((execute[0], executor), (read[0], reader)) if program.wait()]
        if failed:
            said.seek(0)
            raise _failure(failed[0], said.read())


@dataclass(frozen=True)
class _Server:
    """How PostgreSQL's programs are told of a database: an `argument`, which everybody can see, and variables."""

    argument: str
    environment: dict[str, str] = field(repr=False)


@contextmanager
def _reached(url: URL) -> Iterator[_Server]:
    """Tells programs of a database while the block lasts; no secret is in the argument, wherever in `url` it stood."""
    from psycopg.conninfo import make_conninfo

    _, options = url.get_dialect()().create_connect_args(url)
    known: dict[str, Any] = dict(options)
    environment = environment_of("PG*", "KRB5*")
    if password := known.pop("password", None):
        environment["PGPASSWORD"] = str(password)
    secrets = {name: str(known.pop(name)) for name in _SECRETS if name in known}
    with tempfile.TemporaryDirectory(prefix="fastflow-") as folder:
        if secrets:
            if "service" in known or "PGSERVICE" in environment:
                names = " and ".join(secrets)
                place = "its service=" if "service" in known else "PGSERVICE in the environment"
                raise FailedPrecondition(
                    f"database_url holds {names}, and {place} names a service: put {names} into the service's file"
                )
            environment["PGSERVICEFILE"] = str(_service_file(Path(folder), secrets))
            known["service"] = _SERVICE
        yield _Server(f"--dbname={make_conninfo(**known)}", environment)


def _service_file(folder: Path, secrets: dict[str, str]) -> Path:
    """Writes the file that libpq takes secrets from which have no variable (its "Connection Service File")."""
    if any(value != value.strip() or "\n" in value for value in secrets.values()):
        names = " or ".join(secrets)
        raise FailedPrecondition(
            f"{names} in database_url begins or ends with a blank, or holds a line break, which PostgreSQL's programs "
            "can not be told: choose another one"
        )
    file = folder / "service"
    file.touch(mode=0o600)
    file.write_text("".join(f"{line}\n" for line in (f"[{_SERVICE}]", *("=".join(each) for each in secrets.items()))))
    return file


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failure(command[0], done.stderr)
    return done.stdout


def _failure(program: str, said: str) -> FailedPrecondition:
    return FailedPrecondition(f"{Path(program).name} failed: {' '.join(said.split())}")


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
