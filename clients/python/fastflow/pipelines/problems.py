"""What can be wrong with a pipeline, said for the person who wrote it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


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


def error(file: str, message: str, field: str = "") -> Problem:
    """Returns a problem that makes the pipeline INVALID."""
    return Problem(Severity.ERROR, file, field, message)


def warning(file: str, message: str, field: str = "") -> Problem:
    """Returns a problem that is only told."""
    return Problem(Severity.WARNING, file, field, message)


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
