"""What a failure of the database means for the caller."""

import sqlite3
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.conditions import DATABASE_UNAVAILABLE
from fastflow_controlplane.disk import DISK_FULL, full_message, has_room, says_full
from fastflow_controlplane.errors import FailedPrecondition, Unavailable

AMBIGUOUS = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says of a full disk where it is not SQLITE_FULL: a quota, no room for its shared memory, no inode."""
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
LOCK_TIMEOUT = "55P03"
"""PostgreSQL's lock_not_available: a lock was waited for in vain."""
PRIMARY_CODE = 0xFF
"""Extended result codes of SQLite carry the primary one in their lowest byte (sqlite.org/rescode.html)."""
RESTORE = "stop the control plane and put a copy back with `fastflow-controlplane db restore`"
WAITS = "nothing is acknowledged meanwhile, agents keep what they have, and all goes on by itself"


class Place:
    """Where a database lies: its name in messages, without a password, and `folder` where it is a file."""

    def __init__(self, url: URL) -> None:
        sqlite = url.get_backend_name() == "sqlite"
        # Parameters may hold a password as well, or the path of a key.
        self.name = (
            url.database or ""
            if sqlite
            else url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
        )
        self.folder = Path(self.name).parent if sqlite else None

    def has_room(self) -> bool:
        """Whether its disk takes more; True where that can not be told. Blocks."""
        return self.folder is None or has_room(self.folder)

    def failure(self, error: DBAPIError, what: str) -> Unavailable:
        """Returns the error for the caller; `what` can not be done ("written"). Blocks."""
        text = " ".join(str(error.orig).split())
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK) & PRIMARY_CODE
        if says_full(text) or (code in AMBIGUOUS and not self.has_room()):
            message = full_message(self.name, "nothing new can be stored")
            return Unavailable(message, reason=DISK_FULL, metadata={"database": self.name})
        if code in LOCKED or getattr(error.orig, "sqlstate", None) == LOCK_TIMEOUT:
            return self._unavailable("is locked by another program", "end what has it open")
        if code in DAMAGED:
            message = f"the database at {self.name} is damaged ({text}): {RESTORE}"
            return Unavailable(message, reason=DATABASE_UNAVAILABLE, metadata={"database": self.name})
        return self._unavailable(f"can not be {what}: {text}", self._remedy)

    def missing(self) -> Unavailable:
        """Returns the error where the file was taken away while it was in use."""
        return self._unavailable("is not there any more", f"put the file back, or {RESTORE}")

    def silence(self) -> Unavailable:
        """Returns the error for whoever waits for a database that gives no answer at all."""
        return self._unavailable("gives no answer", self._remedy)

    def interrupted(self) -> Unavailable:
        """Returns the error for whoever was to be stored when the database went away, and was not."""
        return Unavailable(
            f"the database at {self.name} went away before this was stored: try again", reason=DATABASE_UNAVAILABLE
        )

    def unknown(self) -> Unavailable:
        """Returns the error for whoever leaves before it is known what became of their commit."""
        return Unavailable(
            f"the database at {self.name} went away while this was stored: see whether it was", reason="OUTCOME_UNKNOWN"
        )

    def occupied(self) -> FailedPrecondition:
        """Returns the error where a database is in the way of a copy."""
        return FailedPrecondition(f"there is a database at {self.name}: --force replaces it, and keeps it aside")

    @property
    def _remedy(self) -> str:
        if self.folder is not None:
            return "check its disk and its permissions"
        return "see that the server runs, can be reached and lets this user in"

    def _unavailable(self, what: str, remedy: str) -> Unavailable:
        message = f"the database at {self.name} {what}: {remedy}; {WAITS}"
        return Unavailable(message, reason=DATABASE_UNAVAILABLE, metadata={"database": self.name})
