"""What differs between two runs, for `ffctl runs diff`."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from fastflow.ids import short
from fastflow.v1 import runs_pb2
from rich.table import Table
from rich.text import Text

from ffctl import details, output, wording
from ffctl.output import cell

FIXED = ("code", "parameters", "limits")
"""Aspects of a run that are fixed when it is created."""
PREPARED = ("packages", "agent", "image", "Python", "uv", "secrets")
"""Aspects that are known once an agent prepared the run."""

Row = tuple[str, str, str]

_CHANGES = {
    runs_pb2.VARIABLE_CHANGE_ADDED: (wording.UNKNOWN, "set"),
    runs_pb2.VARIABLE_CHANGE_REMOVED: ("set", wording.UNKNOWN),
    runs_pb2.VARIABLE_CHANGE_VALUE: ("one value", "another"),
}
_SECRET = "provenance.secret_versions."


def show(found: runs_pb2.DiffRunsResponse) -> None:
    """Writes both runs side by side, what differs, what does not, and the difference of the code."""
    grid = _heading(found)
    differing: set[str] = set()
    for aspect, (name, in_a, in_b) in _rows(found):
        differing.add(aspect)
        grid.add_row(name, cell(in_a, "red"), cell(in_b, "green"))
    output.show(grid, "", _summary(found, differing))
    for note in found.notes:
        output.say(f"note: {note}")
    if found.code.unified_diff:
        output.answer("")
        _show_code(found.code.unified_diff)


def _heading(found: runs_pb2.DiffRunsResponse) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, output.GAP, 0, 0), header_style="bold", show_edge=False)
    grid.add_column("", no_wrap=True, style="bold")
    for run in (found.a, found.b):
        grid.add_column(short(run.id), overflow="fold")
    grid.add_row("Pipeline", cell(found.a.pipeline), cell(found.b.pipeline))
    grid.add_row("Queued", wording.local(found.a.create_time), wording.local(found.b.create_time))
    grid.add_row("State", details.state_line(found.a), details.state_line(found.b))
    if found.a.commit or found.b.commit:
        grid.add_row("Commit", cell(_commit(found.a)), cell(_commit(found.b)))
    return grid


def _commit(run: runs_pb2.Run) -> str:
    return f"{run.commit[:12]}  {run.commit_subject}".rstrip() if run.commit else wording.UNKNOWN


def _rows(found: runs_pb2.DiffRunsResponse) -> Iterator[tuple[str, Row]]:
    """Each difference under the aspect it belongs to; "" = none of those named above."""
    if found.HasField("code"):
        yield "code", ("Code", wording.digest(found.a.bundle_digest), wording.digest(found.b.bundle_digest))
    for package in found.packages:
        yield "packages", (f"Package {package.name}", package.a or wording.UNKNOWN, package.b or wording.UNKNOWN)
    for kind, variables in (("Parameter", found.parameters), ("Default", found.default_environment)):
        for variable in variables:
            in_a, in_b = _CHANGES.get(variable.change, (wording.UNKNOWN, wording.UNKNOWN))
            yield "parameters", (f"{kind} {variable.name}", in_a, in_b)
    for value in found.values:
        # Both pipelines stand in the heading.
        if value.field != "pipeline":
            yield _value(value)


def _value(value: runs_pb2.ValueDifference) -> tuple[str, Row]:
    if value.field.startswith(_SECRET):
        in_a, in_b = (f"version {version}" if version else wording.UNKNOWN for version in (value.a, value.b))
        return "secrets", (f"Secret {value.field.removeprefix(_SECRET)}", in_a, in_b)
    aspect, heading, write = _FIELDS.get(value.field, ("", value.field, str))
    return aspect, (heading, write(value.a) or wording.UNKNOWN, write(value.b) or wording.UNKNOWN)


def _number(write: Callable[[int], str]) -> Callable[[str], str]:
    """Writes a number, 0 = none."""
    return lambda value: write(int(value)) if int(value) else "none"


def _timeout(value: str) -> str:
    seconds = float(value.removesuffix("s"))
    return wording.span(seconds) if seconds else "none"


_FIELDS: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "agent": ("agent", "Agent", str),
    "limits.cpu_hard_milli_cores": ("limits", "CPU limit", _number(wording.cores)),
    "limits.memory_hard_bytes": ("limits", "Memory limit", _number(wording.size)),
    "limits.cpu_soft_milli_cores": ("limits", "Soft CPU limit", _number(wording.cores)),
    "limits.memory_soft_bytes": ("limits", "Soft memory limit", _number(wording.size)),
    "timeout": ("limits", "Timeout", _timeout),
    "python_version": ("Python", "Python asked for", lambda value: value or "the image's"),
    "provenance.python_version": ("Python", "Python", str),
    "provenance.uv_version": ("uv", "uv", str),
    "provenance.image": ("image", "Image", str),
    "provenance.image_digest": ("image", "Image digest", wording.digest),
}
"""By field of a run: the aspect it belongs to, its heading, and how its value is written."""


def _summary(found: runs_pb2.DiffRunsResponse, differing: set[str]) -> Text:
    prepared = all(details.is_prepared(run) for run in (found.a, found.b))
    same = [aspect for aspect in (*FIXED, *(PREPARED if prepared else ())) if aspect not in differing]
    if found.identical:
        return cell(f"Nothing differs: same {_listed(same)}.", "bold green")
    return cell(f"Same {_listed(same)}." if same else "Nothing of what was compared is the same.")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _show_code(unified_diff: str) -> None:
    coloured = output.colours(sys.stdout)
    for line in output.clean(unified_diff).splitlines():
        output.answer(click.style(line, **_style(line)) if coloured else line)


def _style(line: str) -> dict[str, Any]:
    if line.startswith(("diff --git", "--- ", "+++ ")):
        return {"bold": True}
    return {"fg": {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])}
