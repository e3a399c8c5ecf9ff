"""All writes go through one task with group commit: many operations, one sync of the disk.

An operation is acknowledged after its commit, never before. A lone operation commits at once; while a commit is under
way, further ones gather and share the next.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine, Transaction
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import Deposed, FastFlowError, Unavailable
from fastflow_controlplane.store.link import WriteLink
from fastflow_controlplane.store.ownership import Ownership
from fastflow_controlplane.store.place import Place

log = structlog.get_logger(__name__)

T = TypeVar("T")

GROUP_OPERATIONS = 100
"""Operations in one commit: enough that the sync of the disk no longer counts."""
GROUP_SECONDS = 0.010
"""Execution time after which a group commits although more is waiting, so that the first does not wait for long."""
QUEUE_OPERATIONS = 1_000
"""Operations that may wait; further callers wait to be let in."""
STALL_SECONDS = 10.0
"""A commit that takes longer will not come: a connection can be open though the server is gone. More than SQLite waits
for a lock."""
STALLED_SECONDS = 1.0
"""While it does not come, how long those who come later wait before they are refused."""
OWN_FAULTS = (IntegrityError, DataError, ProgrammingError, InterfaceError)
"""Database errors that one operation causes for itself alone."""


@dataclass
class _Pending:
    operation: Callable[[Connection], Any]
    committed: Callable[[Any], None] | None
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


@dataclass
class _Outcome:
    """What became of a group: `executed` of its operations, all of them failed if there is a `failure`.

    `doubtful` = whether they are stored is unknown yet; `decided` = so it was of an earlier group, and now is known.
    """

    executed: int = 0
    failure: Unavailable | None = None
    doubtful: bool = False
    decided: bool | None = None


class Writer:
    """Owns the one writing connection."""

    def __init__(self, engine: Engine, place: Place, ownership: Ownership) -> None:
        self._place = place
        self.link = WriteLink(engine, ownership)
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Semaphore(QUEUE_OPERATIONS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._task: asyncio.Task[None] | None = None
        self._doubtful: Sequence[_Pending] = ()
        self._deposed = asyncio.Event()
        self._closing = False
        self.problem: Problem | None = None
        """Why writing does not work at the moment; None = it works."""

    async def start(self) -> None:
        """Starts the writing task."""
        self._task = asyncio.create_task(self._run(), name="store-writer")

    async def write(self, operation: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Runs `operation` in the next group and returns its result after the commit.

        An operation that raises changes nothing, and its error comes out here; the others of its group are not
        touched. It may be called twice, where the connection is found broken. `committed` is called with the result on
        the event loop, after the commit and in the order of commits, even if the caller was cancelled meanwhile.
        Raises Unavailable when the database fails: nothing of the operation is stored then. Where it went away in the
        middle of a commit, that is known, and this returns, once it is back.
        """
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise Unavailable("the control plane is shutting down; try again in a moment", reason="SHUTTING_DOWN")
        pending = _Pending(operation, committed, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._arrived.set()
        return cast(T, await pending.done)

    async def until_deposed(self) -> None:
        """Returns never; raises Deposed once the database belongs to another control plane."""
        await self._deposed.wait()
        assert self.link.deposed is not None
        raise self.link.deposed

    async def close(self) -> None:
        """Refuses new operations, commits the waiting ones and closes the connection."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_OPERATIONS))]
            outcome = await self._attend(self._commit, group)
            self._queue.extendleft(reversed(group[outcome.executed :]))
            failure = outcome.failure
            # A small operation may still fit on a disk that is full for all others.
            if failure or not self.problem or await self._attend(self._place.has_room):
                self._note(failure)
            if outcome.decided is not None:
                self._settle(self._doubtful, None if outcome.decided else self._place.interrupted())
                self._doubtful = ()
            if outcome.doubtful:
                self._doubtful = group[: outcome.executed]
            else:
                self._settle(group[: outcome.executed], failure)
        self._settle(self._doubtful, self._place.unknown())
        await self._attend(self.link.drop)

    async def _attend(self, work: Callable[..., T], *arguments: Any) -> T:
        """Calls `work` in the writing thread; while it hangs, whoever waits for their turn is refused."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments))
        patience = STALL_SECONDS
        while not (await asyncio.wait({running}, timeout=patience))[0]:
            patience = STALLED_SECONDS
            failure = self._place.silence()
            self._note(failure)
            self.link.cut()
            waiting, self._queue = self._queue, deque()
            self._settle(waiting, failure)
        return running.result()

    def _commit(self, group: list[_Pending]) -> _Outcome:
        outcome = _Outcome()
        try:
            try:
                self._execute(group, outcome)
            except DBAPIError as error:
                if self.link.was_cut or self.link.doubt or not error.connection_invalidated:
                    raise
                # Nothing happened for long enough that the server was started anew: one more connection tells.
                self.link.drop()
                self._execute(group, outcome)
        except DBAPIError as error:
            self.link.drop()
            outcome.failure = self._place.silence() if self.link.was_cut else self._place.failure(error, "written")
            outcome.doubtful = bool(self.link.doubt) and outcome.executed > 0
        except FileNotFoundError:
            outcome.failure = self._place.missing()
        except Deposed as error:
            outcome.failure = Unavailable(error.message, reason=error.reason)
        if outcome.failure:
            # Without a connection none of the group can succeed; else those that came before share the rollback.
            outcome.executed = outcome.executed or len(group)
        return outcome

    def _execute(self, group: list[_Pending], outcome: _Outcome) -> None:
        outcome.executed = 0
        self.link.connect()
        if self.link.doubt:
            outcome.decided = self.link.decide()
        started = time.monotonic()
        with self.link.begin() as transaction:
            commit = partial(self.link.commit, transaction)
            if len(group) == 1:
                # As it is most of the time: then the transaction itself is what is undone.
                outcome.executed = 1
                _execute(transaction, group[0], commit)
                return
            for pending in group:
                outcome.executed += 1
                savepoint = transaction.connection.begin_nested()
                _execute(savepoint, pending, savepoint.commit)
                if time.monotonic() - started > GROUP_SECONDS:
                    break
            commit()

    def _note(self, failure: Unavailable | None) -> None:
        if self.link.deposed is not None:
            self._deposed.set()
        problem = Problem(failure.reason, failure.message) if failure else None
        told = self.problem
        self.problem = problem
        if problem and (told is None or told.reason != problem.reason):
            log.error("writing fails", why=problem.message)
        elif told and problem is None:
            log.info("writing works again")

    def _settle(self, pendings: Sequence[_Pending] | deque[_Pending], failure: Unavailable | None) -> None:
        for pending in pendings:
            self._room.release()
            _settle(pending, failure)


def _execute(undoable: Transaction, pending: _Pending, keep: Callable[[], None]) -> None:
    """Runs one operation in a transaction or savepoint of its own."""
    pending.error = None
    try:
        pending.result = pending.operation(undoable.connection)
    except Exception as error:  # handed to the caller, whose operation it is
        if is_failure_of_the_database(error):
            # SQLite may have rolled back all by itself, the savepoint included.
            raise
        undoable.rollback()
        pending.error = error
    else:
        keep()


def is_failure_of_the_database(error: Exception) -> bool:
    """Whether others than the one who asked are concerned."""
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
