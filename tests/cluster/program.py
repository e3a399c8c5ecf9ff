"""One long-running program under test: started, awaited, stopped or killed, always by its own pid."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastflow.service.failpoints import VARIABLE, FailPoint, mark

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 120.0
"""How long anything is waited for: far longer than it takes, on a machine that does much else as well."""
LOG_TAIL_LINES = 40


class ProgramDied(AssertionError):
    """The program ended though it should live; the message shows the end of its log."""


class Program:
    """A console script of the project with its settings (environment variables) and its log file.

    `entrance` is a command line that executes the command after it elsewhere, as the same process.
    """

    def __init__(self, command: list[str], log: Path, settings: dict[str, str], entrance: Sequence[str] = ()) -> None:
        self.name = command[0]
        self.command = [*entrance, str(BIN / command[0]), *command[1:]]
        self.log = log
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._began_at = 0

    @property
    def pid(self) -> int:
        """Process id of the living program."""
        assert self._process is not None, "the program was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the program runs now."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Exit code of the program that was started last; None = it runs, or none was started."""
        return self._process.poll() if self._process else None

    def start(self, failpoints: str = "") -> None:
        """Starts the program; the log is appended to. `failpoints` as of `fastflow.service.failpoints`."""
        assert not self.alive, "the program runs already"
        # The tests' own settings must not leak in, else a developer's FASTFLOW_SERVER changes results.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
        if failpoints:
            environment[VARIABLE] = failpoints
        self._began_at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                env={**environment, **self.settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises ProgramDied when the program has ended."""
        if not self.alive:
            raise ProgramDied(f"{self.name} is not running; its log ends:\n{self.tail()}")

    def stands_at(self, point: FailPoint) -> bool:
        """Whether the program was frozen at that point: all of it, not only the thread that came there."""
        return self._has_marked(point) and thread_states(self.pid) == {"T"}

    def check_killed_at(self, point: FailPoint) -> None:
        """Raises AssertionError unless the program has ended by SIGKILL, and there."""
        code = self.code
        marked = self._has_marked(point)
        assert code == -signal.SIGKILL, f"{self.name} did not die of SIGKILL ({code}):\n{self.tail()}"
        assert marked, f"{self.name} did not die at {point}:\n{self.tail()}"

    def has_said(self, text: str) -> bool:
        """Whether `text` stands in the log since the last start."""
        return text.encode() in self._said()

    def _has_marked(self, point: FailPoint) -> bool:
        return mark(point).encode() in self._said().splitlines()

    def _said(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._began_at)
            return log.read()

    def describe(self) -> str:
        """One line: which program, and whether it lives or how it ended."""
        return f"{self.log.name}, {'running' if self.alive else f'ended with {self.code}'}"

    def tail(self) -> str:
        """The last lines of the program's log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def stop(self) -> int:
        """Sends SIGTERM, waits for the end and returns the exit code; kills what does not end in time."""
        assert self._process is not None, "the program was not started"
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None

    def kill(self) -> None:
        """Kills the program with SIGKILL, as a crash or a power cut would."""
        assert self._process is not None, "the program was not started"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        """Stops the program with SIGSTOP: it lives, but answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen program go on."""
        os.kill(self.pid, signal.SIGCONT)

    def catches(self, number: signal.Signals) -> bool:
        """Whether the program has a handler of its own for the signal. Source: /proc/PID/status, SigCgt (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)

    def resident_bytes(self) -> int:
        """Resident memory of the program, in bytes. Source: /proc/PID/statm."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """CPU time the program used so far, user and system. Source: /proc/PID/stat, fields 14 and 15."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for_log(self, text: str) -> None:
        """Waits until `text` stands in the log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in (self.log.read_text(errors="replace") if self.log.exists() else ""):
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not appear in the log within {PATIENCE_SECONDS} s:\n{self.tail()}")
            time.sleep(0.02)


def thread_states(pid: int) -> set[str]:
    """States of all threads of a process ("T" = stopped). Source: /proc/PID/task/TID/stat."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # one that ended meanwhile
            found.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return found
