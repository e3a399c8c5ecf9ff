"""Holding uv to versions of packages: by constraints for requirements files, in the header of a script for that."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from packaging.utils import canonicalize_name

from fastflow_agent.uvcache.header import CONSTRAINTS as HEADER_CONSTRAINTS
from fastflow_agent.uvcache.header import content
from fastflow_agent.uvcache.origins import is_of_commit, name_and_origin

COMMITS = "FASTFLOW_COMMITS"
"""The variable that has a preparer's uv take these commits of repositories, whatever requirements.txt asks for.

A run needs none: it finds what was resolved beside its packages, see the wrapper script `prepare`.
"""

CONSTRAINTS = "FASTFLOW_CONSTRAINTS"
"""The variable that holds uv to versions: the start wrapper reads it, a program never sees it."""

MOST_NAMED = 5
"""Packages that are named of many, where they are others than uv was asked for."""

_CONSTRAINT = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==([0-9]+!)?[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?"
    r"(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
)
"""What uv understands: one old-fashioned version (PEP 440) and it would refuse the whole file."""

_PROBE = ("probe==1",)


def constraints(packages: Iterable[str]) -> dict[str, str]:
    """Returns the variables that hold uv to versions of these packages, as `origins.told` tells them.

    A package that is named in two versions is not held to either, and one from elsewhere than an index to none.
    """
    lines = _constraining(packages)
    return {CONSTRAINTS: "\n".join(lines)} if lines else {}


def commits(packages: Iterable[str]) -> dict[str, str]:
    """Returns the variables that hold a preparer's uv to commits of those of these packages that are told with one."""
    lines = _once([package for package in packages if is_of_commit(package)])
    return {COMMITS: "\n".join(lines)} if lines else {}


def hold(header: bytes, packages: Iterable[str]) -> bytes:
    """Returns a script's header (PEP 723) that holds uv to these packages, as `constraints` does for requirements.

    uv leaves an environment as it is that meets a header, so the script's own header then finds these versions. One
    that has constraints itself (`tool.uv.constraint-dependencies`) is returned as it is.
    """
    lines = _constraining(packages)
    wanted = _with_constraints(content(header), lines)
    if not lines or not wanted:
        return header
    entry = f"# {HEADER_CONSTRAINTS} = {json.dumps(lines)}\n".encode()
    opening, closing = header.partition(b"\n")[0] + b"\n", b"# ///\n"
    within_table = re.sub(rb"(?m)^# *\[tool\.uv\] *$\n", lambda found: found[0] + entry, header, count=1)
    at_the_end = opening + header.removeprefix(opening).removesuffix(closing) + b"# [tool.uv]\n" + entry + closing
    # A header that is written in another way, such as with dotted keys, is one of these; or neither, and stays.
    return next((each for each in (within_table, at_the_end) if content(each) == wanted), header)


def holds(header: bytes) -> bool:
    """Whether `hold` has an effect on this header."""
    return hold(header, _PROBE) != header


def differences(asked: Sequence[str], taken: Sequence[str]) -> str:
    """Returns what tells people which packages uv has `taken` others than it was `asked` for; "" if there are none."""
    not_taken = sorted(set(asked).difference(taken))
    besides = sorted(set(taken).difference(asked))
    parts = [
        f"it did not take {_some(not_taken)}" if not_taken else "",
        f"it took {_some(besides)} besides" if besides else "",
    ]
    return "; ".join(filter(None, parts))


def _some(packages: list[str]) -> str:
    rest = len(packages) - MOST_NAMED
    return ", ".join(packages[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _constraining(packages: Iterable[str]) -> list[str]:
    return _once([package for package in packages if _CONSTRAINT.fullmatch(package)])


def _once(lines: list[str]) -> list[str]:
    names = [canonicalize_name(name_and_origin(line)[0]) for line in lines]
    times = Counter(names)
    return [line for line, name in zip(lines, names, strict=True) if times[name] == 1]


def _with_constraints(found: dict[str, Any], lines: list[str]) -> dict[str, Any] | None:
    tool = found.get("tool", {})
    uv = tool.get("uv", {}) if isinstance(tool, dict) else None
    if not found or not isinstance(uv, dict) or HEADER_CONSTRAINTS in uv:
        return None
    return found | {"tool": tool | {"uv": uv | {HEADER_CONSTRAINTS: lines}}}
