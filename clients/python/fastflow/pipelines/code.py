"""Which files of a pipeline's folder are its code, and whether they can travel.

Everything is, down to all sub-folders, except what tools leave beside code (`NOT_CODE`) and empty folders.
"""

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from fastflow.pipelines.folder import Entry, Folder, FolderFault, Kind
from fastflow.pipelines.problems import Problem, error
from fastflow.pipelines.sizes import format_size, parse_size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CODE_LIMIT = "256m"
"""Most bytes of all files of a pipeline together, where a control plane is not set to another limit; as people say."""

MAX_CODE_BYTES = parse_size(CODE_LIMIT)
"""The same in bytes."""

ANY_SIZE = sys.maxsize
"""The limit of code that was accepted before, by whatever limit there was then."""

MAX_CODE_FILES = 20_000
MAX_CODE_FOLDERS = 20_000
"""A Git tree can name one folder many times, so a few small objects can stand for more folders than can be listed."""

MAX_CODE_DEPTH = 32

MAX_NAME_BYTES = 255
"""Longest name that Linux's file systems hold; a Git tree can have longer ones."""

MAX_TARGET_BYTES = 4095
"""Longest target of a symbolic link that Linux takes; a Git tree can have longer ones, which take hours to follow."""

NOT_CODE = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".ipynb_checkpoints",
        ".DS_Store",
        "__pycache__",
    }
)
"""Names that are never code, wherever they stand: repositories, virtual environments and caches made from code."""

SUBMODULE_MESSAGE = (
    "is a Git submodule, whose files are in another repository: put the files here (git subtree), or install them as a "
    "package (requirements.txt)"
)

_MAX_LINKS_IN_A_PATH = 40
"""As many symbolic links as Linux follows in one path (path_resolution(7))."""


@dataclass(frozen=True)
class CodeFile:
    """A file or a symbolic link of a pipeline. `path` is relative to the pipeline's folder, `target` of links only."""

    path: str
    entry: Entry
    folder: Folder
    target: str = ""


@dataclass(frozen=True)
class Code:
    """The code of a pipeline, sorted by path, without the files that `problems` are about."""

    files: tuple[CodeFile, ...]
    problems: tuple[Problem, ...]

    @property
    def links(self) -> dict[str, str]:
        """Symbolic links and where they point to."""
        return {file.path: file.target for file in self.files if file.entry.kind is Kind.LINK}

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.entry.size for file in self.files)


def read_code(folder: Folder, max_bytes: int = MAX_CODE_BYTES) -> Code:
    """Lists the code of the pipeline in `folder`; nothing is read but folders and links. Raises FolderFault for none.

    What can not travel is a problem: what is neither file, folder nor link, a name that is not UTF-8, a link that
    leaves the folder, a sub-folder that can not be read, too much of anything.
    """
    problems: list[Problem] = []
    files: list[CodeFile] = []
    size = 0
    for file in _Walk(problems).files(folder, "", 0):
        size += file.entry.size
        if size > max_bytes:
            problems.append(_too_large([*files, file], max_bytes))
            break
        if len(files) == MAX_CODE_FILES:
            problems.append(error("", f"the code has more than {MAX_CODE_FILES} files; move data elsewhere"))
            break
        files.append(file)
    links = {file.path: file.target for file in files if file.entry.kind is Kind.LINK}
    refused = refused_links(links)
    problems.extend(error(path, message) for path, message in refused.items())
    kept = (file for file in files if file.path not in refused)
    return Code(tuple(sorted(kept, key=lambda file: file.path.encode())), tuple(problems))


def _too_large(files: list[CodeFile], max_bytes: int) -> Problem:
    largest = max(files, key=lambda file: file.entry.size)
    named = f"{largest.path} alone has {format_size(largest.entry.size)}"
    return error("", f"the code has more than {format_size(max_bytes)} ({named}); move data elsewhere")


def refused_links(links: Mapping[str, str]) -> dict[str, str]:
    """Returns, by path, what is wrong with each symbolic link that leaves the folder all `links` stand in.

    `links` maps the paths of all links of the folder to their targets.
    """
    refused = {}
    for path, target in links.items():
        try:
            resolve(path, links)
        except LinkFault as fault:
            refused[path] = f"is a symbolic link to {target!r}, which {fault}; only files of the folder can be linked"
    return refused


class LinkFault(Exception):
    """A symbolic link can not be followed within its folder; the message says where it leads."""


def resolve(path: str, links: Mapping[str, str]) -> str:
    """Returns where `path` leads within the folder that `links` are all symbolic links of; "" = the folder itself.

    Followed as the kernel does (path_resolution(7)), for a link that seems to stay inside can leave by way of another.
    Whether anything is there is not looked at. Raises LinkFault where it leaves the folder or leads in circles.
    """
    here: list[str] = []
    ahead = path.split("/")[::-1]
    followed = 0
    while ahead:
        part = ahead.pop()
        if part == ".." and not here:
            raise LinkFault("leaves the folder")
        if part == "..":
            here.pop()
        elif part not in ("", "."):
            here.append(part)
            if (target := links.get("/".join(here))) is not None:
                followed += 1
                if followed > _MAX_LINKS_IN_A_PATH:
                    raise LinkFault("leads in circles")
                if target.startswith("/"):
                    raise LinkFault("is an absolute path")
                here.pop()
                ahead.extend(target.split("/")[::-1])
    return "/".join(here)


@contextmanager
def open_exactly(file: CodeFile) -> Iterator[io.BufferedIOBase]:
    """Opens a file of the code. Reading gives as many bytes as were listed, or raises FolderFault with its path."""
    try:
        with (
            file.folder.open(file.entry.name) as content,
            io.BufferedReader(_Exactly(content, file.entry.size)) as exact,
        ):
            yield exact
            if content.read(1):
                raise FolderFault(file.path, _CHANGED)
    except FolderFault as fault:
        raise FolderFault(file.path, fault.message) from fault


_CHANGED = "was changed while it was read"


class _Exactly(io.RawIOBase):
    def __init__(self, content: BinaryIO, size: int) -> None:
        self._content = content
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        data = self._content.read(min(len(view), self._left))
        if not data and self._left and len(view):
            raise FolderFault("", _CHANGED)
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


class _Walk:
    """A walk through a folder; what is wrong on the way is added to `problems`."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._folders = 0

    def files(self, folder: Folder, prefix: str, depth: int) -> Iterator[CodeFile]:
        for entry in _entries(folder, prefix, self._problems):
            path = prefix + entry.name
            if entry.name in NOT_CODE:
                continue
            if complaint := self._complaint(entry, path, depth):
                self._problems.append(error(path, complaint))
            elif entry.kind is Kind.FOLDER:
                if not self._may_enter():
                    return
                yield from self.files(folder.folder(entry.name), f"{path}/", depth + 1)
            elif entry.kind is Kind.LINK:
                yield from _link(folder, entry, path, self._problems)
            else:
                yield CodeFile(path, entry, folder)

    def _may_enter(self) -> bool:
        self._folders += 1
        if self._folders == MAX_CODE_FOLDERS + 1:
            self._problems.append(error("", f"the code has more than {MAX_CODE_FOLDERS} folders; move data elsewhere"))
        return self._folders <= MAX_CODE_FOLDERS

    @staticmethod
    def _complaint(entry: Entry, path: str, depth: int) -> str:
        if not is_utf8(path):
            return "the name is not UTF-8; rename it"
        if len(entry.name.encode()) > MAX_NAME_BYTES:
            return f"the name has more than {MAX_NAME_BYTES} bytes; rename it"
        if entry.kind is Kind.FOLDER and depth == MAX_CODE_DEPTH:
            return f"lies deeper than {MAX_CODE_DEPTH} folders"
        if entry.kind is Kind.LINK and entry.size > MAX_TARGET_BYTES:
            return f"is a symbolic link to a path of more than {MAX_TARGET_BYTES} bytes, which Linux can not follow"
        if entry.kind is Kind.SUBMODULE:
            return SUBMODULE_MESSAGE
        return "is neither file nor folder; remove it" if entry.kind is Kind.OTHER else ""


def _entries(folder: Folder, prefix: str, problems: list[Problem]) -> list[Entry]:
    try:
        return folder.entries()
    except FolderFault as fault:
        if not prefix:
            raise
        problems.append(error(prefix.rstrip("/"), fault.message))
        return []


def _link(folder: Folder, entry: Entry, path: str, problems: list[Problem]) -> Iterator[CodeFile]:
    try:
        target = folder.target(entry.name)
    except FolderFault as fault:
        problems.append(error(path, fault.message))
        return
    if is_utf8(target):
        yield CodeFile(path, entry, folder, target)
    else:
        problems.append(error(path, "is a symbolic link to a name that is not UTF-8"))


def is_utf8(path: str) -> bool:
    """Tells whether a name can be written as UTF-8; others hold surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in path)
