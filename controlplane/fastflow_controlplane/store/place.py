"""What a failure of the database means for the caller."""

import sqlite3
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.disk import DISK_FULL, full_message, has_room, says_full
from fastflow_controlplane.errors import Unavailable

AMBIGUOUS = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says of a full disk where it is not SQLITE_FULL: a quota, no room for its shared memory, no inode."""
PRIMARY_CODE = 0xFF
"""Extended result codes of SQLite carry the primary one in their lowest byte (sqlite.org/rescode.html)."""


class Place:
    """Where a database lies: its name in messages, without a password, and `folder` where it is a file."""

    def __init__(self, url: URL) -> None:
        sqlite = url.get_backend_name() == "sqlite"
        self.name = url.database or "" if sqlite else url.render_as_string(hide_password=True)
        self.folder = Path(self.name).parent if sqlite else None

    def has_room(self) -> bool:
        """Whether its disk takes more; True where that can not be told. Blocks."""
        return self.folder is None or has_room(self.folder)

    def failure(self, error: DBAPIError, what: str) -> Unavailable:
        """Returns the error for the caller; `what` can not be done ("written"). Blocks."""
        text = str(error.orig)
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK) & PRIMARY_CODE
        if says_full(text) or (code in AMBIGUOUS and not self.has_room()):
            message = full_message(self.name, "nothing new can be stored")
            return Unavailable(message, reason=DISK_FULL, metadata={"database": self.name})
        return Unavailable(f"the database at {self.name} can not be {what}: {text}", reason="DATABASE_UNAVAILABLE")
