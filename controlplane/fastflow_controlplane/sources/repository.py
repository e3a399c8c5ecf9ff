"""Snapshots: the exact files of a pipeline in a Git object database, named by their tree id.

A bare repository without references. Its objects are a cache of what was read: the bundles made of them are kept apart
and durable. What a power cut or the disk damaged is removed, and written again where its file is read again.
"""

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pygit2
import structlog
from fastflow.durable import sync_file, sync_folder
from fastflow.pipelines.code import Code, CodeFile, open_exactly
from fastflow.pipelines.folder import Entry, FolderFault, Kind
from pygit2.enums import ConfigLevel, FileMode

from fastflow_controlplane.sources.powercut import damaged, is_of_this_boot, note_boot

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = structlog.get_logger(__name__)

_OWN_FILES = ("HEAD", "config")
"""Files without which a bare repository is none."""

STREAMED_BYTES = 1024 * 1024
"""Files from this size on are streamed into the database; smaller ones are quicker in one piece."""


class DamagedRepository(Exception):
    """An object that was written is not there, or not as it was written."""


class StorageFault(Exception):
    """An object can not be written, for example because the disk is full; the message says why."""


def open_bare(path: Path) -> pygit2.Repository:
    """Opens the bare repository in the folder `path`. Where it can not be opened, what is missing is made, durable.

    Its objects and references stay. Raises StorageFault where it can not be made.
    """
    # Whoever may read the data folder may use its repository: it has neither hooks nor settings of its own.
    pygit2.settings.owner_validation = False
    for level in (ConfigLevel.GLOBAL, ConfigLevel.XDG, ConfigLevel.SYSTEM, ConfigLevel.PROGRAMDATA):
        # Nor has it those of the user or the machine, which may have other addresses fetched than are set.
        pygit2.settings.search_path[level] = ""
    try:
        return _opened(path)
    except pygit2.GitError:
        pass
    try:
        for name in _OWN_FILES:
            (path / name).unlink(missing_ok=True)
        pygit2.init_repository(str(path), bare=True)
        for name in _OWN_FILES:
            sync_file(path / name)
        for folder in (path, path.parent):
            sync_folder(folder)
        return _opened(path)
    except (pygit2.GitError, OSError) as fault:
        raise StorageFault(str(fault)) from fault


def _opened(path: Path) -> pygit2.Repository:
    repository = pygit2.Repository(str(path))
    # A power cut may leave it empty, and then libgit2 opens it, and fails later.
    repository.references.get("HEAD")
    return repository


class SnapshotRepository:
    """The object database in the folder `path`, made there if it is missing. All methods block and belong to one thread
    at a time. Raises StorageFault where it can not be made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_of_this_boot(path):
            self._remove_damaged()
        self._repository = open_bare(path)
        note_boot(path)

    def write(self, code: Code) -> str:
        """Stores all files of `code` and returns the id of their tree.

        Raises FolderFault for a file that can not be read, has changed since it was listed, or has a name that Git does
        not allow, and StorageFault.
        """
        root = _Level()
        for file in code.files:
            *above, name = file.path.split("/")
            level = root
            for part in above:
                level = level.folders.setdefault(part, _Level())
            level.files[name] = file
        try:
            return str(self._write_level(root, ""))
        except (pygit2.GitError, OSError) as fault:
            raise StorageFault(str(fault)) from fault

    def holds(self, tree: str) -> bool:
        """Tells whether a tree is here; it may be damaged."""
        return pygit2.Oid(hex=tree) in self._repository.odb

    def folder(self, tree: str) -> "TreeFolder":
        """Returns the files of a tree. Raises DamagedRepository where it is missing."""
        return TreeFolder(self._repository, pygit2.Oid(hex=tree))

    def prune(self, trees: Collection[str], unused_since: float) -> int:
        """Removes objects that belong to none of `trees` and are older than `unused_since`, seconds since 1970.

        Returns how many. A tree that is not here is passed over; where one is damaged nothing is removed, as what
        belongs to it can not be told.
        """
        needed: set[str] = set()
        for tree in trees:
            if self.holds(tree):
                try:
                    self._gather(pygit2.Oid(hex=tree), needed)
                except DamagedRepository as fault:
                    log.warning("no old snapshots are removed, as one is damaged", tree=tree, why=str(fault))
                    return 0
        removed = 0
        for file in (self.path / "objects").glob("[0-9a-f][0-9a-f]/*"):
            if file.parent.name + file.name not in needed and file.stat().st_mtime < unused_since:
                file.unlink()
                removed += 1
        return removed

    def _gather(self, tree: pygit2.Oid, needed: set[str]) -> None:
        if str(tree) in needed:
            return
        needed.add(str(tree))
        with telling_damage():
            for item in self._repository[tree].peel(pygit2.Tree):
                if item.filemode == FileMode.TREE:
                    self._gather(item.id, needed)
                else:
                    needed.add(str(item.id))

    def repair(self) -> None:
        """Removes what is damaged, so that `write` brings it back: it writes no object that is there."""
        self._repository.free()
        self._remove_damaged()
        self._repository = open_bare(self.path)
        note_boot(self.path)

    def _remove_damaged(self) -> None:
        for file in damaged(self.path):
            log.warning("an object of a snapshot is damaged and removed", path=str(file))
            file.unlink()

    def close(self) -> None:
        """Releases the files."""
        self._repository.free()

    def _write_level(self, level: "_Level", prefix: str) -> pygit2.Oid:
        builder = self._repository.TreeBuilder()
        items = {
            name: (self._write_level(below, f"{prefix}{name}/"), FileMode.TREE) for name, below in level.folders.items()
        }
        items.update({name: (self._write_file(file), _mode(file)) for name, file in level.files.items()})
        for name, (oid, mode) in items.items():
            try:
                builder.insert(name, oid, mode)
            except pygit2.GitError as fault:
                message = "the name can not stand in a Git tree, as some systems take it for .git; rename it"
                raise FolderFault(prefix + name, message) from fault
        return builder.write()

    def _write_file(self, file: CodeFile) -> pygit2.Oid:
        if file.entry.kind is Kind.LINK:
            return self._repository.create_blob(file.target.encode())
        with open_exactly(file) as content:
            if file.entry.size < STREAMED_BYTES:
                return self._repository.create_blob(content.read())
            return self._repository.create_blob_fromiobase(content)


@dataclass
class _Level:
    """The code of one folder, while its tree is built."""

    files: dict[str, CodeFile] = field(default_factory=dict)
    folders: dict[str, "_Level"] = field(default_factory=dict)


class TreeFolder:
    """A folder in a Git tree; see `fastflow.pipelines.folder.Folder`. Damage of the database is a DamagedRepository."""

    def __init__(self, repository: pygit2.Repository, oid: pygit2.Oid) -> None:
        self._repository = repository
        self._oid = oid

    @cached_property
    def tree(self) -> pygit2.Tree:
        """The folder itself. It is read when it is needed: one that is known by its id need not be."""
        with telling_damage():
            return self._repository[self._oid].peel(pygit2.Tree)

    @cached_property
    def _items(self) -> dict[str, pygit2.Object]:
        items = {os.fsdecode(item.raw_name or b""): item for item in self.tree}
        for name in items:
            # A tree that was made by hand can hold them; no file has such a name.
            if name in ("", ".", "..") or "/" in name:
                raise FolderFault("", f"holds the name {name!r}, which no file can have")
        return items

    def entries(self) -> list[Entry]:
        """See `Folder.entries`."""
        return sorted((self._entry(*item) for item in self._items.items()), key=lambda entry: entry.name)

    def folder(self, name: str) -> "TreeFolder":
        """See `Folder.folder`."""
        return TreeFolder(self._repository, self._find(name, FileMode.TREE).id)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder.open`."""
        with io.BufferedReader(_BlobFile(self._blob(name, FileMode.BLOB, FileMode.BLOB_EXECUTABLE))) as file:
            yield file

    def target(self, name: str) -> str:
        """See `Folder.target`."""
        return os.fsdecode(self._blob(name, FileMode.LINK).data)

    def _entry(self, name: str, item: pygit2.Object) -> Entry:
        mode = item.filemode
        if mode == FileMode.TREE:
            return Entry(name, Kind.FOLDER, identity=str(item.id))
        if mode == FileMode.COMMIT:
            return Entry(name, Kind.SUBMODULE)
        kind = Kind.LINK if mode == FileMode.LINK else Kind.FILE
        with telling_damage():
            _, size = self._repository.odb.read_header(item.id)
        return Entry(name, kind, size, executable=mode == FileMode.BLOB_EXECUTABLE)

    def _find(self, name: str, *modes: FileMode) -> pygit2.Object:
        try:
            item = self._items[name]
        except KeyError:
            raise FolderFault(name, "can not be read: No such file or directory") from None
        if item.filemode not in modes:
            raise FolderFault(name, f"is no {'folder' if FileMode.TREE in modes else 'file'}")
        return item

    def _blob(self, name: str, *modes: FileMode) -> pygit2.Blob:
        item = self._find(name, *modes)
        with telling_damage():
            return self._repository[item.id].peel(pygit2.Blob)


class _BlobFile(io.RawIOBase):
    """Reads a blob in place: only one copy of a large file is in memory."""

    def __init__(self, blob: pygit2.Blob) -> None:
        self._data = memoryview(blob)
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        data = self._data[self._position : self._position + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _mode(file: CodeFile) -> FileMode:
    if file.entry.kind is Kind.LINK:
        return FileMode.LINK
    return FileMode.BLOB_EXECUTABLE if file.entry.executable else FileMode.BLOB


@contextmanager
def telling_damage() -> Iterator[None]:
    """Turns what libgit2 raises for an object that is missing or can not be read into DamagedRepository."""
    try:
        yield
    except (KeyError, pygit2.GitError) as fault:
        raise DamagedRepository(str(fault)) from fault
