"""Which interpreters and which uv there are, as uv itself tells: so what is promised is what a run will get."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from fastflow_agent.runtime.base import RuntimeFault


@dataclass(frozen=True)
class Interpreters:
    """What runs choose from. `paths` maps "3.11" and "3.11.2" alike to interpreters; `default` is one of them."""

    uv_version: str
    default: str
    paths: dict[str, str]

    @property
    def versions(self) -> tuple[str, ...]:
        """The exact versions, ascending, so that a pipeline may ask for one, or for any of a minor version."""
        exact = {version for version in self.paths if version.count(".") == 2}
        return tuple(sorted(exact, key=lambda version: [int(part) for part in re.findall(r"\d+", version)]))

    def path(self, version: str) -> str:
        """The interpreter for "3.11" or "3.11.2", or the default for ""; RuntimeFault if there is none."""
        if not version:
            return self.default
        if version not in self.paths:
            raise RuntimeFault(f"There is no Python {version} here; there is {', '.join(self.versions)}.")
        return self.paths[version]


def look_script(uv: str) -> str:
    """A script for `sh` whose output `parse` reads."""
    # An agent's own virtual environment may come first in PATH, and runs would see the packages in it.
    return (
        "export UV_NO_CONFIG=1 UV_NO_PROJECT=1 UV_PYTHON_DOWNLOADS=never; unset UV_PYTHON; "
        f"'{uv}' --version && '{uv}' python find --system && '{uv}' python list --only-installed --output-format json"
    )


def parse(output: str) -> Interpreters:
    """Read uv's version, its own choice, and its JSON list of interpreters. Raises ValueError."""
    try:
        return _parse(output)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"what uv says is not understood: {error!r}") from error


def _parse(output: str) -> Interpreters:
    version, default, listing = output.split("\n", 2)
    paths: dict[str, str] = {}
    for found in json.loads(listing):
        # First come, first served: uv lists them in the order in which it would choose them.
        if found["implementation"] == "cpython" and found.get("variant", "default") == "default":
            parts = found["version_parts"]
            paths.setdefault(f"{parts['major']}.{parts['minor']}", found["path"])
            paths.setdefault(found["version"], found["path"])
    return Interpreters(version.split()[1], default.strip(), paths)
