"""The one error of the host lab, and the tails of output it carries."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 40
"""Lines of output shown with an error: a kernel panic with its trace, or the end of a failed build, fits."""


class LabError(Exception):
    """The lab could not do what was asked; the message says what, and shows the end of the output that tells why."""

    def __init__(self, what: str, *, output: str = "") -> None:
        super().__init__(f"{what}\n--- last output ---\n{tail(output)}" if output.strip() else what)


def tail(output: str, lines: int = TAIL_LINES) -> str:
    """Return the last `lines` lines of `output`."""
    return "\n".join(output.splitlines()[-lines:])


def read_log(path: Path) -> str:
    """Return a log file's text, whatever bytes it holds; the empty string when the file is not there yet."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
