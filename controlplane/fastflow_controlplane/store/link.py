"""The one connection that writes: it owns the database, and knows what became of a commit that was not answered.

Each commit leaves its id in the database. Whoever connects anew finds the id of the last one that was acknowledged, or
of the one that was not answered; or else this is not the database that it was. A number of the server's own would not
do: after a crash it gives the numbers of what it lost to other transactions.
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastflow.ids import new_id
from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.errors import Deposed, FailedPrecondition
from fastflow_controlplane.store.ownership import Ownership
from fastflow_controlplane.store.queries.cluster import note_commit, read_last_commit


class WriteLink:
    """Connects and connects anew. All but `ended` and `cut` is for the writing thread alone."""

    def __init__(self, engine: Engine, ownership: Ownership) -> None:
        self._engine = engine
        self._ownership = ownership
        self._connection: Connection | None = None
        self._wire: Wire | None = None
        self._acknowledged: str | None = None
        self._found = ""
        self.doubt: str | None = None
        """Id of the commit that was not answered; None = there is none."""
        self.was_cut = False
        """Whether what goes on since `connect` was given up on."""
        self.deposed: Deposed | None = None
        """Why nothing is written any more, ever."""

    def connect(self) -> None:
        """Makes sure of a connection that owns the database. Raises DBAPIError, Deposed.

        Raises FileNotFoundError where there is none any more; the connection stays, through which it can be rescued.
        """
        if self.deposed is not None:
            raise self.deposed
        # What was given up on may have come in the end.
        self.was_cut = False
        if self._ownership.displaced():
            self.drop()
        if self._connection is not None:
            return
        self._connection = self._engine.connect()
        self._wire = Wire.of(self._connection)
        try:
            self._ownership.hold(self._connection)
            self._check_last_commit(self._connection)
        except FailedPrecondition as error:
            self.drop()
            self.deposed = Deposed(error.message, reason=error.reason)
            raise self.deposed from None
        except BaseException:
            self.drop()
            raise

    def _check_last_commit(self, connection: Connection) -> None:
        self._found = read_last_commit(connection)
        connection.rollback()
        if self._acknowledged is None:
            self._acknowledged = self._found
        if self._found not in (self._acknowledged, self.doubt):
            raise FailedPrecondition(
                "another control plane has used the database meanwhile, or another copy of it was put in place: "
                "what this one knows is out of date; start it anew",
                reason="DATABASE_TAKEN_OVER",
            )

    @contextmanager
    def begin(self) -> Iterator[RootTransaction]:
        """A transaction, undone unless `commit` is called."""
        assert self._connection is not None, "connect() comes first"
        with self._connection.begin() as transaction:
            yield transaction
            if transaction.is_active:
                transaction.rollback()

    def commit(self, transaction: RootTransaction) -> None:
        """Commits. Raises DBAPIError; where `doubt` is set then, it is unknown whether all is stored or nothing."""
        commit_id = new_id()
        note_commit(transaction.connection, commit_id)
        try:
            transaction.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                self.doubt = commit_id
            raise
        self._acknowledged = commit_id

    def decide(self) -> bool:
        """Tells, on a new connection, whether what was in doubt is stored.

        The session that brought it has ended, since this one has its lock: it is not under way any more.
        """
        assert self._connection is not None, "connect() comes first"
        stored = self._found == self.doubt
        self._acknowledged, self.doubt = self._found, None
        return stored

    def drop(self) -> None:
        """Closes the connection: after a failure its state is unknown, SQLite rolls back by itself on some errors."""
        self._wire = None
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def ended(self) -> bool:
        """Whether a server seems to have ended our session: it sends nothing to an idle one. For any thread."""
        wire = self._wire
        return wire is not None and wire.has_news()

    def cut(self) -> None:
        """See `Wire.cut`."""
        self.was_cut = True
        wire = self._wire
        if wire is not None:
            wire.cut()


class Wire:
    """What a server is reached through, for other threads than the one that uses the connection."""

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection
        self._errors = (OSError, ValueError, connection.dialect.loaded_dbapi.Error)

    @staticmethod
    def of(connection: Connection) -> "Wire | None":
        """Returns that of a connection; None for SQLite, which waits for its disk, and nothing can end that."""
        return Wire(connection) if connection.dialect.name == "postgresql" else None

    def has_news(self) -> bool:
        """Whether there is something to read, be it the end."""
        try:
            poll = select.poll()
            poll.register(self._driver.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except self._errors:
            return True

    def cut(self) -> None:
        """Breaks the connection: who waits for an answer on it fails at once."""
        with suppress(*self._errors), socket.socket(fileno=os.dup(self._driver.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
