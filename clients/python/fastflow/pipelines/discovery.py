"""Which folders are pipelines, and what is wrong with each.

A folder with a `main.py` is a pipeline, named after the folder; its sub-folders are its own code and are not searched.
A folder without one is searched for pipelines in it, so pipelines can be grouped. Hidden folders are skipped.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from fastflow.pipelines.code import (
    MAX_CODE_BYTES,
    NOT_CODE,
    SUBMODULE_MESSAGE,
    Code,
    LinkFault,
    read_code,
    resolve,
)
from fastflow.pipelines.folder import Entry, Folder, FolderFault, Kind, read_file
from fastflow.pipelines.headerproblems import Header, python_problems, read_header
from fastflow.pipelines.metadata import Limits, Metadata
from fastflow.pipelines.metadatafile import find_metadata
from fastflow.pipelines.original import NOTEBOOK_REMEDY
from fastflow.pipelines.problems import Problem, error, errors, visible, warning
from fastflow.pipelines.requirements import MAX_REQUIREMENTS_BYTES, requirements_problems

MAIN = "main.py"
REQUIREMENTS = "requirements.txt"

MAX_GROUP_DEPTH = 8
"""How many folders deep pipelines are searched for."""

MAX_FOLDERS = 10_000
"""How many folders are searched, so that a source that is set to "/" by mistake ends."""

MAX_REMEMBERED = 4 * MAX_FOLDERS
"""How many folders in how many states are remembered between searches; beyond, all is looked into once more."""

MAX_LFS_POINTER_BYTES = 1024
"""Pointers are smaller (git-lfs, docs/spec.md)."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NOTEBOOK = "main.ipynb"
_NEARLY_MAIN = (MAIN, "__main__.py", NOTEBOOK)
_UV_FILES = ("pyproject.toml", "uv.toml")


class PipelineState(Enum):
    """READY to run; INVALID = refuses to run, the problems say why; DISABLED = refuses triggers, not runs by hand."""

    READY = "READY"
    INVALID = "INVALID"
    DISABLED = "DISABLED"


@dataclass(frozen=True)
class Place:
    """Where a pipeline is: a folder with a `main.py`. `path` is relative to the source's root, "" = the root.

    `identity` is that of the folder's entry.
    """

    name: str
    path: str
    folder: Folder
    identity: str = ""


@dataclass(frozen=True)
class Note:
    """Something in a source that is no pipeline and might have been meant as one."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Found:
    """The pipelines of a source, sorted by path, and what was passed over."""

    places: tuple[Place, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as it was found. `metadata` is None where its file is wrong; `metadata_file` is "" for defaults.

    `has_header` says that main.py names packages itself (PEP 723).
    """

    name: str
    path: str
    problems: tuple[Problem, ...]
    metadata: Metadata | None
    metadata_file: str
    has_requirements: bool
    has_header: bool = False

    @property
    def state(self) -> PipelineState:
        """What follows from the problems and from `enabled`."""
        return state_of(self.metadata, self.problems)


def state_of(metadata: Metadata | None, problems: Iterable[Problem]) -> PipelineState:
    """Returns the state of a pipeline with these."""
    if metadata is None or errors(problems):
        return PipelineState.INVALID
    return PipelineState.READY if metadata.enabled else PipelineState.DISABLED


class Remembered:
    """What was found in folders that have an identity, so that a later search passes over those that did not change."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], _Part] = {}

    def get(self, path: str, identity: str) -> "_Part | None":
        """Returns what was found at `path`, None if that is not known."""
        return self._parts.get((path, identity)) if identity else None

    def keep(self, path: str, identity: str, part: "_Part") -> None:
        """Remembers what was found."""
        if identity:
            if len(self._parts) >= MAX_REMEMBERED:
                self._parts.clear()
            self._parts[path, identity] = part


def find_pipelines(root: Folder, remembered: Remembered | None = None) -> Found:
    """Searches a source for pipelines; raises FolderFault where `root` itself can not be read.

    With `remembered`, which is brought up to date, only folders that changed are looked into.
    """
    search = _Search(remembered or Remembered())
    entries = root.entries()
    if any(entry.name == MAIN for entry in entries):
        search.notes.append(
            Note(MAIN, "lies in no folder of its own: move it into one, which gives the pipeline its name")
        )
    search.groups(root, entries, "", 0)
    return Found(
        places=tuple(sorted(search.places, key=lambda place: place.path)),
        notes=tuple(sorted(search.notes + search.without_main, key=lambda note: note.path)),
    )


def inspect(name: str, path: str, folder: Folder, code: Code, defaults: Limits | None) -> Pipeline:
    """Reads the pipeline in `folder`, whose code is `code`; all that is wrong with it is in its problems.

    `defaults` are the hard limits of a pipeline that names none, None where nobody knows them (see `read_metadata`).
    """
    try:
        entries = {entry.name: entry for entry in folder.entries()}
    except FolderFault as fault:
        return Pipeline(visible(name), visible(path), (error("", fault.message),), None, "", False)
    chosen = find_metadata(name, folder, list(entries.values()), defaults)
    main_problems, header = _read_main(folder, entries.get(MAIN), code)
    problems = [
        *_name_problems(name),
        *main_problems,
        *chosen.problems,
        *(python_problems(header, MAIN, chosen.metadata.python_version) if chosen.metadata else ()),
        *_requirements_problems(folder, entries.get(REQUIREMENTS), code),
        *_uv_problems(entries),
    ]
    read_here = {MAIN, REQUIREMENTS, chosen.file}
    pointers = [_pointer_problem(path, path in read_here) for path in _lfs_pointers(code)]
    problems = [*pointers, *_without(problems, pointers)]
    # A file that can not travel may be one that is read here too: its problem is told once.
    told = {(problem.severity, problem.file) for problem in problems}
    problems.extend(problem for problem in code.problems if (problem.severity, problem.file) not in told)
    return Pipeline(
        name=visible(name),
        path=visible(path),
        problems=tuple(problems),
        metadata=chosen.metadata,
        metadata_file=visible(chosen.file),
        has_requirements=REQUIREMENTS in entries,
        has_header=header.is_there,
    )


def inspect_place(place: Place, defaults: Limits | None, max_code_bytes: int) -> Pipeline:
    """Reads the pipeline at `place` as it is there now."""
    try:
        code = read_code(place.folder, max_code_bytes)
    except FolderFault as fault:
        code = Code((), (error("", fault.message),))
    return inspect(place.name, place.path, place.folder, code, defaults)


def clashes(places: Sequence[Place]) -> dict[str, Problem]:
    """Returns, by path, the error of each pipeline that has its name in common with another."""
    paths = defaultdict(list)
    for place in places:
        paths[visible(place.name)].append(place.path)
    found = {}
    for name, same in paths.items():
        if len(same) > 1:
            where = ", ".join(visible(path) for path in same)
            message = f'the name "{name}" stands for {len(same)} folders: {where}; rename all but one'
            found.update(dict.fromkeys(same, error("", message)))
    return found


@dataclass(frozen=True)
class _Part:
    """What a search found in one folder and below it."""

    places: tuple[Place, ...]
    notes: tuple[Note, ...]
    without_main: tuple[Note, ...]
    folders: int


class _Search:
    def __init__(self, remembered: Remembered) -> None:
        self.places: list[Place] = []
        self.notes: list[Note] = []
        self.without_main: list[Note] = []
        self._folders = 0
        self._remembered = remembered

    def groups(self, folder: Folder, entries: list[Entry], prefix: str, depth: int) -> None:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in NOT_CODE:
                continue
            if entry.kind is Kind.LINK:
                self._note(prefix + entry.name, "is a symbolic link, which is not followed: ignored")
            elif entry.kind is Kind.SUBMODULE:
                self._note(prefix + entry.name, f"{SUBMODULE_MESSAGE}: ignored")
            elif entry.kind is Kind.FOLDER:
                self._group(entry, folder, prefix + entry.name, depth + 1)

    def _group(self, entry: Entry, parent: Folder, path: str, depth: int) -> None:
        known = self._remembered.get(path, entry.identity)
        if known is not None and self._folders + known.folders <= MAX_FOLDERS:
            self.places.extend(known.places)
            self.notes.extend(known.notes)
            self.without_main.extend(known.without_main)
            self._folders += known.folders
            return
        places, notes, without, folders = len(self.places), len(self.notes), len(self.without_main), self._folders
        self._folder(entry, parent.folder(entry.name), path, depth)
        if self._folders <= MAX_FOLDERS:
            part = _Part(
                tuple(self.places[places:]),
                tuple(self.notes[notes:]),
                tuple(self.without_main[without:]),
                self._folders - folders,
            )
            self._remembered.keep(path, entry.identity, part)

    def _folder(self, entry: Entry, folder: Folder, path: str, depth: int) -> None:
        self._folders += 1
        if depth > MAX_GROUP_DEPTH or self._folders > MAX_FOLDERS:
            limit = f"{MAX_GROUP_DEPTH} folders deep" if depth > MAX_GROUP_DEPTH else f"{MAX_FOLDERS} folders"
            self._note(path, f"is not searched: pipelines are searched for in at most {limit}")
            return
        try:
            entries = folder.entries()
        except FolderFault as fault:
            self._note(path, f"{fault.message}: ignored")
            return
        if any(inner.name == MAIN for inner in entries):
            self.places.append(Place(entry.name, path, folder, entry.identity))
            return
        found, without = len(self.places), len(self.without_main)
        self.groups(folder, entries, f"{path}/", depth)
        if len(self.places) == found:
            # Of a whole tree without a pipeline only its top is told.
            del self.without_main[without:]
            near = [f'"{inner.name}"' for inner in entries if inner.name.lower() in _NEARLY_MAIN]
            remedy = f"; {NOTEBOOK_REMEDY}" if f'"{NOTEBOOK}"' in near[:1] else ""
            message = f"has no {MAIN}{f', but {near[0]}' if near else ''}: ignored{remedy}"
            self.without_main.append(Note(visible(path), message))

    def _note(self, path: str, message: str) -> None:
        if self._folders <= MAX_FOLDERS + 1:
            self.notes.append(Note(visible(path), message))


def _without(problems: Iterable[Problem], told: Iterable[Problem]) -> list[Problem]:
    files = {problem.file for problem in told}
    return [problem for problem in problems if problem.file not in files]


def _lfs_pointers(code: Code) -> Iterator[str]:
    for file in code.files:
        if file.entry.kind is Kind.FILE and len(_LFS_POINTER) < file.entry.size <= MAX_LFS_POINTER_BYTES:
            with suppress(FolderFault), file.folder.open(file.entry.name) as content:
                if content.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    yield file.path


def _pointer_problem(path: str, needed: bool) -> Problem:
    what = "is a Git LFS pointer: the file itself is not in the repository"
    if needed:
        return error(path, f"{what}; store it without LFS (git lfs untrack, then git add --renormalize)")
    return warning(path, f"{what}, and a run finds the pointer; store it without LFS, or let main.py fetch it")


def _name_problems(name: str) -> Iterator[Problem]:
    if visible(name) != name:
        yield error("", "the folder's name holds characters that can not be shown; rename it")


def _read_main(folder: Folder, main: Entry | None, code: Code) -> tuple[list[Problem], Header]:
    """Returns what is wrong with main.py, and its header."""
    if main is None:
        # It was there when the folder was found; the code's problems say what became of it.
        told = any(problem.file == MAIN for problem in code.problems)
        return ([] if told else [error(MAIN, "is missing")]), Header()
    if main.kind is not Kind.FILE:
        return [error(MAIN, f"is {main.kind.value}; a regular file is needed")], Header()
    try:
        header = read_header(read_file(folder, MAIN, MAX_CODE_BYTES), MAIN)
        return [*header.problems], header
    except FolderFault as fault:
        return [error(MAIN, fault.message)], Header()


def _requirements_problems(folder: Folder, requirements: Entry | None, code: Code) -> Iterator[Problem]:
    if requirements is None:
        return
    if requirements.kind is Kind.FILE:
        if requirements.size <= MAX_REQUIREMENTS_BYTES:
            yield from _read_requirements(folder, code)
        return
    if requirements.kind is Kind.LINK:
        try:
            missing = resolve(REQUIREMENTS, code.links) not in {file.path for file in code.files}
        except LinkFault as fault:
            yield error(REQUIREMENTS, f"is a symbolic link, which {fault}")
        else:
            if missing and not any(problem.file == REQUIREMENTS for problem in code.problems):
                yield error(REQUIREMENTS, "is a symbolic link to a file that is not in the folder")
    else:
        yield error(REQUIREMENTS, f"is {requirements.kind.value}; a regular file is needed")


def _read_requirements(folder: Folder, code: Code) -> list[Problem]:
    try:
        data = read_file(folder, REQUIREMENTS, MAX_REQUIREMENTS_BYTES)
    except FolderFault as fault:
        return [error(REQUIREMENTS, fault.message)]
    return requirements_problems(data, REQUIREMENTS, {file.path for file in code.files})


def _uv_problems(entries: Iterable[str]) -> Iterator[Problem]:
    for file in _UV_FILES:
        if file in entries:
            yield warning(
                file, f"is not read: dependencies belong into {REQUIREMENTS} or into the header of {MAIN} (PEP 723)"
            )
