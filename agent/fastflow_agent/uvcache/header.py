"""What the inline metadata of a script (PEP 723) says."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from fastflow.pipelines.scriptheader import header_content
from packaging.requirements import InvalidRequirement, Requirement

CONSTRAINTS = "constraint-dependencies"
"""In the table `tool.uv`: what the versions of packages are held to."""


LONGEST = 10_000
"""Characters of a requirement that is looked at: reading longer ones may take very long."""


@dataclass(frozen=True)
class Asked:
    """What a script asks for, in the words of requirements files."""

    dependencies: tuple[str, ...]
    constraints: tuple[str, ...]


def content(header: bytes) -> dict[str, Any]:
    """Returns what is in a header; nothing if it is no TOML."""
    try:
        return tomllib.loads(header_content(header))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def asked(header: bytes) -> Asked | None:
    """Returns what a script asks for; None if requirements files can not say all of it, as with sources of its own."""
    found = content(header)
    tool = found.get("tool", {})
    settings = tool.get("uv", {}) if isinstance(tool, dict) else None
    if not found or not isinstance(settings, dict) or not settings.keys() <= {CONSTRAINTS}:
        return None
    lists = [found.get("dependencies", []), settings.get(CONSTRAINTS, [])]
    if not all(isinstance(each, list) and all(map(_is_requirement, each)) for each in lists):
        return None
    return Asked(*(tuple(each) for each in lists))


def _is_requirement(text: Any) -> bool:
    # An address may hold the end of a line, to which a requirements file would give another meaning.
    if not isinstance(text, str) or len(text) > LONGEST or not text.isprintable():
        return False
    try:
        Requirement(text)
    except (InvalidRequirement, RecursionError):  # a marker of a thousand parentheses
        return False
    return True
