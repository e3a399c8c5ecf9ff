"""A process on a pseudo-terminal, which a test types into and reads from."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Callable

CTRL_C = "\x03"
CTRL_D = "\x04"
CTRL_S = "\x13"
CTRL_Q = "\x11"
ROWS = 24
PATIENCE_SECONDS = 60.0
"""Longer than a program takes to start on a machine whose cores are all taken."""
POLL_SECONDS = 0.01


class Terminal:
    """Starts a command with `spawn` on its own terminal of `columns` columns; `typed` is there before it starts."""

    def __init__(
        self, spawn: Callable[..., subprocess.Popen[bytes]], *arguments: str, columns: int = 80, typed: str = ""
    ) -> None:
        self._side, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        os.write(self._side, typed.encode())
        self.process = spawn(
            *arguments,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            # Its own session with this terminal, so that Ctrl-C typed here reaches it as a signal. By a program, not
            # in Python between fork and exec: gRPC's threads are about, and may hold a lock then.
            through=("setsid", "--ctty"),
        )
        os.close(terminal)
        self.everything = ""
        self._typed_at = 0

    @property
    def seen(self) -> str:
        """What appeared since something was typed."""
        return self.everything[self._typed_at :]

    def until(self, text: str) -> None:
        """Reads until `text` appeared since something was typed."""
        while text not in self.seen:
            assert self._read(), f"{text!r} never appeared:\n{self.everything}"

    def type(self, text: str) -> None:
        """Types."""
        self._typed_at = len(self.everything)
        os.write(self._side, text.encode())

    def until_hidden(self) -> None:
        """Waits until what is typed is no longer shown."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while termios.tcgetattr(self._side)[3] & termios.ECHO:
            assert time.monotonic() < deadline, f"what is typed is still shown:\n{self.everything}"
            time.sleep(POLL_SECONDS)

    def end(self) -> int:
        """Reads the rest and returns the exit code."""
        while self._read():
            pass
        os.close(self._side)
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self) -> bool:
        try:
            data = os.read(self._side, 4096)
        except OSError:
            return False  # Linux: EIO once the last process has closed the terminal
        self.everything += data.decode(errors="replace")
        return bool(data)
