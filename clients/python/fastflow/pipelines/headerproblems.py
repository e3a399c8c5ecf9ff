"""What can be seen to be wrong with a script's inline metadata (PEP 723) without asking a package index.

Only what uv is certain to refuse, so that it never begins the script: what uv may read in spite of it is left to uv.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from fastflow.pipelines.problems import Problem, error, warning
from fastflow.pipelines.requirements import MAX_LINE, MAX_PROBLEMS, guess, is_requirement, is_somewhere
from fastflow.pipelines.scriptheader import Block, HeaderFault, header_content, script_block

DEPENDENCIES = "dependencies"
REQUIRES_PYTHON = "requires-python"
CONSTRAINTS = "constraint-dependencies"

MAX_PATCH = 99
"""Third number of a Python that there may be."""

_NEWER_TOML = re.compile(r"\{|\\[ex]|\d\d:\d\d|\b0000-|\ufeff")
"""Where TOML that Python does not read may be such that uv reads it: TOML 1.1, and times that Python has not."""

_AT = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)", re.DOTALL)
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_NAMED = re.compile(r"\s*[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\]\s*)?@")
_LOGIN = re.compile(r"//[^/\s]*@")
_LIST = 'such as ["requests==2.31.0"]'
_ALLOWED = "such as requests==2.31.0 or pandas>=2,<3"
_RANGE = 'such as ">=3.11" or ">=3.9,<4"'


@dataclass(frozen=True)
class Header:
    """What is known of a script's inline metadata.

    `is_there` says whether there is any that uv reads. `python` are the Pythons that it asks for, all where it asks for
    none, and `python_line` the number of the line that does.
    """

    problems: tuple[Problem, ...] = ()
    is_there: bool = False
    python: SpecifierSet = field(default_factory=SpecifierSet)
    python_line: int = 0


def read_header(source: bytes, file: str) -> Header:
    """Reads the inline metadata of the script `file`."""
    try:
        block = script_block(source)
    except HeaderFault as fault:
        return Header((error(file, str(fault)),), is_there=True)
    if block is None or block.is_empty:
        return Header()
    reading = _Reading(block, file)
    problems = [*reading.problems()]
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [error(file, f"line {block.line}: more in this header is wrong; mend these first")]
    return Header(tuple(problems), True, reading.python, reading.line_of(REQUIRES_PYTHON))


def python_problems(header: Header, file: str, python_version: str) -> Iterator[Problem]:
    """What is wrong with `python_version` of the metadata beside this header of `file`."""
    # Of "3.11" any 3.11.x may be there.
    exact = python_version.count(".") > 1
    versions = [python_version] if exact else [f"{python_version}.{patch}" for patch in range(MAX_PATCH + 1)]
    if python_version and not any(header.python.contains(version, prereleases=True) for version in versions):
        yield warning(
            file,
            f'line {header.python_line}: "{header.python}" holds for no Python {python_version}, which python_version '
            "asks for; runs get that one and uv only warns in their log: change one of the two",
            REQUIRES_PYTHON,
        )


class _Reading:
    """Reading a block; `python` is known once all its problems are."""

    def __init__(self, block: Block, file: str) -> None:
        self.python = SpecifierSet()
        self._block = block
        self._file = file

    def problems(self) -> Iterator[Problem]:
        text = header_content(self._block.text).removeprefix("\ufeff")
        try:
            document = tomllib.loads(text)
        except RecursionError:
            yield self._error(self._block.line, "begins inline metadata that is nested too deeply for uv")
            return
        except ValueError as fault:  # also a number of thousands of digits
            yield self._no_toml(str(fault), text)
            return
        yield from self._of_list(document, DEPENDENCIES, DEPENDENCIES)
        yield from self._of_python(document.get(REQUIRES_PYTHON, ""))
        tool = document.get("tool", {})
        settings = tool.get("uv", {}) if isinstance(tool, dict) else tool
        if isinstance(settings, dict):
            yield from self._of_list(settings, CONSTRAINTS, f"tool.uv.{CONSTRAINTS}")
        else:
            line = self.line_of("uv" if isinstance(tool, dict) else "tool")
            yield self._error(line, "is no table; allowed is [tool.uv] with settings below it", "tool.uv")

    def line_of(self, *texts: str) -> int:
        """Returns the number of the first line that holds one of `texts`, the first that is found; else the block's."""
        lines = self._block.text.decode().split("\n")
        return self._block.line + next((at for text in texts for at, line in enumerate(lines) if text in line), 0)

    def _error(self, line: int, message: str, key: str = "") -> Problem:
        return error(self._file, f"line {line}: {message}", key)

    def _no_toml(self, fault: str, text: str) -> Problem:
        found = _AT.fullmatch(fault)
        what = found["what"] if found else fault
        # The first line of the text is the one after the block's own.
        line = self._block.line + (int(found["line"]) if found and found["line"] else text.count("\n") + 1)
        if _NEWER_TOML.search(text):
            message = f"line {line}: may be no valid TOML: {what}; unless uv can read it, it will refuse to run this"
            return warning(self._file, message)
        return self._error(line, f"is not valid TOML: {what}; mend the inline metadata (# /// script)")

    def _of_list(self, table: dict[str, Any], key: str, name: str) -> Iterator[Problem]:
        """What is wrong with a list of requirements."""
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            yield self._error(self.line_of(key), f"is no list of texts; allowed is {_LIST}", name)
            return
        for each in found:
            if complaint := _complaint(each):
                shown = _LOGIN.sub("//", each)[:100]
                line = self.line_of(f'"{each}"', f"'{each}'", key)
                yield self._error(line, f'"{shown}" {complaint}', name)

    def _of_python(self, wanted: object) -> Iterator[Problem]:
        try:
            self.python = _python(wanted)
        except InvalidSpecifier:
            message = f'"{str(wanted)[:100]}" is no range of versions; allowed is {_RANGE}'
            yield self._error(self.line_of(REQUIRES_PYTHON), message, REQUIRES_PYTHON)


def _python(wanted: object) -> SpecifierSet:
    """The Pythons that are meant. Raises InvalidSpecifier for what uv refuses."""
    if wanted == "":
        return SpecifierSet()
    # SpecifierSet passes over what is empty between commas, and takes any text after ===.
    if not isinstance(wanted, str) or not all(part.strip() for part in wanted.split(",")):
        raise InvalidSpecifier
    found = SpecifierSet(wanted)
    if not _is_plain(found):
        raise InvalidSpecifier
    return found


def _complaint(text: str) -> str:
    """What is wrong with a requirement of a header, "" for nothing that can be seen here."""
    # uv takes any white space for a blank; a backslash in a marker is a sign like others to it.
    words = re.sub(r"\s", " ", text)
    if len(words) > MAX_LINE or "\\" in words.partition(";")[2]:
        return ""
    if is_somewhere(words) and not _NAMED.match(words):
        return 'names no package; put its name before, as in "NAME @ https://…", or write it into requirements.txt'
    if not is_requirement(words):
        # An address may hold blanks to uv.
        return "" if _NAMED.match(words) else f"is no requirement{guess(words)}; allowed is {_ALLOWED}"
    found = Requirement(words)
    if found.url and "${" not in found.url and not _ABSOLUTE.match(found.url):
        return "names a path that is relative, which uv takes in no header; write it into requirements.txt"
    if not found.name[-1].isalnum() or not _is_plain(found.specifier):
        return f"is no requirement; allowed is {_ALLOWED}"
    return ""


def _is_plain(versions: SpecifierSet) -> bool:
    """Whether what follows each === is a version."""
    try:
        return all(Version(each.version) for each in versions if each.operator == "===")
    except InvalidVersion:
        return False
