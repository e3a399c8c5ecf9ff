"""Following a run: its state, its output, its warnings, across lost connections, until its end or Ctrl-C."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastflow.ids import new_id, short
from fastflow.v1 import logs_pb2, runs_pb2

from ffctl import failures, wording
from ffctl.connection import PATIENCE_S, Connection
from ffctl.failures import Detached, Failure
from ffctl.interrupts import Interrupts
from ffctl.progress import Progress

QUIET_AFTER_END_S = 30.0
"""For how long after a run's end the rest of its log is waited for while not a byte arrives."""
QUIET_AFTER_LOST_S = 2.0
"""The same for a run that is LOST: its agent is away, so the rest may never come."""

T = TypeVar("T")

_WATCHING, _READING = "watching", "reading"
"""The two streams of a follower: the run's state, and its output."""

Sink = Callable[[logs_pb2.ReadLogResponse, Callable[[], bool]], int]
"""Takes one message of a log, and returns how many bytes of its data were taken when the second argument
(shall it stop?) became true."""


@dataclass(frozen=True)
class Position:
    """Where in a run's output to read on. `attempt` 0 = the newest, and then those that follow it."""

    attempt: int = 0
    offset: int = 0
    tail_lines: int = 0

    def request(self, run_id: str, *, follow: bool) -> logs_pb2.ReadLogRequest:
        """Returns the request for the bytes from here on."""
        return logs_pb2.ReadLogRequest(
            run_id=run_id, attempt=self.attempt, offset=self.offset, tail_lines=self.tail_lines, follow=follow
        )

    def after(self, message: logs_pb2.ReadLogResponse) -> "Position":
        """Returns the position behind `message`; from now on it names the attempt."""
        return Position(attempt=message.attempt or self.attempt, offset=message.next_offset)


class Notes:
    """Warnings, losses of output, an agent's absence and attempts that others follow, each said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._attempt = 0
        self._trouble = ""
        self._said: set[tuple[object, ...]] = set()

    def of_run(self, run: runs_pb2.Run) -> None:
        """Says what is new in `run`."""
        for attempt in run.attempts:
            for warning in attempt.warnings:
                self._warning(attempt.number, warning)
            for loss in attempt.log_losses:
                self.loss(attempt.number, loss)
            if attempt.state in wording.TERMINAL and run.state not in wording.TERMINAL:
                self._followed(attempt)
        if run.state not in wording.LIVE or not run.attempts:
            self._trouble = ""
            return
        newest = run.attempts[-1]
        if newest.number != self._attempt:
            # Its agent may be another, of which nothing was told.
            self._attempt, self._trouble = newest.number, ""
        # What the attempt says of itself is no trouble.
        trouble = "" if run.message == newest.message else run.message
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(f"warning: {trouble}" if trouble else f'agent "{newest.agent}" is back to normal')

    def loss(self, attempt: int, loss: runs_pb2.LogLoss) -> None:
        """Says that output was lost."""
        count = f"{wording.size(loss.bytes)} lost" if loss.HasField("bytes") else "output lost"
        text = f"warning: {count} at offset {loss.offset} ({wording.loss_kind(loss.kind)}): {loss.message}"
        self._once((attempt, "loss", loss.kind, loss.offset), text)

    def _followed(self, attempt: runs_pb2.Attempt) -> None:
        # Told of the attempt itself: that the run waits again is not seen where the next one follows at once.
        is_lost = attempt.state == runs_pb2.RUN_STATE_LOST
        text = f"attempt {attempt.number} " + ("is lost" if is_lost else f"ended {wording.run_state(attempt.state)}")
        self._once(
            (attempt.number, "followed"), f"warning: {text}" + (f": {attempt.message}" if attempt.message else "")
        )

    def _warning(self, attempt: int, warning: runs_pb2.SoftLimitWarning) -> None:
        key = (attempt, warning.kind, warning.raise_time.seconds, warning.raise_time.nanos)
        self._once(key, f"warning: {wording.warning(warning)} at {wording.clock(warning.raise_time)}")

    def _once(self, key: tuple[object, ...], text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._say(text)


class Outages:
    """Tells which loss of a stream is a new outage: all share one connection, and each misses it in its own time."""

    def __init__(self) -> None:
        self._number = 0
        self._opened: dict[str, int] = {}
        self._heard: set[str] = set()

    def opened(self, stream: str, call: T) -> T:
        """Returns `call`, which is `stream` from now on."""
        self._opened[stream] = self._number
        return call

    def heard(self, stream: str) -> None:
        """A message came on `stream`; one that was on its way when the outage began does not end it."""
        if self._opened[stream] == self._number:
            self._heard.add(stream)

    def begins(self, stream: str) -> bool:
        """`stream` is lost: says whether that is the first of an outage that a person notices."""
        if self._number and stream not in self._heard:
            return False
        self._number += 1
        self._heard.clear()
        return True


class Follower:
    """Follows one run. With a `sink` its output is read as well, from `position` on."""

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        progress: Progress,
        interrupts: Interrupts,
        *,
        sink: Sink | None = None,
        position: Position | None = None,
        on_run: Callable[[runs_pb2.Run], None] = lambda run: None,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._progress = progress
        self._interrupts = interrupts
        self._sink = sink
        self._position = position or Position()
        self._pinned = self._position.attempt > 0
        self._on_run = on_run
        self._notes = Notes(progress.note)
        self._run: runs_pb2.Run | None = None
        self._changed = asyncio.Event()
        self._answered = asyncio.Event()
        self._sealed = False
        self._bytes_seen = 0
        self._outages = Outages()

    async def until_end(self) -> runs_pb2.Run:
        """Returns the run in its terminal state, once its output (if wanted) is complete.

        Raises Detached after Ctrl-C, Unreachable, Refused or ReaderLeft.
        """
        watching = asyncio.create_task(self._watch())
        reading = asyncio.create_task(self._read()) if self._sink else None
        pressed = asyncio.create_task(self._interrupts.pressed.wait())
        try:
            while True:
                waiting = {task for task in (watching, reading) if task is not None and not task.done()}
                if not waiting:
                    break
                seen = self._bytes_seen
                quiet = self._quiet_time() if watching.done() else None
                done, _ = await asyncio.wait({*waiting, pressed}, timeout=quiet, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {pressed}:
                    task.result()
                if pressed in done:
                    await self._ask()
                    pressed = asyncio.create_task(self._interrupts.pressed.wait())
                elif not done and seen == self._bytes_seen:
                    self._give_up_on_log()
                    break
        except Failure as failure:
            self._progress.stop()
            if isinstance(failure, failures.ReaderLeft):
                failure.exit_code = failures.DETACHED
            if isinstance(failure, failures.Unreachable):
                failure.hint = f"The run may well go on. {self._come_back()}"
            raise
        finally:
            await _cancel(watching, reading, pressed)
            self._progress.stop()
        assert self._run is not None, "the watch ends only after it has seen the run"
        return self._run

    async def _watch(self) -> None:
        stub = self._connection.runs
        answers = self._connection.stream(
            lambda: self._outages.opened(_WATCHING, stub.WatchRun(runs_pb2.WatchRunRequest(id=self._run_id))),
            complete=lambda: self._run is not None and self._run.state in wording.TERMINAL,
            on_lost=partial(self._on_lost, _WATCHING),
        )
        async for answer in answers:
            self._outages.heard(_WATCHING)
            self._run = answer.run
            self._changed.set()
            self._tell(answer.run)
            self._on_run(answer.run)

    def _tell(self, run: runs_pb2.Run) -> None:
        self._notes.of_run(run)
        if run.state in wording.TERMINAL:
            return
        text = doing(run)
        if self._sink and run.state in (runs_pb2.RUN_STATE_RUNNING, runs_pb2.RUN_STATE_STOPPING):
            self._progress.settle(text)
        else:
            self._progress.update(text)

    async def _read(self) -> None:
        assert self._sink is not None
        while True:
            self._sealed = False
            answers = self._connection.stream(
                lambda: self._outages.opened(
                    _READING, self._connection.logs.ReadLog(self._position.request(self._run_id, follow=True))
                ),
                complete=lambda: True,
                on_lost=partial(self._on_lost, _READING),
            )
            async for message in answers:
                self._outages.heard(_READING)
                await self._take(message)
            if self._pinned or not await self._later_attempt():
                if not self._sealed:
                    self._give_up_on_log()
                return
            self._position = Position(attempt=self._position.attempt + 1)

    async def _take(self, message: logs_pb2.ReadLogResponse) -> None:
        assert self._sink is not None
        for loss in message.losses:
            self._notes.loss(message.attempt, loss)
        if message.data:
            self._progress.stop()
        taken = self._sink(message, self._interrupts.requested)
        while taken < len(message.data):
            self._position = Position(message.attempt, message.offset + taken)
            self._answered.clear()
            await self._answered.wait()
            rest = logs_pb2.ReadLogResponse(data=message.data[taken:])
            taken += self._sink(rest, self._interrupts.requested)
        self._bytes_seen += taken
        self._progress.wrote(message.data)
        self._position = self._position.after(message)
        self._sealed = message.sealed

    async def _later_attempt(self) -> bool:
        """Waits until it is known whether another attempt follows the one whose log was just read."""
        while self._run is None or (
            self._run.state not in wording.TERMINAL and self._run.attempt <= self._position.attempt
        ):
            self._changed.clear()
            await self._changed.wait()
        return self._run.attempt > self._position.attempt

    def _quiet_time(self) -> float:
        if self._run is None or self._run.attempt == 0:
            return 0.0
        return QUIET_AFTER_LOST_S if self._run.state == runs_pb2.RUN_STATE_LOST else QUIET_AFTER_END_S

    def _give_up_on_log(self) -> None:
        if self._run is not None and self._run.attempt:
            self._progress.note("warning: the rest of the log has not arrived yet; it may still come with its agent")
            self._progress.note(self._come_back())

    def _on_lost(self, stream: str, explanation: str) -> None:
        if self._outages.begins(stream):
            self._progress.note(f"connection lost: {explanation}; trying again")

    async def _ask(self) -> None:
        self._progress.stop()
        choice = self._interrupts.cancel_or_detach(short(self._run_id))
        if choice is False:
            raise Detached(
                f"detached from run {short(self._run_id)}, which goes on",
                details=[self._come_back(), f"End it with: ffctl runs cancel {short(self._run_id)}"],
            )
        if choice:
            request = runs_pb2.CancelRunRequest(id=self._run_id, request_id=new_id())
            await self._connection.call(self._connection.runs.CancelRun, request)
            self._progress.note(f"asked run {short(self._run_id)} to stop")
        self._answered.set()
        if self._run is not None:
            self._tell(self._run)

    def _come_back(self) -> str:
        command = f"ffctl logs -f {short(self._run_id)}"
        if self._sink and self._position.offset:
            attempt = f" --attempt {self._position.attempt}" if self._position.attempt > 1 else ""
            command += f"{attempt} --from {self._position.offset}"
        return f"Come back with: {command}"


async def read_once(connection: Connection, run_id: str, position: Position, sink: Sink) -> Position:
    """Sends what there is of a log now to `sink`, and returns the position behind it."""
    here = position

    answers = connection.stream(
        lambda: connection.logs.ReadLog(here.request(run_id, follow=False)),
        complete=lambda: True,
        patience=PATIENCE_S,
    )
    async for message in answers:
        here = here.after(message)
        sink(message, lambda: False)
    return here


def doing(run: runs_pb2.Run) -> str:
    """Returns what a run does now, for people: "queued: no agent has 64 GiB of memory".

    Of one that is prepared: "preparing on worker-1: its environment is being prepared".
    """
    where = f" on {run.attempts[-1].agent}" if run.attempts else ""
    if run.state == runs_pb2.RUN_STATE_QUEUED:
        return f"queued: {run.message}" if run.message else "queued"
    attempt = f" (attempt {run.attempt})" if run.attempt > 1 else ""
    state = "starting" if run.state == runs_pb2.RUN_STATE_ASSIGNED else wording.run_state(run.state).lower()
    said = run.attempts[-1].message if run.attempts and run.state in wording.LIVE else ""
    return f"{state}{where}{attempt}" + (f": {said}" if said else "")


def verdict(run: runs_pb2.Run, now: float) -> str:
    """Returns how a run ended, in one line."""
    state = wording.run_state(run.state)
    facts = [wording.reason(run.reason)] if run.reason and run.reason not in wording.SAID_OTHERWISE else []
    if run.HasField("exit_code") and run.state != runs_pb2.RUN_STATE_SUCCEEDED:
        facts.append(f"exit code {run.exit_code}")
    text = f"run {short(run.id)} of {run.pipeline} {state}"
    text += f" ({', '.join(facts)})" if facts else ""
    text += f" after {wording.took(run, now)}" if run.HasField("start_time") else ""
    # An exit code's message would only repeat it.
    told = run.state == runs_pb2.RUN_STATE_SUCCEEDED or run.reason == runs_pb2.REASON_EXIT_CODE
    return text + (f": {run.message}" if run.message and not told else "")


def exit_code(run: runs_pb2.Run) -> int:
    """Returns the exit code that tells how a run ended."""
    return failures.SUCCEEDED if run.state == runs_pb2.RUN_STATE_SUCCEEDED else failures.RUN_FAILED


async def _cancel(*tasks: asyncio.Task[object] | asyncio.Task[None] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
