"""What can be wrong with a pipeline, said for the person who wrote it."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Severity(Enum):
    """An ERROR makes the pipeline INVALID: it is listed and refuses to run. A WARNING changes nothing."""

    ERROR = "ERROR"
    WARNING = "WARNING"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `message` says what, what is allowed and what to do, and stands without the others.

    `file` is relative to the pipeline's folder, "" for the folder itself; `field` is a key of the metadata
    ("default_env.PATH" for a key within), "" where the whole file is meant.
    """

    severity: Severity
    file: str
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)


def visible(name: str) -> str:
    """Returns a name as it can be shown, sent and stored: what is no text, or moves a terminal, is escaped."""
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], name)


def problem(severity: Severity, file: str, message: str, field: str = "") -> Problem:
    """Returns a problem; `file`, and names in `message`, may be of any kind that a file can have."""
    return Problem(severity, visible(file), field, visible(message))


def error(file: str, message: str, field: str = "") -> Problem:
    """Returns a problem that makes the pipeline INVALID."""
    return problem(Severity.ERROR, file, message, field)


def warning(file: str, message: str, field: str = "") -> Problem:
    """Returns a problem that is only told."""
    return problem(Severity.WARNING, file, message, field)


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Returns those that make a pipeline INVALID."""
    return [problem for problem in problems if problem.severity is Severity.ERROR]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean "…"?)' for the one or two nearest of the `known` names, "" where none is near."""
    spelled = {_bare(candidate): candidate for candidate in known}
    exact = spelled.get(_bare(name))
    near = [exact] if exact else [spelled[key] for key in difflib.get_close_matches(_bare(name), spelled, n=2)]
    quoted = " or ".join(f'"{candidate}"' for candidate in near)
    return f" (did you mean {quoted}?)" if near else ""


def _bare(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
