"""What a program needs installed: read from its code, and named by a digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fastflow.pipelines.headerproblems import read_header
from fastflow.pipelines.scriptheader import HeaderFault, script_header

from fastflow_agent.uvcache.header import asked
from fastflow_agent.uvcache.holding import commits, hold, holds
from fastflow_agent.uvcache.origins import told

REQUIREMENTS = "requirements.txt"
SCRIPT = "main.py"

_OF_HEADER = f"{SCRIPT}.{REQUIREMENTS}"
_CONSTRAINTS_OF_HEADER = f"{SCRIPT}.constraints.txt"
"""What a header asks for in the words of requirements files: uv fetches by those alone."""

_INCLUDE = re.compile(
    rb"^[ \t]*+(?:-r|-c|--requirements?|--constraints?)(?=[ \t=])[ \t]*+(?:=[ \t]*+)?(?P<path>[^\s#]+)", re.MULTILINE
)
"""Other files that a requirements file names: pip's documentation, "Requirements File Format"."""

_BETWEEN_WORDS = re.compile(rb"[\s#\"',;]+")
_ARCHIVES = (b".whl", b".tar.gz", b".zip")
"""Packages that lie in the code themselves."""

MAX_FILES_BYTES = 256 << 20
"""Bytes that are read of files: those of the largest code there is. One file may be named in ever new ways by links."""

MAX_PACKAGES = 2000
"""Packages of one environment that are told; the largest ones have a few hundred."""

_CODE = "/fastflow/code"
"""Where the code is in a container."""

_LISTING = b"""
import platform

print("fastflow-python", platform.python_version())
try:
    import importlib.metadata
    import json
    import os
    import re
    from urllib.parse import quote

    found = {}
    for each in importlib.metadata.distributions():
        name = each.metadata["Name"]
        record = each.read_text("direct_url.json") or ""
        # This folder has another path where there is no container, and in each preparation.
        for here in (os.getcwd(), os.environ.get("PWD", os.getcwd())):
            record = record.replace("file://" + quote(here), "file:///fastflow/code")
        entry = [f"{name}=={each.version}", record[:10000]]
        # The first is the one that is imported: the image may have another version of the same.
        found.setdefault(re.sub("[-_.]+", "-", name).lower(), entry)
    print("fastflow-packages", json.dumps(sorted(found.values())))
except Exception as error:
    print("fastflow: the installed packages can not be listed:", error)
"""


class UnreadableHeader(Exception):
    """uv would refuse the script's inline metadata; the message says why."""


@dataclass(frozen=True)
class Needs:
    """The files that say what has to be installed, and nothing else of a pipeline.

    `files` maps paths within the code to content: requirements.txt, the files of the same kind it includes, and the
    packages all these name that lie in the code as archives. `header` is the script's PEP 723 block, b"" without one.
    `versions` are packages, as `origins.told` tells them, that uv is held to.
    """

    files: tuple[tuple[str, bytes], ...] = ()
    header: bytes = b""
    versions: tuple[str, ...] = ()

    @property
    def can_be_held(self) -> bool:
        """Whether `versions` have an effect."""
        return holds(self.header) if self.header else any(name == REQUIREMENTS for name, _ in self.files)

    @property
    def can_be_fetched(self) -> bool:
        """Whether requirements files say all there is to it, it is anything, and nothing is sure to need a build."""
        is_said = not self.header or asked(self.header) is not None
        return bool(self.files or self.header) and is_said and not commits(self.versions)

    @property
    def place(self) -> str:
        """Where its author names the packages, for people."""
        of_header = f"the header of {SCRIPT}" if self.header else ""
        of_file = "" if self.header and REQUIREMENTS not in dict(self.files) else REQUIREMENTS
        return " or ".join(filter(None, (of_file, of_header)))

    @property
    def is_nothing(self) -> bool:
        """Whether no package is asked for."""
        return not self.files and not self.header

    def unmet(self, python: str) -> str:
        """Returns that the header asks for another Python than this exact version, "" where it does not."""
        wanted = read_header(self.header, SCRIPT).python
        if not python or wanted.contains(python, prereleases=True):
            return ""
        asked = f'the header of {SCRIPT} asks for Python "{wanted}", but runs get {python}'
        return f"{asked}, and uv only warns of that in their log: change it, or set python_version to one that is here"

    @classmethod
    def of(cls, code: Path) -> Needs:
        """Reads them from unpacked code. Raises UnreadableHeader and OSError."""
        try:
            header = script_header((code / SCRIPT).read_bytes()) or b""
        except HeaderFault as fault:
            raise UnreadableHeader(f"{SCRIPT}: {fault}") from fault
        files = _Files(code.resolve())
        files.add_requirements(REQUIREMENTS)
        files.add_archives(header, Path())
        return cls(tuple(sorted(files.found.items())), header)

    def digest(self, python_version: str, image_digest: str, index_url: str) -> str:
        """Names the environment that these needs become with this Python, from this image and index."""
        hashed = hashlib.sha256()
        for part in (python_version, image_digest, index_url):
            hashed.update(b"%d:%s" % (len(part.encode()), part.encode()))
        for part_name, content in (*self.files, ("", self.header)):
            hashed.update(b"%d:%s%d:" % (len(part_name.encode()), part_name.encode(), len(content)))
            hashed.update(content)
        for version in self.versions:
            hashed.update(b"%d:%s" % (len(version.encode()), version.encode()))
        return f"sha256:{hashed.hexdigest()}"

    def write(self, folder: Path) -> None:
        """Makes `folder` a pipeline of these needs alone; its program prints a line that `installed` reads."""
        folder.mkdir(mode=0o755)
        header = hold(self.header, self.versions)
        of_header = {}
        if found := asked(header):
            of_header[_OF_HEADER] = "\n".join((f"-c {_CONSTRAINTS_OF_HEADER}", *found.dependencies, "")).encode()
            of_header[_CONSTRAINTS_OF_HEADER] = "\n".join((*found.constraints, "")).encode()
        for name, content in (dict(self.files) | of_header | {SCRIPT: header + _LISTING}).items():
            path = folder / name
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)


def installed(output: bytes) -> tuple[str, ...]:
    """Returns the packages in the last listing that a program of `Needs.write` printed, as `origins.told` tells them.

    Code of packages may have printed it: what is no such listing is left out, and what is beyond MAX_PACKAGES.
    """
    listings = re.findall(rb"^fastflow-packages (\[.*\])$", output, re.MULTILINE)
    try:
        listed = json.loads(listings[-1]) if listings else []
    except (ValueError, RecursionError):
        return ()
    entries = (each if isinstance(each, list) else [each] for each in listed[:MAX_PACKAGES])
    return tuple(package for entry in entries if 0 < len(entry) <= 2 and (package := told(*entry)))


def interpreter(output: bytes) -> str:
    """Returns the exact version of Python in the last listing, "3.11.2"; "" = there is none."""
    told = re.findall(rb"^fastflow-python ([0-9][0-9A-Za-z.+]*)$", output, re.MULTILINE)
    return str(told[-1], "ascii") if told else ""


def without_listing(output: bytes) -> bytes:
    """Returns uv's own output."""
    return re.sub(rb"^fastflow-(packages|python) .*\n?", b"", output, flags=re.MULTILINE)


class _Files:
    """What is read of the code, never from outside it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: set[Path] = set()
        self._bytes = 0
        self.found: dict[str, bytes] = {}

    def add_requirements(self, name: str) -> None:
        """Takes a requirements file and what it includes, each file once, whatever links lead to it."""
        names = [name]
        while names:
            name = names.pop()
            if self._add(name):
                content, folder = self.found[name], Path(name).parent
                names += [_within(folder, match["path"]) for match in _INCLUDE.finditer(content)]
                self.add_archives(content, folder)

    def add_archives(self, text: bytes, folder: Path) -> None:
        """Takes the archives that `text` names; `folder` is where its relative paths begin."""
        for word in _BETWEEN_WORDS.split(text):
            if word.endswith(_ARCHIVES):
                self._add(_within(folder, word.removeprefix(b"file://")))

    def _add(self, name: str) -> bool:
        """Whether it is a file that was not read before, by this or another name."""
        try:
            path = (self._root / name).resolve()
            usable = path.is_relative_to(self._root) and path.is_file()
        except (OSError, ValueError, RuntimeError):  # no name any file can have, or a loop of links
            return False
        if not usable or name in self.found or self._bytes + path.stat().st_size > MAX_FILES_BYTES:
            return False
        self.found[name] = path.read_bytes()
        self._bytes += len(self.found[name])
        known = path in self._read
        self._read.add(path)
        return not known


def _within(folder: Path, named: bytes) -> str:
    """The path within the code that is meant, whatever its form."""
    path = named.decode("utf-8", "surrogateescape").strip("\"'")
    return os.path.normpath("/" / folder / path.removeprefix(f"{_CODE}/")).removeprefix("/")
