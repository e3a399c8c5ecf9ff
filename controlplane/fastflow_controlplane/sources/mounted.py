"""A mounted folder as the source of pipelines: watched by what `stat` says, read only where that has changed.

People edit the folder while it is read. So what was read is taken only if every file is, after the reading, what it was
before; and a file that changed a moment ago is read again next time, as its times could not tell a second change in
the same tick of the file system's clock (Git's "racily clean" entries: Documentation/technical/racy-git).
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fastflow.pipelines.code import ANY_SIZE, MAX_CODE_BYTES, Code, read_code
from fastflow.pipelines.discovery import MAIN, Place, clashes, find_pipelines
from fastflow.pipelines.folder import DiskFolder, Folder, FolderFault, Signature
from fastflow.pipelines.metadata import Limits
from fastflow.pipelines.problems import Problem, error, visible

from fastflow_controlplane.sources.model import Commit, Contents, Snapshot, invalid, taken
from fastflow_controlplane.sources.repository import SnapshotRepository
from fastflow_controlplane.sources.source import UnknownRef

READ_ATTEMPTS = 5
"""How often a pipeline that changes while it is read is read before that is given up."""

SETTLE_SECONDS = 0.1
"""A file that changed this short a time ago may be half written: editors and copies take milliseconds."""

RACY_SECONDS = 2.0
"""The coarsest clock of a file system (FAT): a change within it may leave no trace in the times."""

NANOSECONDS = 1_000_000_000

_ROOT_REMEDY = "make or mount it, or name another one (`folder` of the source, or pipelines_dir)"


@dataclass(frozen=True)
class WallClock:
    """Time as files have it: `now_ns` is nanoseconds since 1970, `sleep` blocks for seconds."""

    now_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep


class KeepsChanging(Exception):
    """A pipeline was changed each time it was read; the message names the file."""


@dataclass(frozen=True)
class _Read:
    """A pipeline as it was read. `state` is what `stat` said of its code; `racy` = it may have changed unnoticed."""

    state: object
    racy: bool
    code_problems: tuple[Problem, ...]
    snapshot: Snapshot


class MountedFolder:
    """The source `root`. All methods block and belong to one thread, so a stuck mount holds up nothing else.

    `defaults` are the hard limits of pipelines that name none; the code of one may have `max_code_bytes`. Methods raise
    DamagedRepository where snapshots can not be read back; `repair` helps.
    """

    has_commits = False

    def __init__(
        self,
        root: Path,
        repository: SnapshotRepository,
        defaults: Limits,
        clock: WallClock | None = None,
        max_code_bytes: int = MAX_CODE_BYTES,
    ) -> None:
        self._root = root
        self._repository = repository
        self._defaults = defaults
        self._clock = clock or WallClock()
        self._max_code_bytes = max_code_bytes
        self._known: dict[str, _Read] = {}
        self.place = str(root)
        self.label = f"the pipelines folder {root}"
        self.objects = repository.path

    def scan(self) -> Contents:
        """Finds all pipelines and reads those that changed. Raises FolderFault where the root can not be read.

        A pipeline that keeps changing stays as it was last time; one that was never read is INVALID until it is.
        """
        try:
            found = find_pipelines(DiskFolder(self._root))
        except FolderFault as fault:
            raise FolderFault(fault.path, f"{fault.message}; {_ROOT_REMEDY}") from None
        clashing = clashes(found.places)
        known: dict[str, _Read] = {}
        snapshots: dict[str, Snapshot] = {}
        for place in found.places:
            if place.path in clashing:
                clash = invalid(place, clashing[place.path])
                snapshots.setdefault(clash.pipeline.name, clash)
                continue
            try:
                known[place.path] = self._read(place)
                snapshot = known[place.path].snapshot
            except KeepsChanging as fault:
                if place.path in self._known:
                    known[place.path] = self._known[place.path]
                    snapshot = known[place.path].snapshot
                else:
                    snapshot = invalid(place, error("", str(fault)))
            snapshots[snapshot.pipeline.name] = snapshot
        self._known = known
        return Contents(snapshots, found.notes)

    def rescan(self, snapshot: Snapshot) -> Snapshot | None:
        """Reads one pipeline again if it changed. None = only `scan` can tell what became of it.

        Raises KeepsChanging.
        """
        path = snapshot.pipeline.path
        if path not in self._known:
            return None
        folder = DiskFolder(self._root, tuple(path.split("/")))
        try:
            if all(entry.name != MAIN for entry in folder.entries()):
                return None
        except FolderFault:
            return None
        self._known[path] = self._read(Place(path.rpartition("/")[2], path, folder))
        return self._known[path].snapshot

    def at(self, name: str, ref: str) -> tuple[Snapshot | None, Commit]:
        """Raises UnknownRef: a plain folder has no commits."""
        raise UnknownRef(
            f'there is no commit or branch "{ref}": {self.label} is no Git repository. Run the pipeline without a ref, '
            "or make the folder a Git source"
        )

    def holds(self, tree: str) -> bool:
        """See `source.Source.holds`; also of what the folder held once, while a kept run was made of it."""
        return self._repository.holds(tree)

    def folder(self, tree: str) -> Folder:
        """See `source.Source.folder`."""
        return self._repository.folder(tree)

    def may_come_back(self, tree: str) -> bool:
        """Returns False: what the folder held once is nowhere else."""
        return False

    def prune(self, trees: Collection[str], unused_since: float) -> int:
        """See `source.Source.prune`."""
        known = {read.snapshot.tree for read in self._known.values() if read.snapshot.tree}
        return self._repository.prune({*trees, *known}, unused_since)

    def repair(self) -> None:
        """Removes what is damaged and reads everything anew, which brings back what the folder still holds."""
        self._repository.repair()
        self._known = {}
        self.scan()

    def close(self) -> None:
        """Releases the files."""
        self._repository.close()

    def _read(self, place: Place) -> _Read:
        known = self._known.get(place.path)
        code = self._list(place.folder)
        changed = ""
        for _ in range(READ_ATTEMPTS):
            state = _state(code)
            if known and not known.racy and known.state == state:
                return known
            started_ns = self._clock.now_ns()
            age = (started_ns - _last_change_ns(code)) / NANOSECONDS
            settled = not 0 <= age < SETTLE_SECONDS
            if settled:
                snapshot = self._snapshot(place, code, known)
            else:
                self._clock.sleep(SETTLE_SECONDS - age)
            before, code = code, self._list(place.folder)
            if settled and _state(code) == state:
                return _Read(state, age < RACY_SECONDS, code.problems, snapshot)
            changed = _difference(before, code) or changed
        message = f'the pipeline "{place.name}" keeps changing while it is read: {changed or MAIN}'
        raise KeepsChanging(visible(message))

    def _list(self, folder: Folder) -> Code:
        try:
            return read_code(folder, self._max_code_bytes)
        except FolderFault as fault:
            return Code((), (error("", fault.message),))

    def _snapshot(self, place: Place, code: Code, known: _Read | None) -> Snapshot:
        if not code.files and code.problems:
            return invalid(place, *code.problems)
        try:
            tree = self._repository.write(code)
        except FolderFault as fault:
            return invalid(place, error(fault.path, fault.message))
        if known and known.snapshot.tree == tree and known.code_problems == code.problems:
            return known.snapshot
        folder = self._repository.folder(tree)
        return taken(place, read_code(folder, ANY_SIZE) if not code.problems else code, folder, tree, self._defaults)


def _state(code: Code) -> object:
    return _signatures(code), code.problems


def _signatures(code: Code) -> dict[str, tuple[Signature | None, str]]:
    return {file.path: (file.entry.signature, file.target) for file in code.files}


def _last_change_ns(code: Code) -> int:
    return max((file.entry.signature.changed_ns for file in code.files if file.entry.signature), default=0)


def _difference(before: Code, after: Code) -> str:
    one, other = _signatures(before), _signatures(after)
    return ", ".join(sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))[:3])
