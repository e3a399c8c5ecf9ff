"""What can be seen to be wrong with a requirements.txt without asking a package index.

Only what uv is certain to refuse or to pass over: a line that is no requirement (PEP 508) and nothing else uv reads, an
include of a file that does not travel with the code, and settings of indexes. Whether a package exists shows when its
environment is prepared.
"""

import codecs
import posixpath
import re
from collections.abc import Collection

from packaging.requirements import InvalidRequirement, Requirement

from fastflow.pipelines.problems import Problem, error, warning

MAX_REQUIREMENTS_BYTES = 1024 * 1024
"""Larger files are left to uv; people's are a few kilobytes."""

MAX_LINE = 10_000
"""Characters of a line that is looked at; longer ones are left to uv, as reading them may take very long."""

MAX_PROBLEMS = 20
"""Lines of one file that are complained of: whoever mends these learns of the others. A file that is none of
requirements at all would fill answers about all pipelines."""

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LINE_END = re.compile(r"\r\n|\r|\n")
_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)[\s=]+(?P<path>.+)")
_INDEX = re.compile(r"(?P<option>-i|--index-url|--extra-index-url|-f|--find-links|--no-index)(?![\w-]).*")
_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTIONS = re.compile(r"(?<!\s)\s+--.*$")
_EXPLAINED = 'one requirement a line, such as requests==2.31.0 or "pandas>=2,<3"'


def requirements_problems(data: bytes, file: str, present: Collection[str]) -> list[Problem]:
    """Returns what is wrong with the requirements file `file`, by line. `present` are the paths of all code."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as fault:
        bad = data.count(b"\n", 0, fault.start) + 1
        return [error(file, f"line {bad}: byte 0x{data[fault.start]:02x} is not UTF-8; save the file as UTF-8")]
    problems: list[Problem] = []
    continued = False
    for number, line in enumerate(_LINE_END.split(text), 1):
        words = "" if continued or len(line) > MAX_LINE else _words(line)
        complaint, passed_over = _complaint(words, file, present), _passed_over(words)
        if complaint and len(problems) == MAX_PROBLEMS:
            problems.append(error(file, f"line {number}: is wrong too, and so may be later ones; mend these first"))
            break
        if complaint:
            problems.append(error(file, f"line {number}: {complaint}"))
        if passed_over and len(problems) < MAX_PROBLEMS:
            problems.append(warning(file, f"line {number}: {passed_over}"))
        continued = line.rstrip().endswith("\\")
    return problems


def is_requirement(text: str) -> bool:
    """Whether a text is a requirement (PEP 508)."""
    try:
        Requirement(text)
    except (InvalidRequirement, RecursionError):  # a marker of a thousand parentheses
        return False
    return True


def is_somewhere(words: str) -> bool:
    """Whether a path, an address or something from the environment is meant: only uv knows what it comes to."""
    name = words.split(";")[0].strip()
    return "/" in name or "\\" in name or "${" in name or name.endswith((".whl", ".zip", ".tar.gz", ".tgz"))


def guess(words: str) -> str:
    """Returns a hint where it is plain what was meant by what is no requirement, else ""."""
    for wrong, right in ((r"(?<![=<>!~])=(?![=<>])", "=="), ("=>", ">="), ("=<", "<=")):
        fixed = re.sub(rf"(?<!\s)\s*{wrong}\s*", right, words)
        if fixed != words and is_requirement(fixed):
            return f' (did you mean "{fixed}"?)'
    names = words.replace(",", " ").split()
    if len(names) > 1 and all(map(is_requirement, names)):
        return f" but {len(names)} on one line"
    return ""


def _words(line: str) -> str:
    """A line without its comment and its options, "" for nothing else."""
    return _OPTIONS.sub("", _COMMENT.sub("", line).rstrip().removesuffix("\\")).strip()


def _complaint(words: str, file: str, present: Collection[str]) -> str:
    """What is wrong with a line, "" for nothing that can be seen here."""
    if include := _INCLUDE.fullmatch(words):
        return _missing(include["path"].strip("\"'"), file, present)
    if not words or words.startswith("-") or is_somewhere(words) or is_requirement(words):
        return ""
    return f'"{words[:100]}" is no requirement{guess(words)}; allowed is {_EXPLAINED}'


def _passed_over(words: str) -> str:
    """What to say of a line that uv heeds in no run, "" for none such; never its value, which may hold a login."""
    index = _INDEX.fullmatch(words)
    if index is None:
        return ""
    return (
        f"{index['option']} has no effect, so packages may come from another index: set FASTFLOW_INDEX_URL or "
        "FASTFLOW_EXTRA_INDEX_URLS on the agents"
    )


def _missing(path: str, file: str, present: Collection[str]) -> str:
    if "://" in path or "${" in path:
        return ""
    named = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if named in present:
        return ""
    if posixpath.isabs(named) or named.startswith("../"):
        return f"names {path}, which is outside the folder; only the folder's own files are there in a run: copy it in"
    return f"names {path}, which is not in the folder; add that file, or remove the line"
