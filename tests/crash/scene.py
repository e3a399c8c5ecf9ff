"""A cluster whose programs die at fail points, one test after the other, and what must be true of a run afterwards."""

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from fastflow.service.failpoints import FailPoint
from fastflow.v1 import runs_pb2

from tests.cluster import Cluster, Program
from tests.cluster.api import Api
from tests.cluster.ledger import ENTER, Ledger
from tests.cluster.leftovers import left_behind

ARMED = "fail-points"
"""Name of the file, beside the cluster's folder, by which its programs are armed."""

LINES = 20
COUNTER = f"""{ENTER}
import sys, time

enter("began")
for number in range({LINES}):
    print(f"line {{number}} {{'x' * 200}}")
    print(f"word {{number}}", file=sys.stderr)
    time.sleep(0.02)
enter("ended")
sys.exit(7)
"""
COUNTED = b"".join(f"line {n} {'x' * 200}\nword {n}\n".encode() for n in range(LINES))

HALTING = f"""{ENTER}
import os, sys, tempfile, time

enter("began")
for number in range(HALTS_AFTER):
    print(f"early {{number}} {{'x' * 1024}}")
while not os.path.exists(os.path.join(tempfile.gettempdir(), "go")):
    time.sleep(0.02)
for number in range({LINES}):
    print(f"late {{number}}")
    time.sleep(0.02)
enter("ended")
sys.exit(7)
"""
"""Waits in the middle of its output, for `let_go`."""
FEW, MANY = 2, 9 << 10
"""Lines before that: those of MANY do not stay on the worker once the control plane has them."""


def halting(lines: int) -> str:
    """The program that waits after so many lines."""
    return HALTING.replace("HALTS_AFTER", str(lines))


def halted(lines: int) -> bytes:
    """Its output up to there."""
    return b"".join(b"early %d %s\n" % (number, b"x" * 1024) for number in range(lines))


PATIENT = f"""{ENTER}
import signal, sys, time

def tidy_up(*_):
    print("tidying up", flush=True)
    enter("tidied")
    sys.exit(0)

signal.signal(signal.SIGTERM, tidy_up)
print("begun", flush=True)
enter("began")
time.sleep(60)
enter("ended")
"""
STOPPED = b"begun\ntidying up\n"

DEATH_SECONDS = 120.0
END_SECONDS = 120.0
"""Both take some seconds at most; a machine that does much else has been seen to need twenty times that."""
HELD_SECONDS = 20.0
"""What has been sent is heard within much less."""
AGAIN_SECONDS = 0.05


@dataclass(frozen=True)
class Truth:
    """What a run has to say in the end, whatever died: to its caller, in its log, and in the ledger."""

    state: str
    exit_code: int
    log: bytes
    ledger: tuple[str, ...]


COUNTED_TO_THE_END = Truth("FAILED", 7, COUNTED, ("began", "ended"))
STOPPED_IN_TIME = Truth("CANCELLED", 0, STOPPED, ("began", "tidied"))
NEVER_BEGUN = Truth("CANCELLED", 0, b"", ())


def halted_and_went_on(lines: int) -> Truth:
    """That of `halting`."""
    late = b"".join(b"late %d\n" % number for number in range(LINES))
    return Truth("FAILED", 7, halted(lines) + late, ("began", "ended"))


class Scene:
    """Use one for many tests; between two all programs live."""

    def __init__(self, cluster: Cluster, ledger: Ledger, api: Api) -> None:
        self.cluster = cluster
        self._ledger = ledger
        self._api = api
        self._armed = cluster.folder.parent / ARMED
        self._left_before: frozenset[str] = frozenset()

    @property
    def controlplane(self) -> Program:
        """The control plane."""
        return self.cluster.controlplane

    @property
    def agent(self) -> Program:
        """The agent."""
        return self.cluster.agent

    def settle(self) -> None:
        """Puts everything back to where a test begins, whatever the test before left."""
        self._armed.unlink(missing_ok=True)
        for program in (self.controlplane, self.agent):
            if not program.alive:
                program.start()
        self._left_before = frozenset(left_behind(self.agent, self._slots()))

    def arm(self, point: FailPoint, action: str = "kill", *deaths: FailPoint) -> None:
        """Has the program that next comes to that point die there, and so with `deaths`."""
        draft = self._armed.with_suffix(".draft")
        draft.write_text(" ".join((f"{point}={action}", *(f"{death}=kill" for death in deaths))))
        draft.rename(self._armed)

    def new_pipeline(self, program: str) -> str:
        """A pipeline that needs an environment of its own, which nobody has prepared; returns its name."""
        name = f"fresh-{secrets.token_hex(4)}"
        header = f"# /// script\n# dependencies = []\n# # {name}\n# ///\n"
        self.cluster.add_pipeline(name, header + program)
        return name

    def ask_for_run(self, pipeline: str, page: str) -> str:
        """Queues the run of that page of the ledger, unless it is; returns its id, "" if nobody answered."""
        with contextlib.suppress(grpc.RpcError):
            return self._api.create_run(pipeline, page, self._ledger.environment(page))
        return ""

    def create_run(self, pipeline: str, page: str) -> str:
        """Asks for the run of that page until somebody answers; returns its id."""
        run = ""
        while not run:
            run = self.ask_for_run(pipeline, page)
        return run

    def cancel(self, run: str) -> None:
        """Asks the run to stop; whether anybody answers is not asked."""
        with contextlib.suppress(grpc.RpcError):
            self._api.cancel(run)

    def await_word(self, page: str, word: str) -> None:
        """Waits until a run has entered a word in the ledger."""
        self.until(lambda: word in self._ledger.words(page), f"{word!r} on page {page}", DEATH_SECONDS)

    def await_death(self, program: Program, point: FailPoint) -> None:
        """Waits until the program has died, and sees that it was at that point."""
        self.until(lambda: not program.alive, f"the death of {program.name} at {point}", DEATH_SECONDS)
        program.check_killed_at(point)
        self._armed.unlink()

    @contextlib.contextmanager
    def frozen(self, program: Program, point: FailPoint, act: Callable[[], object]) -> Iterator[None]:
        """While the program stands still at that point, to which it comes by `act`; it is killed there at the end.

        Who acts may wait for an answer until then.
        """
        self.arm(point, "freeze")
        acting = threading.Thread(target=act)
        acting.start()
        try:
            self.until(lambda: program.stands_at(point), f"{program.name} to stand still at {point}", DEATH_SECONDS)
            yield
        finally:
            self._armed.unlink()
            program.kill()
            acting.join()

    def dies_before(self, due: FailPoint, point: FailPoint, act: Callable[[], object]) -> bool:
        """Whether the agent dies at `point`, to which it comes by `act`, while the control plane is held at `due`.

        What the agent is to hear first may be held back as well, though it was on its way. The control plane is started
        anew.
        """
        self.arm(due, "freeze", point)
        act()
        held = partial(self.controlplane.stands_at, due)
        self.until(lambda: not self.agent.alive or held(), f"the death of the agent at {point}", DEATH_SECONDS)
        deadline = time.monotonic() + HELD_SECONDS
        while self.agent.alive and time.monotonic() < deadline:
            time.sleep(AGAIN_SECONDS)
        self._armed.unlink()
        self.controlplane.kill()
        self.controlplane.start()
        if self.agent.alive:
            return False
        self.agent.check_killed_at(point)
        return True

    def slot_folders(self) -> list[Path]:
        """What the agent has of runs now."""
        return list((self.cluster.folder / "worker-1" / "slots").iterdir())

    def await_halt(self, run: str, lines: int) -> None:
        """Waits until the control plane has what the one run there is writes before it halts.

        Of MANY lines most have to leave the worker's disk too, since the control plane said so.
        """
        self.until(lambda: self._api.log(run) == halted(lines), f"the first half of the log of {run}", END_SECONDS)
        (slot,) = self.slot_folders()

        def punched() -> bool:
            log = (slot / "log").stat()
            return log.st_blocks * 512 < log.st_size // 2

        if lines == MANY:
            self.until(punched, "a hole in the log", END_SECONDS)

    def let_go(self) -> None:
        """Lets the one run there is come to its end."""
        (slot,) = self.slot_folders()
        (slot / "tmp" / "go").touch()

    def await_end(self, run: str) -> None:
        """Waits until the run has ended, its log is sealed, and nothing of any run is left on the worker."""
        self.until(lambda: self.is_over(run), f"the end of run {run}", END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while any(self._left_behind()) and time.monotonic() < deadline:
            time.sleep(AGAIN_SECONDS)
        assert list(self._left_behind()) == []

    def is_over(self, run: str) -> bool:
        """Whether the run has ended, and its last attempt is settled."""
        query = "SELECT state, log_sealed, released, desired FROM attempts WHERE run_id = ? ORDER BY number DESC"
        found = self._query(query, run)
        return bool(found) and found[0] in [
            (state, 1, 1, "FORGET") for state in ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST")
        ]

    def check(self, run: str, page: str, truth: Truth) -> None:
        """Sees that the run ended exactly once, on its first attempt, with its true verdict and its whole log."""
        shown = self._api.run(run)
        state = runs_pb2.RunState.Name(shown.state).removeprefix("RUN_STATE_")
        log = self._api.log(run)
        assert (state, shown.exit_code, shown.attempt) == (truth.state, truth.exit_code, 1), (shown.message, log)
        assert log == truth.log
        assert tuple(self._ledger.words(page)) == truth.ledger
        assert not shown.attempts[0].log_losses
        ends = "SELECT rejection FROM attempt_events WHERE run_id = ? AND kind = 'ended'"
        assert self._query(ends, run) == [("",)]
        assert self._query("SELECT count(*) FROM runs WHERE request_id = ?", page) == [(1,)]
        assert self._api.agent("worker-1").reserved.memory_bytes == 0

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        """Waits until the condition is true."""
        self.cluster.until(lambda: bool(condition()), what, seconds)

    def _left_behind(self) -> Iterator[str]:
        return (trace for trace in left_behind(self.agent, self._slots()) if trace not in self._left_before)

    def _slots(self) -> set[str]:
        return {slot for (slot,) in self._query("SELECT slot FROM attempts WHERE slot != ''")}

    def _query(self, query: str, *values: str) -> list[tuple[object, ...]]:
        (database,) = (self.cluster.folder / "controlplane").glob("*.db")
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
