"""Bundles: the exact code of a pipeline as one archive, addressed by its SHA-256.

Canonical: the same files give the same bytes, wherever and whenever they are packed. A POSIX.1-2001 (pax) tar of files
and symbolic links sorted by path, without folders, owners or times; of the mode only the executable bit is kept.
"""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from fastflow.deletion import delete_trees
from fastflow.durable import sync_folder
from fastflow.pipelines.code import (
    MAX_CODE_DEPTH,
    MAX_CODE_FILES,
    MAX_NAME_BYTES,
    MAX_TARGET_BYTES,
    Code,
    CodeFile,
    is_utf8,
    open_exactly,
    refused_links,
)
from fastflow.pipelines.folder import Kind

PARTIAL_PREFIX = ".partial-"
"""How the names of folders begin that `unpack` has not finished. After a crash they stay."""

MTIME = 315_532_800
"""Modification time of every packed file: 1980-01-01 UTC, as Python's zipfile refuses what is older."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class BundleFault(Exception):
    """The archive is damaged, or is none of ours; the message goes on after "it": "is no bundle", "holds …"."""


@dataclass(frozen=True)
class Bundle:
    """`digest` is "sha256:…" of the archive, `size` its length in bytes."""

    digest: str
    size: int


class Sink(Protocol):
    """Where an archive is written to."""

    def write(self, data: bytes, /) -> object:
        """Takes all of `data`."""
        ...


def pack(code: Code, sink: Sink) -> Bundle:
    """Writes the bundle of `code` to `sink`. Raises FolderFault for a file that can not be read or has changed."""
    writer = _HashingWriter(sink)
    # Of a file tarfile uses `write` and `tell` alone here; its types ask for a whole one.
    with tarfile.open(fileobj=writer, mode="w", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for file in code.files:
            _add(archive, file)
    return Bundle(f"sha256:{writer.hash.hexdigest()}", writer.tell())


def digest_of(archive: IO[bytes]) -> str:
    """Returns the digest of what `archive` has from here on."""
    digest = hashlib.sha256()
    while chunk := archive.read(1024 * 1024):
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def digest_hex(digest: str) -> str:
    """Returns the 64 hexadecimal digits of a digest, safe as a file name; raises ValueError for anything else."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(
            f"{digest[:100]!r} is not a digest: sha256: and 64 hexadecimal digits in small letters are expected"
        )
    return match[1]


def unpack(archive: IO[bytes], target: Path) -> None:
    """Makes the folder `target` with the code in `archive`: read-only, durable, all of it or nothing.

    Everybody may read it, files that were executable can be executed, owners are as the process creates them. If
    somebody else makes `target` meanwhile, theirs stays. Raises BundleFault for whatever `pack` would not write
    (absolute paths, "..", devices, links that leave the folder, more than a pipeline may have), OSError for the disk.
    """
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=target.parent))
    try:
        _extract(archive, partial)
        _make_read_only(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            delete_trees(partial)
        sync_folder(target.parent)
    except BaseException:
        delete_trees(partial)
        raise


class _HashingWriter:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._size = 0
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self.hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size


def _add(archive: tarfile.TarFile, file: CodeFile) -> None:
    member = tarfile.TarInfo(file.path)
    member.mtime = MTIME
    if file.entry.kind is Kind.LINK:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, file.target, 0o777
        archive.addfile(member)
        return
    member.size, member.mode = file.entry.size, 0o755 if file.entry.executable else 0o644
    with open_exactly(file) as content:
        archive.addfile(member, content)


def _extract(archive: IO[bytes], root: Path) -> None:
    links: dict[str, str] = {}
    paths = _Paths()
    size = 0
    # How much a pipeline may have is for the control plane to say, which announces how long the archive is.
    most = _length(archive)
    with _archive_faults(), tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            path = paths.add(member.name)
            size += member.size
            if paths.count > MAX_CODE_FILES:
                raise BundleFault(f"holds more than a pipeline may: {paths.count} files")
            if size > most:
                raise BundleFault("is no bundle: its files are longer than itself")
            if member.type == tarfile.SYMTYPE:
                links[path] = _checked_target(path, member.linkname)
            elif member.type == tarfile.REGTYPE and member.sparse is None:
                _write(members, member, root / path)
            else:
                raise BundleFault(f"holds {path!r}, which is neither a file nor a symbolic link")
    for path, message in refused_links(links).items():
        raise BundleFault(f"holds {path!r}, which {message}")
    # Links come last, so that no file was written through one.
    for path, target in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)


def _length(archive: IO[bytes]) -> int:
    start = archive.tell()
    length = archive.seek(0, os.SEEK_END) - start
    archive.seek(start)
    return length


class _Paths:
    """The paths of an archive: each stays within the folder, stands for itself and lies in no other."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._files)

    def add(self, path: str) -> str:
        parts = path.split("/")
        if not is_utf8(path) or any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise BundleFault(f"holds {path!r}, which is not a path within the folder")
        if len(parts) > MAX_CODE_DEPTH + 1 or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
            raise BundleFault(f"holds {path!r}, which is longer or deeper than a path may be")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if path in self._files or path in self._folders or above & self._files:
            raise BundleFault(f"holds {path!r}, which is there twice, or lies in a file")
        self._files.add(path)
        self._folders |= above
        return path


def _checked_target(path: str, target: str) -> str:
    if not target or "\0" in target or not is_utf8(target) or len(target.encode()) > MAX_TARGET_BYTES:
        raise BundleFault(f"holds {path!r}, a symbolic link to {target[:100]!r}, which is no path")
    return target


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = members.extractfile(member)
    if content is None:
        raise BundleFault(f"holds {member.name!r} without content")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file, 1024 * 1024)
        if file.tell() != member.size:
            raise BundleFault(f"holds {member.name!r}, which is cut off")
        file.flush()
        os.utime(file.fileno(), (MTIME, MTIME))
        os.fchmod(file.fileno(), 0o555 if member.mode & 0o100 else 0o444)
        os.fsync(file.fileno())


def _make_read_only(root: Path) -> None:
    for path, _, _ in os.walk(root, topdown=False):
        sync_folder(Path(path))
        Path(path).chmod(0o555)


@contextmanager
def _archive_faults() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as fault:
        raise BundleFault(f"is no bundle: {fault}") from fault
