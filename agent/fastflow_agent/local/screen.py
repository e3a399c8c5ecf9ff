"""What a local run says on stderr: one line for each thing, and never into the middle of the program's own."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from fastflow.pipelines.sizes import format_size

from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.facts import Ended, LogLossFound, SoftLimitCrossed
from fastflow_agent.model import Limits, Reason, State


class Screen:
    """Standard error, beside a program that writes to standard output."""

    def __init__(self) -> None:
        self._shared = sys.stdout.isatty() and sys.stderr.isatty()
        self._line_open = False

    def say(self, text: str) -> None:
        """Writes `text`, without what could steer a terminal; no error if nobody is there to see it."""
        lead = "\n" if self._line_open else ""
        self._line_open = False
        clean = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
        try:
            sys.stderr.write(f"{lead}{clean}\n")
            sys.stderr.flush()
        except OSError:
            # Its terminal was closed, or its reader left, which must keep nothing from being done.
            _release(sys.stderr)

    def written(self, data: bytes) -> None:
        """Takes note of output of the program."""
        self._line_open = self._shared and not data.endswith(b"\n")

    @staticmethod
    def release_stdout() -> None:
        """Nobody reads standard output any more: Python must not complain of it at its end."""
        _release(sys.stdout)


def crossing(fact: SoftLimitCrossed) -> str:
    """One crossing of a soft limit, when it begins or when it is over."""
    name, shown = ("memory", format_size) if fact.kind == "MEMORY" else ("CPU", cores)
    if fact.clear_time is None:
        at = fact.raise_time.astimezone().strftime("%H:%M:%S")
        return f"warning: {name} above its soft limit of {shown(fact.limit)}, peak {shown(fact.peak)} at {at}"
    return (
        f"warning over: {name} was above its soft limit of {shown(fact.limit)} for {fact.seconds_above:.1f} s, "
        f"peak {shown(fact.peak)}"
    )


def loss(fact: LogLossFound) -> str:
    """Output that will not be seen."""
    count = f"{format_size(fact.bytes)} lost" if fact.bytes is not None else "output lost"
    return f"warning: {count} at offset {fact.offset} ({fact.kind}): {fact.message}"


def verdict(pipeline: str, ended: Ended, seconds: float | None) -> str:
    """How the run ended, in one line."""
    facts = [ended.reason.value] if ended.reason not in (Reason.NONE, Reason.EXIT_CODE) else []
    failed = ended.state is not State.SUCCEEDED
    if failed and ended.exit_code is not None:
        facts.append(f"exit code {ended.exit_code}")
    text = f"local run of {pipeline} {ended.state.value}"
    text += f" ({', '.join(facts)})" if facts else ""
    text += f" after {seconds:.2f} s" if seconds is not None else ""
    return text + (f": {ended.message}" if failed and ended.message else "")


def usage(used: Usage | None, limits: Limits) -> str:
    """Peak memory, CPU time and throttled time; what the host could not tell is "unavailable"."""
    used = used or Usage()
    peak = "unavailable" if used.peak_memory_bytes is None else format_size(used.peak_memory_bytes)
    return (
        f"peak memory {peak} of {format_size(limits.memory_hard_bytes)}, CPU time {_seconds(used.cpu_usec)} at most "
        f"{cores(limits.cpu_hard_milli_cores)}, throttled {_seconds(used.throttled_usec)}"
    )


def cores(milli_cores: int) -> str:
    """ "1 core", "0.5 cores"."""
    return f"{milli_cores / 1000:.3g} core{'' if milli_cores == 1000 else 's'}"


def _release(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _seconds(microseconds: int | None) -> str:
    return "unavailable" if microseconds is None else f"{microseconds / 1e6:.2f} s"
