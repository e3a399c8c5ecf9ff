"""How a package is told: "name==version", or where it came from if that was no index, in the words of pip's `freeze`.

What is read here may be made up by code of packages: it is believed in bounded size and plain characters alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

LONGEST_RECORD = 4096
"""Characters of a direct_url.json that is looked at; it has a few hundred."""

LONGEST_ORIGIN = 500
"""Characters of an address that is told."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}"
_VERSIONED = re.compile(rf"{_NAME}==[A-Za-z0-9][A-Za-z0-9.!+_-]{{0,100}}")
# No space, quote, backslash, or what requirements files give a meaning of its own ($).
_ORIGIN = re.compile(
    rf"(?=.{{1,{LONGEST_ORIGIN}}}$)(git\+)?[a-z][a-z0-9+.-]{{0,20}}://[A-Za-z0-9!#%&()*+,./:=?@\[\]_~-]+"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_COMMIT = re.compile(rf"{_NAME} @ git\+[^ #]+@[0-9a-f]{{40}}(#[^ ]*)?")


def told(package: object, record: object = "") -> str:
    """Returns how a package is told, "name==version" or "name @ address"; "" for what is no package.

    `package` is "name==version", `record` the text of its direct_url.json (PEP 610), "" without one. The address has
    neither login nor query, which may be one, and names a commit only if uv was asked for that very commit: where it
    was asked for a branch, that is told, since uv looks anew in each run what the branch stands for.
    """
    if not isinstance(package, str) or not _VERSIONED.fullmatch(package):
        return ""
    try:
        origin = _origin(record) if isinstance(record, str) and 0 < len(record) <= LONGEST_RECORD else ""
    except (ValueError, RecursionError):  # no JSON, no address, or text that no UTF-8 is
        origin = ""
    name = package.partition("==")[0]
    return f"{name} @ {origin}" if origin else package


def name_and_origin(package: str) -> tuple[str, str]:
    """Splits how a package is told into its name and what else is known."""
    name, *known = re.split("==| @ ", package, maxsplit=1)
    return name, "".join(known)


def is_of_commit(package: str) -> bool:
    """Whether a package is told to come from one commit of a Git repository."""
    return bool(_OF_COMMIT.fullmatch(package) and _ORIGIN.fullmatch(name_and_origin(package)[1]))


def _origin(record: str) -> str:
    found = _table(json.loads(record))
    address = _without_login(str(found.get("url", "")))
    of_git, of_archive = (_table(found.get(name)) for name in ("vcs_info", "archive_info"))
    if of_git:
        revision = of_git.get("requested_revision")
        address = f"git+{address}@{revision}" if isinstance(revision, str) and revision else f"git+{address}"
    fragments = []
    hashes = _table(of_archive.get("hashes"))
    if isinstance(sha256 := hashes.get("sha256"), str) and _SHA256.fullmatch(sha256):
        fragments.append(f"sha256={sha256}")
    if isinstance(subdirectory := found.get("subdirectory"), str) and subdirectory:
        fragments.append(f"subdirectory={quote(subdirectory)}")
    origin = "#".join([address, "&".join(fragments)]) if fragments else address
    return origin if address and _ORIGIN.fullmatch(origin) else ""


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _without_login(url: str) -> str:
    if not url.isprintable():
        raise ValueError("urlsplit would drop ends of lines")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    # The one user name that is no secret, and without which ssh asks for another.
    netloc = f"git@{host}" if parts.scheme == "ssh" and parts.username == "git" else host
    return parts._replace(netloc=netloc, query="", fragment="").geturl()
