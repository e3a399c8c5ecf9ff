"""One control plane owns a database: a second one would place each run twice.

SQLite: a lock on a file beside it. PostgreSQL: an advisory lock of the session that writes, so that whoever lost the
session lost the lock with it, and whoever can write has it.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Protocol

from fastflow.ids import new_id
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from fastflow_controlplane.errors import FailedPrecondition

ADVISORY_LOCK = 0x66617374666C6F77
"""Names our lock among those of other programs in the same database: "fastflow" in ASCII."""
LONGEST_NAME = 63
"""What PostgreSQL keeps of an application's name."""
PATIENCE_SECONDS = 3.0
"""How long another owner may take to go: the server notices a killed one within milliseconds, if it is not busy."""
POLL_SECONDS = 0.1
OWNED = "DATABASE_OWNED"
"""`ErrorInfo.reason` of a database that belongs to another control plane."""

_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_OWNER = text(
    "SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
    "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) = :key AND objsubid = 1"
)
_END = text("SELECT pg_terminate_backend(:pid)")


class Ownership(Protocol):
    """The right to write to a database. `name` is what the sessions of this program are called on a server."""

    name: str

    def prepare(self) -> None:
        """Takes what can be taken before there is a connection, or even a database. Raises as `hold`."""

    def hold(self, connection: Connection) -> None:
        """Takes the right, or makes sure of it, for a new connection. Raises FailedPrecondition: it is another's."""

    def displaced(self) -> bool:
        """Whether another database is now where the one was that `hold` took. Raises FileNotFoundError: none is."""

    def release(self) -> None:
        """Gives it up."""


class FileOwnership:
    """A lock on a file beside the database's."""

    name = ""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = database.with_name(f"{database.name}.lock")
        self._descriptor = -1
        self._held: tuple[int, int] | None = None

    def hold(self, connection: Connection) -> None:
        """See `Ownership.hold`."""
        self.prepare()
        self._held = _identity(self._database)

    def prepare(self) -> None:
        """See `Ownership.prepare`."""
        if self._descriptor >= 0:
            return
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _owned(str(self._database), "") from None
        self._descriptor = descriptor

    def displaced(self) -> bool:
        """See `Ownership.displaced`. SQLite itself goes on with a file that was removed, and all it stores is lost."""
        if self._held is None:
            return False
        try:
            return _identity(self._database) != self._held
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error
        except FileNotFoundError:
            raise
        except OSError:
            return False  # SQLite meets that trouble as well, and tells it

    def release(self) -> None:
        """See `Ownership.release`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SessionOwnership:
    """An advisory lock of the writing session."""

    def __init__(self, place: str) -> None:
        self._place = place
        own = f"fastflow {new_id()[-12:]} process {os.getpid()} on {socket.gethostname()}"
        self.name = own.encode()[:LONGEST_NAME].decode(errors="ignore")

    def prepare(self) -> None:
        """See `Ownership.prepare`: there is nothing."""

    def hold(self, connection: Connection) -> None:
        """See `Ownership.hold`. Ends a session of ours that the server still takes for alive."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not connection.execute(_LOCK, {"key": ADVISORY_LOCK}).scalar_one():
            owner = connection.execute(_OWNER, {"key": ADVISORY_LOCK}).one_or_none()
            if owner is not None and owner.application_name == self.name:
                connection.execute(_END, {"pid": owner.pid})
            elif time.monotonic() > deadline:
                raise _owned(self._place, owner.application_name or "" if owner else "")
            connection.rollback()
            time.sleep(POLL_SECONDS)
        connection.rollback()

    def displaced(self) -> bool:
        """See `Ownership.displaced`: the session would have ended."""
        return False

    def release(self) -> None:
        """See `Ownership.release`: it ends with the session."""


def ownership_of(url: URL, place: str) -> Ownership:
    """Returns how the database is owned; `place` is its name in messages."""
    if url.get_backend_name() == "sqlite":
        return FileOwnership(Path(place))
    return SessionOwnership(place)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _owned(place: str, owner: str) -> FailedPrecondition:
    who = f'another control plane ("{owner}")' if owner else "another control plane"
    return FailedPrecondition(f"{who} uses the database at {place}: stop it, or set another database_url", reason=OWNED)
