"""How each kind of database is connected to."""

from functools import cache
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from sqlite3 import OperationalError
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fastflow_controlplane.errors import FailedPrecondition, InvalidArgument

LOCK_SECONDS = 5
"""How long a statement waits for a lock, which only another program can hold."""
CONNECT_SECONDS = 5
"""How long a server may take to let us in: it does in milliseconds."""
SILENCE_SECONDS = 25
"""How long one host may leave unacknowledged what the other sent: there are no keepalives while that is under way."""
OLDEST_SERVER = 13
"""Those before it get no fixes from their makers any more."""
SESSION = {
    # As on SQLite: acknowledged means on disk. "remote_apply" and the like, which promise more, are left alone.
    "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END",
    "lock_timeout": f"'{LOCK_SECONDS}s'",
    # So that the server notices within half a minute that our host is gone, and our lock with it.
    "tcp_keepalives_idle": "'10'",
    "tcp_keepalives_interval": "'5'",
    "tcp_keepalives_count": "'3'",
    "tcp_user_timeout": f"'{SILENCE_SECONDS}s'",
}
"""What we ask of PostgreSQL for our sessions: setting and SQL expression."""

KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENCE_SECONDS * 1000,
}
"""And we notice that the server's host is gone."""
LAST_WORDS = ("57P01", "57P02", "57P05", "25P03")
"""PostgreSQL's admin_shutdown, crash_shutdown and time limits of idle sessions."""


def parse_url(url: str) -> URL:
    """Returns `url` with the driver we use; raises InvalidArgument for databases other than SQLite and PostgreSQL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidArgument(
            "database_url is no database URL; examples: sqlite:////var/lib/fastflow/fastflow.db, "
            "postgresql://user:password@host/fastflow"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InvalidArgument("database_url names no file: runs would be gone with the process")
        return parsed.set(drivername="sqlite+pysqlite")
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise InvalidArgument(f'database_url names "{backend}"; supported are sqlite and postgresql')


def make_engine(url: URL, name: str, *, writing: bool, size: int) -> Engine:
    """Returns an engine of up to `size` connections; `name` is what they are called on a server."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=size, max_overflow=0)
        _tune_sqlite(engine, writing=writing)
        return engine
    try:
        engine = create_engine(
            url,
            pool_size=size,
            max_overflow=0,
            # Each read sees one snapshot, as it does on SQLite.
            isolation_level="READ COMMITTED" if writing else "REPEATABLE READ",
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "application_name": name,
                "client_encoding": "utf8",
                **KEEPALIVE,
            },
        )
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"database_url names PostgreSQL, which needs the Python package {error.name}: install it with "
            '"fast-flow[controlplane,postgresql]"'
        ) from None
    _tune_postgresql(engine, writing=writing)
    return engine


def check_server(connection: Connection) -> None:
    """Raises FailedPrecondition for a server, or a database on it, that can not hold ours."""
    if connection.dialect.name != "postgresql":
        return
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    connection.rollback()
    if version < OLDEST_SERVER:
        raise FailedPrecondition(f"the database server is PostgreSQL {version}; needed is {OLDEST_SERVER} or newer")
    if encoding != "UTF8":
        raise FailedPrecondition(
            f"the database has the encoding {encoding}: make one with CREATE DATABASE ... ENCODING 'UTF8' "
            "TEMPLATE template0"
        )


def _tune_postgresql(engine: Engine, *, writing: bool) -> None:
    settings = SESSION if writing else {**SESSION, "default_transaction_read_only": "'on'"}
    tuning = "SELECT " + ", ".join(f"set_config('{name}', {value}, false)" for name, value in settings.items())

    def connected(connection: Any, _record: Any) -> None:
        connection.adapters.register_dumper(str, _text_dumper())
        with connection.cursor() as cursor:
            cursor.execute(tuning)
        connection.commit()

    def failed(context: ExceptionContext) -> None:
        # What the server says with its last words; the driver takes the connection for whole until it reads its end.
        if getattr(context.original_exception, "sqlstate", None) in LAST_WORDS:
            context.is_disconnect = True

    event.listen(engine, "connect", connected)
    event.listen(engine, "handle_error", failed)


@cache
def _text_dumper() -> type[Any]:
    """PostgreSQL keeps no NUL in text; one that a program puts into a message must not hold up its event for ever."""
    from psycopg.types.string import StrDumper

    class WithoutNul(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    return WithoutNul


def _tune_sqlite(engine: Engine, *, writing: bool) -> None:
    def connected(connection: SqliteConnection, _record: Any) -> None:
        # The driver must not begin transactions by itself: it would do so late, and never IMMEDIATE.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # Acknowledged means on disk: FULL syncs the log at each commit, NORMAL only at checkpoints.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if not writing:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def connecting(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
        # SQLite would make a new file, and the next start take it for the database.
        if not writing and not Path(arguments[0]).exists():
            raise OperationalError("the file is not there")

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    event.listen(engine, "do_connect", connecting)
    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
