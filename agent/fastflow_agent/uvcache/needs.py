"""What a program needs installed: read from its code, and named by a digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fastflow.pipelines.scriptheader import HeaderFault, script_header

REQUIREMENTS = "requirements.txt"
SCRIPT = "main.py"

_INCLUDE = re.compile(rb"^\s*(?:-r|-c|--requirements?|--constraints?)(?:\s+|=|\s*=\s*)(?P<path>[^\s#]+)", re.MULTILINE)
"""Other files that a requirements file names: pip's documentation, "Requirements File Format"."""

_LISTING = b"""
try:
    import importlib.metadata
    import json

    found = {(each.metadata["Name"], each.version) for each in importlib.metadata.distributions()}
    print("fastflow-packages", json.dumps(sorted(f"{name}=={version}" for name, version in found)))
except Exception as error:
    print("fastflow: the installed packages can not be listed:", error)
"""


class UnreadableHeader(Exception):
    """uv would refuse the script's inline metadata; the message says why."""


@dataclass(frozen=True)
class Needs:
    """The files that say what has to be installed, and nothing else of a pipeline.

    `files` maps paths within the code to content: requirements.txt and what it includes. `header` is the script's
    PEP 723 block, b"" without one.
    """

    files: tuple[tuple[str, bytes], ...] = ()
    header: bytes = b""

    @classmethod
    def of(cls, code: Path) -> Needs:
        """Reads them from unpacked code. Raises UnreadableHeader and OSError."""
        files: dict[str, bytes] = {}
        _collect(code.resolve(), Path(REQUIREMENTS), files)
        try:
            header = script_header((code / SCRIPT).read_bytes()) or b""
        except HeaderFault as fault:
            raise UnreadableHeader(f"{SCRIPT} {fault}") from fault
        return cls(tuple(sorted(files.items())), header)

    def digest(self, python_version: str, image_digest: str, index_url: str) -> str:
        """Names the environment that these needs become with this Python, from this image and index."""
        hashed = hashlib.sha256()
        for part in (python_version, image_digest, index_url):
            hashed.update(b"%d:%s" % (len(part.encode()), part.encode()))
        for part_name, content in (*self.files, ("", self.header)):
            hashed.update(b"%d:%s%d:" % (len(part_name.encode()), part_name.encode(), len(content)))
            hashed.update(content)
        return f"sha256:{hashed.hexdigest()}"

    def write(self, folder: Path) -> None:
        """Makes `folder` a pipeline of these needs alone; its program prints a line that `installed` reads."""
        folder.mkdir(mode=0o755)
        for name, content in (*self.files, (SCRIPT, self.header + _LISTING)):
            path = folder / name
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)


def installed(output: bytes) -> tuple[str, ...]:
    """Returns the packages in the last listing that a program of `Needs.write` printed, "name==version"."""
    listings = re.findall(rb"^fastflow-packages (\[.*\])$", output, re.MULTILINE)
    return tuple(json.loads(listings[-1])) if listings else ()


def without_listing(output: bytes) -> bytes:
    """Returns uv's own output."""
    return re.sub(rb"^fastflow-packages .*\n?", b"", output, flags=re.MULTILINE)


def _collect(root: Path, name: Path, files: dict[str, bytes]) -> None:
    """Reads a requirements file and what it includes, as far as that lies in the code."""
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file() or name.as_posix() in files:
        return
    files[name.as_posix()] = content = path.read_bytes()
    for match in _INCLUDE.finditer(content):
        included = match["path"].decode("utf-8", "surrogateescape").strip("\"'")
        relative = Path(os.path.normpath(name.parent / included))
        if not relative.is_absolute() and ".." not in relative.parts:
            _collect(root, relative, files)
