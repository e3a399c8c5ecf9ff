"""A scope: Linux namespaces whose end is the end of everything that was started in them.

A lab starts kernels, daemons, taps and mounts. Taking all of them down one by one after a failure, an interrupt or
a killed pytest can not be made reliable, so the kernel does it: each scope has its own process, mount and (if
wanted) network namespace. When the scope's first process ends, the kernel kills every process in it, and with the
last of them the mounts, loop devices, bridges and taps are gone. That first process ends when the scope is closed,
when the pipe to its owner breaks, or when its owner dies, however it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .errors import LabError, read_log

START_TIMEOUT = 10.0
"""Seconds for namespaces to be made and a process to be seen in them: milliseconds, on an overloaded machine more."""

KILL_TIMEOUT = 20.0
"""Seconds a killed process may take to be gone: the kernel gives back a guest's gigabytes of memory first."""

POLL_INTERVAL = 0.02
"""Seconds between two looks at a process that gives no event to wait for."""

CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Completed:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


class ScopedProcess:
    """A long-running process of a scope, with whatever children it makes in its process group."""

    def __init__(self, entrance: subprocess.Popen[bytes], argv: Sequence[str], log: Path) -> None:
        # `nsenter` must fork to enter a process namespace: it waits outside, and its one child is the process meant.
        self._entrance = entrance
        self._name = argv[0]
        self._log = log
        self.pid = self._wait_for_child()

    def is_alive(self) -> bool:
        return self._entrance.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its children; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9 the process and its whole process group in one stroke, and wait until they are gone.

        Raises LabError when they are not gone in time.
        """
        if not self.is_alive():
            return
        # Asked for now: a guest's kernel makes one more group of its own. `nsenter` is left to reap its child.
        group = os.getpgid(self.pid)
        deadline = time.monotonic() + KILL_TIMEOUT
        while _kill_group(group) and self.is_alive():
            if time.monotonic() > deadline:
                raise LabError(f"{self._name} was killed and is not gone after {KILL_TIMEOUT:.0f} s")
            time.sleep(POLL_INTERVAL)
        self.wait(KILL_TIMEOUT)

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit code (negative: the signal that ended it).

        Raises LabError after `timeout` seconds, with the tail of the process's log.
        """
        try:
            return self._entrance.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self._name} did not end within {timeout:.0f} s", output=read_log(self._log)) from None

    def _wait_for_child(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if child := _child_of(self._entrance.pid):
                return child
            if self._entrance.poll() is not None:
                break
            time.sleep(POLL_INTERVAL)
        raise LabError(f"{self._name} did not start", output=read_log(self._log))


class Scope:
    """Namespaces to start processes in. Use it as a context manager; the end of the block ends all of them."""

    def __init__(self, *, own_network: bool) -> None:
        self._own_network = own_network
        self._processes: list[ScopedProcess] = []
        self._holder = self._start_holder()
        try:
            self._init = self._wait_for_init()
        except BaseException:
            self._end_holder()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of the scope and wait until they are gone, and with them mounts, taps and bridges."""
        self._end_holder()
        for process in self._processes:
            process.kill()

    def seen_from_outside(self, path: Path) -> Path:
        """Return where a path of this scope, with the mounts made inside it, can be reached from outside."""
        return Path(f"/proc/{self._init}/root") / path.relative_to("/")

    def network_entrance(self) -> list[str]:
        """Return a command line that executes the command after it in the scope's network, and only its network.

        The process stays the caller's: with the same pid, and killed when the caller dies.
        """
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._init}/ns/net", "--"]

    def start(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> ScopedProcess:
        """Start a long-running process whose output is appended to `log`. `env` replaces the environment."""
        with log.open("ab") as output:
            entrance = self._enter(["setsid", *argv], stdout=output, stderr=output, env=env, cwd=cwd)
        process = ScopedProcess(entrance, argv, log)
        self._processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command to its end. Raises LabError after `timeout` seconds or, with `check`, for a non-zero exit."""
        process = self._enter(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException as error:
            _kill_group(process.pid)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise LabError(f"not done after {timeout:.0f} s: {_shown(argv)}") from None
            raise
        done = Completed(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        if check and done.exit_code != 0:
            raise LabError(f"exit code {done.exit_code}: {_shown(argv)}", output=done.stdout + done.stderr)
        return done

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        """Open a TCP connection from inside the scope's network; the socket may be used from anywhere.

        Raises OSError as `socket.connect` does.
        """
        connection = self._socket_inside()
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _socket_inside(self) -> socket.socket:
        """Make a socket in the scope's network namespace: a thread of its own enters it, makes the socket and ends."""
        made: list[socket.socket] = []

        def enter_and_make() -> None:
            with Path(f"/proc/{self._init}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                    made.append(socket.socket())

        thread = threading.Thread(target=enter_and_make)
        thread.start()
        thread.join()
        if not made:
            raise LabError("the lab's network namespace can not be entered")
        return made[0]

    def _enter(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        env: Mapping[str, str] | None,
        cwd: Path | None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["nsenter", f"--target={self._init}", "--mount", "--pid", "--net", f"--wd={cwd or '/'}", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            # A session of its own: Ctrl-C at the terminal reaches pytest alone, which then closes the scope, and
            # the process group holds just this process and its children.
            start_new_session=True,
        )

    def _start_holder(self) -> subprocess.Popen[bytes]:
        unshare = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
        if self._own_network:
            unshare.append("--net")
        # An ignored SIGCHLD makes the kernel reap the orphans that fall to the scope's first process.
        first = ["sh", "-c", "echo ready; exec env --ignore-signal=CHLD cat"]
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, *first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def _wait_for_init(self) -> int:
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise LabError("the namespaces of the lab could not be made (is this root?)")
        init = _child_of(self._holder.pid)
        if init is None:
            raise LabError("the first process of the lab's namespaces was not found")
        return init

    def _end_holder(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        self._holder.stdout.close()


def _child_of(parent: int) -> int | None:
    """Return the pid of a process's first child, or None when it has none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; state and parent follow the last one (proc(5)).
            state, ppid = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(ppid) == parent and state != "Z":
            return int(stat.parent.name)
    return None


def _kill_group(group: int) -> bool:
    """Kill -9 a process group; say whether it still had a member."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _shown(argv: Sequence[str]) -> str:
    return " ".join(argv) if len(argv) < 12 else " ".join([*argv[:12], "…"])
