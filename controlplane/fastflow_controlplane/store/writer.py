"""All writes go through one task with group commit: many operations, one sync of the disk.

An operation is acknowledged after its commit, never before. A lone operation commits at once; while a commit is under
way, further ones gather and share the next.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine, Transaction
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import FastFlowError, Unavailable
from fastflow_controlplane.store.place import Place
from fastflow_controlplane.store.queries.requests import try_out

log = structlog.get_logger(__name__)

T = TypeVar("T")

GROUP_OPERATIONS = 100
"""Operations in one commit: enough that the sync of the disk no longer counts."""
GROUP_SECONDS = 0.010
"""Execution time after which a group commits although more is waiting, so that the first does not wait for long."""
QUEUE_OPERATIONS = 1_000
"""Operations that may wait; further callers wait to be let in."""
OWN_FAULTS = (IntegrityError, DataError, ProgrammingError, InterfaceError)
"""Database errors that one operation causes for itself alone."""


@dataclass
class _Pending:
    operation: Callable[[Connection], Any]
    committed: Callable[[Any], None] | None
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Writer:
    """Owns the one writing connection."""

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine = engine
        self._place = place
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Semaphore(QUEUE_OPERATIONS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.problem: Problem | None = None
        """Why writing does not work at the moment; None = it works."""

    async def start(self) -> None:
        """Starts the writing task."""
        self._task = asyncio.create_task(self._run(), name="store-writer")

    async def write(self, operation: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Runs `operation` in the next group and returns its result after the commit.

        An operation that raises changes nothing, and its error comes out here; the others of its group are not
        touched. `committed` is called with the result on the event loop, after the commit and in the order of commits,
        even if the caller was cancelled meanwhile. Raises Unavailable when the database fails: nothing of the
        operation is stored then.
        """
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise Unavailable("the control plane is shutting down; try again in a moment", reason="SHUTTING_DOWN")
        pending = _Pending(operation, committed, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._arrived.set()
        return cast(T, await pending.done)

    async def recheck(self) -> None:
        """Where writing does not work, tries it, so that its return is noticed though nobody asks for anything."""
        if self.problem is not None:
            with suppress(Unavailable):
                await self.write(try_out)

    async def close(self) -> None:
        """Refuses new operations, commits the waiting ones and closes the connection."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue or not self._closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_OPERATIONS))]
            executed, failure = await loop.run_in_executor(self._thread, self._commit, group)
            self._queue.extendleft(reversed(group[executed:]))
            # A small operation may still fit on a disk that is full for all others.
            if failure or not self.problem or await loop.run_in_executor(self._thread, self._place.has_room):
                self._note(failure)
            for pending in group[:executed]:
                self._room.release()
                _settle(pending, failure)
        await loop.run_in_executor(self._thread, self._disconnect)

    def _commit(self, group: list[_Pending]) -> tuple[int, Unavailable | None]:
        """Returns how many operations were executed, and the failure of all of them if the database failed."""
        started = time.monotonic()
        executed = 0
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin() as transaction:
                if len(group) == 1:
                    # As it is most of the time: then the transaction itself is what is undone.
                    executed = 1
                    _execute(transaction, group[0])
                    return executed, None
                for pending in group:
                    executed += 1
                    _execute(self._connection.begin_nested(), pending)
                    if time.monotonic() - started > GROUP_SECONDS:
                        break
        except DBAPIError as error:
            self._disconnect()
            # Without a connection none of the group can succeed; else those that came before share the rollback.
            return executed or len(group), self._place.failure(error, "written")
        return executed, None

    def _disconnect(self) -> None:
        # After a failure the state of the connection is unknown: SQLite rolls back by itself on some errors.
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _note(self, failure: Unavailable | None) -> None:
        problem = Problem(failure.reason, failure.message) if failure else None
        if problem != self.problem:
            if problem:
                log.error("writing fails", why=problem.message)
            else:
                log.info("writing works again")
        self.problem = problem


def _execute(undoable: Transaction, pending: _Pending) -> None:
    """Runs one operation in a transaction or savepoint of its own."""
    try:
        pending.result = pending.operation(undoable.connection)
    except Exception as error:  # handed to the caller, whose operation it is
        if _is_failure_of_the_database(error):
            # SQLite may have rolled back all by itself, the savepoint included.
            raise
        undoable.rollback()
        pending.error = error
    else:
        undoable.commit()


def _is_failure_of_the_database(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and (error.connection_invalidated or not isinstance(error, OWN_FAULTS))


def _settle(pending: _Pending, failure: Unavailable | None) -> None:
    error = failure or pending.error
    if error is None and pending.committed is not None:
        try:
            pending.committed(pending.result)
        except Exception:  # the writer serves everybody: one faulty listener must not end it
            log.exception("a listener to a commit failed")
    if pending.done.done():
        if error is not None and not isinstance(error, FastFlowError):
            log.error("an operation failed after its caller had gone", exc_info=error)
    elif error is not None:
        pending.done.set_exception(error)
    else:
        pending.done.set_result(pending.result)
