"""Schema migrations, applied by the control plane itself at start."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.store.models import metadata

HEAD = "0011"
"""Newest revision. Known without Alembic, whose import would cost each start a third of a second."""
SCRIPTS = Path(__file__).parent
"""Where Alembic finds its entry and the migrations."""

_LOCALIZED = text(
    'SELECT relname AS "table", attname AS "column", format_type(atttypid, atttypmod) AS type '
    "FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_collation ON pg_collation.oid = attcollation "
    "WHERE relnamespace = CAST(quote_ident(current_schema()) AS regnamespace) AND relkind = 'r' "
    "AND relname = ANY(:tables) AND attnum > 0 AND NOT attisdropped AND collname <> 'C'"
)


def migrate(connection: Connection) -> None:
    """Brings the database to the newest schema, in one transaction.

    Raises FailedPrecondition for a database written by a newer control plane.
    """
    with _keys_unminded(connection), connection.begin():
        current = current_revision(connection)
        if current == HEAD:
            return
        if current is None:
            _create(connection)
        else:
            upgrade(connection, current, HEAD)
            _check_keys(connection)
        if connection.dialect.name == "postgresql":
            _compare_bytewise(connection)


def current_revision(connection: Connection) -> str | None:
    """Returns the schema's revision; None = there is no database yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


@contextmanager
def _keys_unminded(connection: Connection) -> Iterator[None]:
    """Lets SQLite make a table anew without the rows that belong to it.

    It can alter most of a table only so: the old one is dropped, and with it would go what refers to its rows
    (sqlite.org/lang_altertable.html, section 7). Within a transaction this can not be set.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _check_keys(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    dangling = sorted({row[0] for row in connection.execute(text("PRAGMA foreign_key_check"))})
    if dangling:
        raise FailedPrecondition(
            f"the schema can not be brought to {HEAD}: rows of {', '.join(dangling)} would belong to none any more; "
            "nothing is changed; look at it with `fastflow-controlplane db check`, and report it"
        )


def _create(connection: Connection) -> None:
    """Makes the tables as they are now, which is where all migrations lead (a test compares the two)."""
    metadata.create_all(connection)
    # As Alembic makes it.
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def _compare_bytewise(connection: Connection) -> None:
    """Lets no column of text follow the rules of a language, as on SQLite.

    Those rules change with the system's libraries, and an index that was sorted by older ones finds nothing any more:
    a unique one would let a second row in.
    """
    clauses = defaultdict(list)
    for row in connection.execute(_LOCALIZED, {"tables": list(metadata.tables)}):
        clauses[row.table].append(f'ALTER COLUMN "{row.column}" TYPE {row.type} COLLATE "C"')
    for table, changes in clauses.items():
        connection.execute(text(f'ALTER TABLE "{table}" {", ".join(changes)}'))


def upgrade(connection: Connection, current: str | None, target: str = HEAD) -> None:
    """Applies all migrations after `current`, None = from an empty database, up to `target`.

    Raises FailedPrecondition.
    """
    from alembic import command
    from alembic.config import Config

    if current is not None:
        check_known(current)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, target)


def check_known(revision: str) -> None:
    """Raises FailedPrecondition for the revision of a newer control plane."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()}
    if revision not in known:
        raise FailedPrecondition(
            f"the database has schema {revision}, this control plane knows up to {HEAD}: "
            "it was written by a newer version; install that version or newer"
        )
