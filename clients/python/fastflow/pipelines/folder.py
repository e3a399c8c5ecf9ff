"""A folder to read pipelines from, wherever it lies: on a disk here, in a Git tree in the control plane.

No implementation ever follows a symbolic link: a name is what it is.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Kind(Enum):
    """What a name in a folder is. OTHER is a device, a socket or a pipe, SUBMODULE a commit of another repository."""

    FILE = "a file"
    FOLDER = "a folder"
    LINK = "a symbolic link"
    SUBMODULE = "a Git submodule"
    OTHER = "neither file nor folder"


class Signature(NamedTuple):
    """What changes when a file on a disk is changed; times are nanoseconds since 1970.

    The time of the last change of the inode is in it because programs set the time of modification back at will.
    """

    changed_ns: int
    modified_ns: int
    size: int
    inode: int
    device: int
    mode: int


@dataclass(frozen=True)
class Entry:
    """One name in a folder. `size` is in bytes, 0 for folders; `executable` = its owner may execute it.

    `signature` tells a change without reading the file; None where its place does not know one. `identity` names the
    whole content of a folder, so that the same identity is the same content; "" where its place does not know one.
    A name that is not UTF-8 holds surrogates, as in all of Python's file functions.
    """

    name: str
    kind: Kind
    size: int = 0
    executable: bool = False
    signature: Signature | None = None
    identity: str = ""


class FolderFault(Exception):
    """Something can not be read; `message` says why. `path` is relative to where reading began, "" = there itself."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class Folder(Protocol):
    """Read access to one folder. `name` is always one of its entries, never a path. All methods raise FolderFault."""

    def entries(self) -> list[Entry]:
        """Returns what is in it, sorted by name."""
        ...

    def folder(self, name: str) -> "Folder":
        """Returns the folder `name` in it; whether it can be read shows when it is."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Opens the file `name`; reading it raises FolderFault as well."""
        ...

    def target(self, name: str) -> str:
        """Returns what the symbolic link `name` points to."""
        ...


def read_file(folder: Folder, name: str, limit: int) -> bytes:
    """Returns the content of the file `name`; raises FolderFault, also for more than `limit` bytes."""
    with folder.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FolderFault(name, f"has more than {limit} bytes")
    return data


class DiskFolder:
    """A folder on a disk. Only `root` itself may be reached through symbolic links; below it none is followed."""

    def __init__(self, root: Path, parts: tuple[str, ...] = ()) -> None:
        self._root = root
        self._parts = parts

    def entries(self) -> list[Entry]:
        """See `Folder.entries`. A name that vanishes meanwhile is left out."""
        found: list[Entry] = []
        with self._descriptor() as descriptor, self._faults(""), os.scandir(descriptor) as names:
            for name in names:
                try:
                    found.append(_entry(name.name, name.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
        return sorted(found, key=lambda entry: entry.name)

    def folder(self, name: str) -> "DiskFolder":
        """See `Folder.folder`."""
        return DiskFolder(self._root, (*self._parts, name))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder.open`."""
        with self._descriptor() as parent, self._faults(name):
            # Not blocking, for a pipe that was put in the place of a file would hold up the reader for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FolderFault(self._path(name), "is no file")
        with io.BufferedReader(_File(descriptor, self._path(name))) as file:
            yield file

    def target(self, name: str) -> str:
        """See `Folder.target`."""
        with self._descriptor() as parent, self._faults(name):
            return os.readlink(name, dir_fd=parent)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        """Opens the folder step by step, so that no part of the way below the root is a symbolic link."""
        with self._faults(""):
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in self._parts:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    deeper = os.open(part, flags, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = deeper
                yield descriptor
            finally:
                os.close(descriptor)

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise FolderFault(self._path(name), f"can not be read: {fault.strerror}") from fault

    def _path(self, name: str) -> str:
        return "/".join(part for part in (*self._parts, name) if part)


class _File(io.FileIO):
    """A file whose faults of reading are told apart from those of whoever takes the bytes."""

    def __init__(self, descriptor: int, path: str) -> None:
        super().__init__(descriptor)
        self._path = path

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as fault:
            raise FolderFault(self._path, f"can not be read: {fault.strerror}") from fault


def _entry(name: str, status: os.stat_result) -> Entry:
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}
    kind = kinds.get(stat.S_IFMT(status.st_mode), Kind.OTHER)
    return Entry(
        name=name,
        kind=kind,
        size=0 if kind is Kind.FOLDER else status.st_size,
        executable=kind is Kind.FILE and bool(status.st_mode & stat.S_IXUSR),
        signature=Signature(
            status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev, status.st_mode
        ),
    )
