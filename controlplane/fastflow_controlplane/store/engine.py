"""The one object that other packages hold of the database: `Store`.

Plain (synchronous) SQLAlchemy in threads of our own, not its asyncio layer: one hop per transaction instead of one per
statement, which measured three times as many operations per second and a third of the latency on SQLite.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.store.connections import check_server, make_engine, parse_url
from fastflow_controlplane.store.link import Wire
from fastflow_controlplane.store.migrations import migrate
from fastflow_controlplane.store.ownership import ownership_of
from fastflow_controlplane.store.place import Place
from fastflow_controlplane.store.queries.cluster import Leadership, take_over
from fastflow_controlplane.store.queries.requests import try_out
from fastflow_controlplane.store.writer import Writer, is_failure_of_the_database

log = structlog.get_logger(__name__)

T = TypeVar("T")

READERS = 4
"""Reading connections, each with a thread; queries are short and bounded by page size."""
READ_SECONDS = 10.0
"""A query that takes longer will not end: a connection can be open though the server is gone."""


class Store:
    """The database: `read` for queries on connections of their own, `write` for the one group-committing writer.

    A query or operation is a plain function of a `Connection`. It runs in a thread, so it touches nothing but the
    connection and its arguments, and returns plain values; it may be called twice.
    """

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self._place = Place(self.url)
        self._ownership = ownership_of(self.url, self._place.name)
        self._write_engine = make_engine(self.url, self._ownership.name, writing=True, size=1)
        self._read_engine = make_engine(self.url, self._ownership.name, writing=False, size=READERS)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._read_problem: Problem | None = None
        self.writer = Writer(self._write_engine, self._place, self._ownership)

    def open(self) -> None:
        """Takes the database over, creates it where there is none and brings it to the newest schema.

        Blocks; call it at start. Raises FailedPrecondition where another control plane has it.
        """
        if self._place.folder is not None:
            self._place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._ownership.prepare()
            with self._write_engine.connect() as connection:
                check_server(connection)
                self._ownership.hold(connection)
                migrate(connection)
        except BaseException as error:
            self._write_engine.dispose()
            self._ownership.release()
            if isinstance(error, DBAPIError):
                raise self._place.failure(error, "opened") from error
            raise

    async def start(self) -> None:
        """Starts the writer task. `open` comes first."""
        await self.writer.start()

    async def lead(self, now: int) -> Leadership:
        """Takes the lead, so that nothing of what led before is written any more."""
        return await self.write(lambda connection: take_over(connection, now))

    async def write(self, operation: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """See `Writer.write`."""
        return await self.writer.write(operation, committed)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Returns what `query` finds in one snapshot. Raises Unavailable when the database does not answer."""
        reading = _Reading(query)
        loop = asyncio.get_running_loop()
        running: asyncio.Future[T] = loop.run_in_executor(self._readers, self._read, reading)
        try:
            if not (await asyncio.wait({running}, timeout=READ_SECONDS))[0]:
                reading.cut()
                raise self._place.silence()
            return running.result()
        except asyncio.CancelledError:
            # Its thread goes on, and would have to wait as long as the server does not answer.
            loop.call_later(READ_SECONDS, reading.cut)
            raise
        except Unavailable as error:
            self._note_reading(Problem(error.reason, error.message))
            raise
        finally:
            running.cancel()

    def _read(self, reading: "_Reading[T]") -> T:
        try:
            try:
                return self._query(reading)
            except DBAPIError as error:
                if not error.connection_invalidated or reading.over:
                    raise
                # Nothing was read for long enough that the server was started anew.
                return self._query(reading)
        except DBAPIError as error:
            if not is_failure_of_the_database(error):
                raise
            raise self._place.failure(error, "read") from error

    def _query(self, reading: "_Reading[T]") -> T:
        with self._read_engine.connect() as connection, reading.through(connection):
            return reading.query(connection)

    @property
    def problem(self) -> Problem | None:
        """Why the database can not be used at the moment; None = it can."""
        return self.writer.problem or self._read_problem

    async def recheck(self) -> None:
        """Where it can not be used, or ended our session, tries it: so either is noticed though nobody asks.

        From a database that became another's, nothing must be read for long either.
        """
        if self.problem is not None or self.writer.link.ended():
            with suppress(Unavailable):
                await self.write(try_out)
                await self.read(lambda connection: connection.execute(text("SELECT 1")).scalar())
                self._note_reading(None)

    def _note_reading(self, problem: Problem | None) -> None:
        told, self._read_problem = self._read_problem, problem
        if problem and told is None:
            log.error("reading fails", why=problem.message)
        elif told and problem is None:
            log.info("reading works again")

    async def until_deposed(self) -> None:
        """See `Writer.until_deposed`."""
        await self.writer.until_deposed()

    async def close(self) -> None:
        """Writes what is waiting, then closes all connections."""
        await self.writer.close()
        # Not here: who reads from a server that does not answer is given up on by what goes on meanwhile.
        await asyncio.to_thread(self._readers.shutdown)
        self._read_engine.dispose()
        self._write_engine.dispose()
        self._ownership.release()


@dataclass
class _Reading(Generic[T]):
    """One query under way, and what it reads from."""

    query: Callable[[Connection], T]
    over: bool = False
    _wire: Wire | None = None

    @contextmanager
    def through(self, connection: Connection) -> Iterator[None]:
        """Lets `cut` reach it while it uses this connection, which is another's afterwards."""
        self._wire = Wire.of(connection)
        try:
            if self.over and self._wire is not None:
                self._wire.cut()
            yield
        finally:
            self._wire = None

    def cut(self) -> None:
        """Ends it, from another thread."""
        self.over = True
        wire = self._wire
        if wire is not None:
            wire.cut()
