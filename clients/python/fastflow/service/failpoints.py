"""Fail points: the places where a crash hurts most, so that tests can have one there.

A program passes its points in silence, unless it was started with FASTFLOW_FAILPOINTS: points and what happens at each,
as `agent.created=kill controlplane.assigned=freeze@3`. `kill` ends the process with SIGKILL, as a power cut does;
`freeze` stops it with SIGSTOP until SIGCONT; `@3` means the third passing, the first being 1. Just before, the process
writes `mark(point)` to its standard error. `@FILE` instead names a file with such words, which is looked at in every
passing: so points are armed while the program runs.
"""

import os
import re
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Self

VARIABLE = "FASTFLOW_FAILPOINTS"
STDERR = 2
"""By its number: what is buffered would die with the process."""

_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
_ITEM = re.compile(r"(?P<point>[^=@]+)=(?P<action>[^=@]+)(?:@(?P<passing>[1-9][0-9]*))?")


class FailPoint(StrEnum):
    """One place; `sentence` says what has happened by then and what has not."""

    sentence: str

    def __new__(cls, name: str, sentence: str) -> Self:
        """Makes a member; its value is its name in FASTFLOW_FAILPOINTS."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.sentence = sentence
        return member


class ControlPlanePoint(FailPoint):
    """Where a control plane may die between two steps."""

    RUN_STORED = "controlplane.run-stored", "A run is committed; neither its caller nor the scheduler knows."
    ASSIGNED = "controlplane.assigned", "An assignment is committed; its agent has not been told."
    ASSIGNMENT_SENT = "controlplane.assignment-sent", "An assignment was handed to the agent's stream."
    EVENTS_COMMITTED = "controlplane.events-committed", "Events of an agent are committed and not acknowledged."
    EXIT_COMMITTED = "controlplane.exit-committed", "The end of an attempt is committed and not acknowledged."
    CANCEL_COMMITTED = "controlplane.cancel-committed", "A cancel is committed; neither caller nor agent knows."
    LOG_WRITTEN = "controlplane.log-written", "Bytes of a log are written, not synced, and not acknowledged."
    LOG_SYNCED = "controlplane.log-synced", "Bytes of a log are on disk and not acknowledged."
    LOG_CLOSED = "controlplane.log-closed", "A log is sealed on disk; the database does not know."
    LOG_SEALED = "controlplane.log-sealed", "The database says that a log is sealed; its agent has not been told."
    FORGET_DUE = "controlplane.forget-due", "All of an attempt is stored; its agent has not been told to FORGET it."
    FORGET_SENT = "controlplane.forget-sent", "FORGET was handed to the agent's stream."
    RUNS_REMOVED = (
        "controlplane.runs-removed",
        "Old runs are removed from the database; the files of their logs remain.",
    )
    LOGS_REMOVED = "controlplane.logs-removed", "The database says that logs were removed; their files remain."
    FILES_REMOVED = "controlplane.files-removed", "Files of removed logs are gone; that they are due is still noted."


class AgentPoint(FailPoint):
    """Where an agent may die between two steps. Words in capitals are records of an attempt's journal."""

    BOUND = "agent.bound", "INTENT is written: a slot is bound to the attempt, and nothing of it exists yet."
    CODE_READY = "agent.code-ready", "The attempt's code is on disk."
    PREPARED = "agent.prepared", "PREPARED is written: code and dependencies are there."
    FOLDERS_MADE = "agent.folders-made", "The slot's folders exist, its container does not."
    CONTAINER_CREATED = "agent.container-created", "The container exists; CREATED is not written."
    CREATED = "agent.created", "CREATED is written; the container has not been started."
    CONTAINER_STARTED = "agent.container-started", "The container waits for its release; STARTED is not written."
    RELEASING = "agent.releasing", "STARTED and RELEASING are written; the container waits for its release."
    CONTAINER_RELEASED = "agent.container-released", "User code may run; RELEASED is not written."
    RELEASED = "agent.released", "RELEASED is written; the control plane has not been told."
    STOPPING = "agent.stopping", "STOPPING is written; no signal was sent."
    SIGNAL_SENT = "agent.signal-sent", "SIGTERM was sent; SIGNALLED is not written."
    SIGNALLED = "agent.signalled", "SIGNALLED is written."
    END_SEEN = "agent.end-seen", "The container has ended; EXITED is not written."
    EXITED = "agent.exited", "EXITED and the verdict are written; the control plane has not been told."
    CONTAINER_REMOVED = "agent.container-removed", "The container is removed, which is not written."
    GONE = "agent.gone", "It is written that the container is gone."
    LOG_ACKNOWLEDGED = "agent.log-acknowledged", "The control plane has bytes of a log that are still in the spool."
    LOG_SEALED = "agent.log-sealed", "The control plane has the whole log; SEALED is not written."
    SEALED = "agent.sealed", "SEALED is written."
    FORGET = "agent.forget", "FORGET is written; the slot's folder is still there."
    DELETED = "agent.deleted", "Nothing of the attempt is left on the host."
    STAGED = "agent.staged", "A copy of the uv cache is ready for a preparer that has not begun."
    PREPARER_RELEASED = "agent.preparer-released", "A preparer fills a copy of the uv cache."
    PACKAGES_INSTALLED = "agent.packages-installed", "A preparer has ended well; nothing of it is published."
    GENERATION_MOVED = "agent.generation-moved", "A generation is in its place; the index does not name it."
    GENERATION_PUBLISHED = "agent.generation-published", "The index names a generation; its staging folder remains."


CATALOGUE: tuple[FailPoint, ...] = (*ControlPlanePoint, *AgentPoint)
"""All there are."""


class UnknownFailPoint(Exception):
    """FASTFLOW_FAILPOINTS says something that is not understood; the message says what is."""


class _Armed:
    """What is to happen at one point. Passed by any thread."""

    def __init__(self, number: signal.Signals, passing: int) -> None:
        self._number = number
        self._left = passing
        self._counting = threading.Lock()

    def passed(self, point: FailPoint) -> None:
        with self._counting:
            self._left -= 1
            due = self._left == 0
        if due:
            os.write(STDERR, f"{mark(point)}\n".encode())
            # Of this thread, so that it gets no further.
            signal.pthread_kill(threading.get_ident(), self._number)


class _File:
    """Words that may change while the program runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._words = ""
        self._changing = threading.Lock()

    def look(self) -> None:
        try:
            words = self._path.read_text()
        except FileNotFoundError:
            words = ""
        with self._changing:
            if words != self._words:
                self._words = words
                _armed.clear()
                _armed.update(_read(words))


_armed: dict[FailPoint, _Armed] = {}
_file: _File | None = None


def reach(point: FailPoint) -> None:
    """Passes a point; does nothing unless the program was started with FASTFLOW_FAILPOINTS."""
    if _file is not None:
        _file.look()
    if _armed and (armed := _armed.get(point)):
        armed.passed(point)


def arm(words: str) -> None:
    """Arms the points that FASTFLOW_FAILPOINTS names. Raises UnknownFailPoint."""
    global _file
    if words.startswith("@"):
        _file = _File(Path(words[1:]))
    else:
        _armed.update(_read(words))


def _read(words: str) -> dict[FailPoint, _Armed]:
    known = {str(point): point for point in CATALOGUE}
    armed = {}
    for word in words.split():
        item = _ITEM.fullmatch(word)
        if item is None or item["action"] not in _SIGNALS:
            raise UnknownFailPoint(f"{VARIABLE}: {word!r} is not of the form POINT=kill, POINT=freeze or POINT=kill@3")
        if item["point"] not in known:
            raise UnknownFailPoint(f"{VARIABLE}: there is no point {item['point']!r}; there are: {', '.join(known)}")
        armed[known[item["point"]]] = _Armed(_SIGNALS[item["action"]], int(item["passing"] or 1))
    return armed


def mark(point: FailPoint) -> str:
    """The line that a process writes to its standard error when a point stops it."""
    return f"fastflow: stopped at fail point {point}"
