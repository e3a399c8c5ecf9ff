"""Programs that `ffctl up` starts: their output with a name before each line, and their end in order."""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

LAST_LINES = 15
"""How much of a program's output is repeated when it died."""
LONGEST_LINE = 1024 * 1024
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent dies."""


class Child:
    """One started program."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, say: Callable[[str, str], None]) -> None:
        self.name = name
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._say = say
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, name: str, arguments: list[str], settings: Mapping[str, str], say: Callable[[str, str], None]
    ) -> "Child":
        """Starts the console script `arguments[0]` of this installation; raises FileNotFoundError if it is missing.

        `say(name, line)` gets each line of its output.
        """
        script = Path(sys.executable).parent / arguments[0]
        process = await asyncio.create_subprocess_exec(
            str(script),
            *arguments[1:],
            env={**os.environ, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE,
            # Ctrl-C on the terminal reaches ffctl alone, which ends its children in order.
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        return cls(name, process, say)

    async def ended(self) -> int:
        """Returns the exit code once the program ended and its last line was read."""
        await self._reading
        return await self.process.wait()

    async def stop(self, grace: float) -> None:
        """Ends the program: SIGTERM, and SIGKILL after `grace` seconds."""
        self.signal(signal.SIGTERM)
        waiting = asyncio.create_task(self.ended())
        done, _ = await asyncio.wait({waiting}, timeout=grace)
        if not done:
            self.signal(signal.SIGKILL)
            await waiting

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the program is gone."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError:
                continue  # longer than LONGEST_LINE; asyncio dropped it
            if not line:
                return
            text = readable(line.decode(errors="replace").rstrip())
            self.last_lines.append(text)
            self._say(self.name, text)


def readable(line: str) -> str:
    """Returns a structured log line (JSON) as people read it; any other line unchanged."""
    if not line.startswith("{"):
        return line
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    event = entry.pop("event", None)
    if event is None:
        return line
    level = str(entry.pop("level", "info"))
    moment = _local_time(str(entry.pop("timestamp", "")))
    facts = "  ".join(f"{name}={value}" for name, value in entry.items() if value not in ("", None, [], {}))
    words = [moment, "" if level == "info" else f"{level}:", str(event), facts]
    return " ".join(word for word in words if word)


def _local_time(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return ""


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    # Runs between fork and exec: should ffctl be killed, nothing is left that holds the port.
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
