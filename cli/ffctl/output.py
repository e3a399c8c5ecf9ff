"""Where things go: answers and program output to stdout, everything else to stderr; colours only on a terminal."""

import functools
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ffctl.failures import ReaderLeft

STOP_S = 0.1
"""How long Ctrl-C may go unnoticed while stdout takes nothing."""
PIPE_WIDTH = 100_000
"""Columns of a stdout that is no terminal: a program that reads a table wants one line per row, uncut."""

GAP = 2
"""Blanks between the columns of a table."""

_INVISIBLE = (
    "\x7f-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # turn the direction of what follows or of how it is shaped
    "\u200b\u2028\u2029\u2060-\u2064\ufeff\ufff9-\ufffb"  # show nothing, or end a line
)
"""What steers a terminal, or has text look as another: Bidi_Control of Unicode, and what else nobody sees.

Joiners (U+200C, U+200D) are none of it: scripts and emoji need them.
"""

_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f{_INVISIBLE}]")
_ESCAPED = re.compile(f"[{_INVISIBLE}]")


def colours(stream: Any) -> bool:
    """Tells whether `stream` gets colours: a terminal that can, and no NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@functools.cache
def console(*, stderr: bool = False) -> Console:
    """Returns the console of stdout or stderr."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if colours(stream) else None,
        width=None if terminal else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def clean(text: str) -> str:
    """Returns `text` without characters that are not seen: what an author wrote must neither steer a terminal nor pose.

    In their place stands "�".
    """
    return _CONTROL.sub("�", text)


def say(text: str) -> None:
    """Writes one line for people to stderr."""
    click.echo(clean(text), err=True)


def complain(message: str, details: Iterable[str] = (), hint: str = "") -> None:
    """Writes an error to stderr: what was wrong, one line per detail, and what to do."""
    if message:
        click.echo(click.style("ffctl: ", fg="red", bold=True) + clean(message), err=True, color=colours(sys.stderr))
    for detail in details:
        click.echo(f"  {clean(detail)}", err=True)
    if hint:
        click.echo(f"  {clean(hint)}", err=True)


def answer(text: str) -> None:
    """Writes one line to stdout."""
    write_bytes(text.encode() + b"\n")


def write_bytes(data: bytes, stop: Callable[[], bool] = lambda: False) -> int:
    """Writes to stdout, unchanged and at once; returns how many bytes were written when `stop()` became true.

    A pipe whose reader is slow makes this wait, but never longer than STOP_S once `stop()` is true.
    Raises ReaderLeft when nobody reads any more.
    """
    descriptor = sys.stdout.fileno()
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    written = 0
    try:
        while written < len(data) and not stop():
            # Up to PIPE_BUF bytes fit without blocking once poll says that there is room (pipe(7)).
            if room.poll(STOP_S * 1000):
                written += os.write(descriptor, data[written : written + select.PIPE_BUF])
    except BrokenPipeError:
        raise ReaderLeft from None
    return written


def as_mapping(message: Message) -> dict[str, Any]:
    """Returns the protobuf JSON mapping with proto field names; fields without presence appear also when zero."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def show_json(value: Message | Mapping[str, Any]) -> None:
    """Writes one JSON object to stdout, indented."""
    mapping = as_mapping(value) if isinstance(value, Message) else value
    answer(_as_json(mapping, indent=2))


def stream_json(message: Message) -> None:
    """Writes one JSON object to stdout, on one line."""
    answer(_as_json(as_mapping(message)))


def _as_json(mapping: Mapping[str, Any], indent: int | None = None) -> str:
    # They can only be within strings, where an escape says the same.
    text = json.dumps(mapping, indent=indent, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def listing(name: str, messages: Iterable[Message]) -> None:
    """Writes a list as one JSON object, `{name: […]}`."""
    show_json({name: [as_mapping(message) for message in messages]})


def show(*renderables: RenderableType) -> None:
    """Writes text and tables to stdout."""
    target = console()
    with target.capture() as capture:
        for renderable in renderables:
            target.print(renderable, crop=False)
    # rich pads each cell to its column's width; trailing blanks are noise in a pipe and in copied text.
    lines = (re.sub(r"[ ]+((?:\x1b\[[0-9;]*m)*)$", r"\1", line) for line in capture.get().split("\n"))
    write_bytes("\n".join(lines).encode())


def cell(text: str, style: str = "") -> Text:
    """Returns a table cell of cleaned text."""
    return Text(clean(text), style=style)


def table(*columns: str) -> Table:
    """Returns an empty table with these headings; the last column is folded into lines where it has no room."""
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_edge=False)
    for column in columns[:-1]:
        grid.add_column(column, no_wrap=True, overflow="ellipsis")
    grid.add_column(columns[-1], overflow="fold")
    return grid


def fit(grid: Table, **least: int) -> Table:
    """Narrows columns of `grid` until it fits stdout, the one with most to spare first; returns `grid`.

    `least` names by heading the columns that may give way, each with the width that it keeps. A terminal too narrow
    even for that breaks the lines: a run's id that was cut could not be typed.
    """
    widths = {str(column.header): _width(column) for column in grid.columns}
    excess = sum(widths.values()) + GAP * (len(widths) - 1) - console().width
    while excess > 0:
        widest = max(least, key=lambda heading: widths[heading] - least[heading])
        if widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
        excess -= 1
    for column in grid.columns:
        column.width = widths[str(column.header)]
    grid.width = sum(widths.values()) + GAP * (len(widths) - 1)
    return grid


def _width(column: Column) -> int:
    return max(cell_len(line) for content in (column.header, *column.cells) for line in str(content).split("\n"))


def facts(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    """Returns names and values beneath each other."""
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False, show_edge=False)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid
