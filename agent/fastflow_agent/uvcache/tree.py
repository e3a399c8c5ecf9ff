"""Folder trees of uv caches: copied without copying bytes, and closed to change. All of it blocks.

uv replaces the files of its cache by renaming, never in place (uv 0.13: inodes and checksums before and after adding,
refreshing and reusing packages). What it opens for writing, locks, marks and the databases of Git sources, is copied.
But uv also runs the build scripts of source packages, which may do as they please: so files that were published belong
to root and can not be written by the user a preparer runs as.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_syncfs = ctypes.CDLL(None, use_errno=True).syncfs
_syncfs.argtypes = [ctypes.c_int]

_SCRIPT_ENVIRONMENTS = "environments-v"
_COPIED = "git-v"
"""Beginnings of the names of uv's buckets; a number follows."""
_UNFINISHED = ".tmp"


def link(source: Path, target: Path, owner: int) -> None:
    """Makes `target` hold what the cache `source` holds; what `target` has already, stays.

    Files are shared, folders belong to `owner`. Environments of scripts are left out, and what uv left unfinished.
    `target` may have been written by anybody: links in it are never followed, and where one, or a file, stands in the
    place of a folder, NotADirectoryError is raised.
    """
    with _opened(target) as folder:
        for bucket in _entries(source):
            if bucket.is_dir(follow_symlinks=False):
                copied = bucket.name.startswith(_COPIED)
                with _made(bucket.name, folder, owner) as inner:
                    for entry in _entries(bucket.path):
                        if not _is_script_environment(bucket, entry):
                            _link(entry, inner, owner, copied=copied)
            else:
                _link(bucket, folder, owner, copied=False)


def close(root: Path, owner: int) -> None:
    """Takes from `owner` what may change the files under `root`, which nobody uses any more, and makes all durable.

    Locks and marks stay `owner`'s: they are empty, never shared (see `link`), and a run's uv opens them for writing
    through its overlay. Nothing is done where the process is not root, or is `owner` itself. What is neither file,
    folder nor symbolic link is removed. Links are never followed.
    """
    if os.geteuid() == 0 and owner != 0:
        for entry in _walk(root):
            if entry.is_file(follow_symlinks=False) and not _is_mark(entry):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid == owner or found.st_mode & 0o7022:
                    os.chown(entry.path, 0, 0, follow_symlinks=False)
                    # Its owner may write still: a copy of it that uv makes would be of no use otherwise.
                    Path(entry.path).chmod(stat.S_IMODE(found.st_mode) & 0o755)
            elif not entry.is_dir(follow_symlinks=False) and not entry.is_symlink():
                Path(entry.path).unlink()
    _sync(root)


def seal(root: Path) -> str:
    """Names what is under `root` by paths, sizes, times of change of content, and where links point. Reads no file.

    Neither a copy made by `link` nor `close` changes it; a missing, cut or rewritten file does.
    """
    hashed = hashlib.sha256()
    for entry in _walk(root):
        shown = os.path.relpath(entry.path, root)
        if entry.is_symlink():
            shown += f" -> {os.readlink(entry.path)}"  # noqa: PTH115  # thousands of them
        elif entry.is_file(follow_symlinks=False):
            if _is_mark(entry):
                continue
            found = entry.stat(follow_symlinks=False)
            shown += f" {found.st_size} {found.st_mtime_ns}"
        hashed.update(shown.encode("utf-8", "surrogateescape") + b"\0")
    return hashed.hexdigest()


def sizes(roots: Iterable[Path]) -> list[int]:
    """Bytes on disk that each of `roots` adds to those before it: a file that several hold counts at the first."""
    seen: set[tuple[int, int]] = set()
    added = []
    for root in roots:
        size = 0
        for entry in _walk(root):
            found = entry.stat(follow_symlinks=False)
            if found.st_nlink == 1 or (found.st_dev, found.st_ino) not in seen:
                size += found.st_blocks * 512
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    seen.add((found.st_dev, found.st_ino))
        added.append(size)
    return added


def make_owned_folder(folder: Path, owner: int) -> None:
    """Makes a new folder of `owner`."""
    folder.mkdir(mode=0o755)
    with _opened(folder) as descriptor:
        _give(descriptor, owner)


def _link(entry: os.DirEntry[str], folder: int, owner: int, *, copied: bool) -> None:
    if entry.name.startswith(_UNFINISHED):
        return
    if entry.is_dir(follow_symlinks=False):
        with _made(entry.name, folder, owner) as inner:
            for each in _entries(entry.path):
                _link(each, inner, owner, copied=copied)
    elif entry.is_symlink() or not (copied or _is_mark(entry)):
        try:
            os.link(entry.path, entry.name, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EMLINK, errno.EXDEV):
                raise
            if error.errno != errno.EEXIST:
                _copy(entry, folder, owner)
    else:
        _copy(entry, folder, owner)


def _copy(entry: os.DirEntry[str], folder: int, owner: int) -> None:
    """Makes a file or link of the owner's own, unless there is one of that name."""
    with suppress(FileExistsError):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), entry.name, dir_fd=folder)  # noqa: PTH115  # no Path has it
            return
        found = entry.stat(follow_symlinks=False)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(entry.name, flags, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as copy, Path(entry.path).open("rb") as original:
            shutil.copyfileobj(original, copy)
            os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode) | stat.S_IWUSR)
            _give(copy.fileno(), owner)
            copy.flush()
            os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))


def _is_mark(entry: os.DirEntry[str]) -> bool:
    # `.lock`, `sdists-v9/.git` and their like: uv opens them for writing at every start.
    named_so = entry.name.startswith(".") or entry.name.endswith(".lock")
    return named_so and entry.stat(follow_symlinks=False).st_size == 0


def _is_script_environment(bucket: os.DirEntry[str], entry: os.DirEntry[str]) -> bool:
    # Environments of requirements are links in a folder per interpreter; that of a script is a folder itself.
    return bucket.name.startswith(_SCRIPT_ENVIRONMENTS) and os.path.lexists(Path(entry.path) / "pyvenv.cfg")


def _give(descriptor: int, owner: int) -> None:
    if owner != os.geteuid():
        os.fchown(descriptor, owner, owner)


@contextmanager
def _made(name: str, folder: int, owner: int) -> Iterator[int]:
    """A descriptor of the folder `name` in `folder`, which is made for `owner` if it is not there."""
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
        new = True
    except FileExistsError:
        new = False
    with _opened(name, folder) as inner:
        if new:
            _give(inner, owner)
        yield inner


@contextmanager
def _opened(path: str | Path, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _walk(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def _sync(folder: Path) -> None:
    # One call for thousands of files.
    with _opened(folder) as descriptor:
        if _syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
