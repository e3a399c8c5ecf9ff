"""Folder trees of uv caches: copied without copying bytes, and closed to change. All of it blocks.

uv replaces the files of its cache by renaming, never in place (uv 0.13: inodes and checksums before and after adding,
refreshing and reusing packages). What it opens for writing, locks and marks, is copied. But code of packages runs while
environments are made, which may do as it pleases: so files that were published belong to root and can not be written by
the user a preparer runs as, and nothing here follows a link.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_syncfs = ctypes.CDLL(None, use_errno=True).syncfs
_syncfs.argtypes = [ctypes.c_int]

_BUILDS = "builds-v0"
_UNFINISHED = ".tmp"

DEEPEST = 100
"""Levels of folders in a cache: packages have about ten, and whatever walks through them must not run out of stack."""

LONGEST_PATH = 2048
"""Bytes of a path within a cache: the kernel takes 4095 of a whole one, and caches are moved and linked elsewhere."""


class TreeFault(Exception):
    """What somebody left can not be used. The message says why."""


def link(source: Path, target: Path, owner: int, archives: Container[str] | None = None) -> None:
    """Makes `target` hold what the cache `source` holds; what `target` has already, stays.

    Files are shared, folders belong to `owner`. What uv left unfinished is left out, and of `archives` (packages, which
    are nearly all there is) those that are not named there, if it is given. Links in `target` are never followed: where
    one, or a file, stands in the place of a folder, TreeFault is raised.
    """

    def left_out(entry: os.DirEntry[str]) -> bool:
        return archives is not None and Path(entry.path).parent in folders and entry.name not in archives

    folders = set(archive_folders(source))
    try:
        with _opened(target) as folder:
            _link_all(source, folder, owner, left_out)
    except NotADirectoryError as error:
        raise TreeFault(f"{error.filename} is no folder there") from error


def archive_folders(root: Path) -> list[Path]:
    """Where the cache under `root` has packages, each in a folder of its own, which uv names at random."""
    return _folders(root, "archive-v*")


def environment_folders(root: Path) -> list[Path]:
    """Where the cache under `root` has environments of scripts, and links to those that lie among the packages."""
    return _folders(root, "environments-v*")


def close_to_builds(root: Path) -> None:
    """Puts a file where uv would build packages, in a new cache: it then refuses what it would have to build.

    Forbidding it to does not suffice (uv 0.13): lines of a requirements file allow it again, editable packages are
    built all the same, and it takes older versions that are not to be built, in silence.
    """
    (root / _BUILDS).touch(mode=0o444)


def open_to_builds(root: Path) -> None:
    """Removes what `close_to_builds` put there."""
    (root / _BUILDS).unlink()


def is_closed_to_builds(output: bytes) -> bool:
    """Whether uv says that it could not build a package, for the sake of `close_to_builds`."""
    return f"/{_BUILDS}`".encode() in output


def close(root: Path, owner: int) -> None:
    """Takes from `owner` what may change the files under `root`, which nobody uses any more, and makes all durable.

    Locks and marks stay `owner`'s: they are empty, never shared (see `link`), and a run's uv opens them for writing
    through its overlay. Nothing is done where the process is not root, or is `owner` itself. What is neither file,
    folder nor symbolic link is removed. Links are never followed.
    """
    if os.geteuid() == 0 and owner != 0:
        for entry in walk(root):
            if entry.is_file(follow_symlinks=False) and not is_mark(entry):
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
    for entry in walk(root):
        shown = os.path.relpath(entry.path, root)
        if entry.is_symlink():
            shown += f" -> {os.readlink(entry.path)}"  # noqa: PTH115  # a Path shortens `./x`
        elif entry.is_file(follow_symlinks=False):
            if is_mark(entry):
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
        for entry in walk(root):
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


def _link_all(source: str | Path, folder: int, owner: int, left_out: Callable[[os.DirEntry[str]], bool]) -> None:
    for entry in _entries(source):
        if entry.name.startswith(_UNFINISHED) or left_out(entry):
            continue
        if entry.is_dir(follow_symlinks=False):
            with _made(entry.name, folder, owner) as inner:
                _link_all(entry.path, inner, owner, left_out)
        elif is_mark(entry):
            _copy(entry, folder, owner)
        else:
            _link(entry, folder, owner)


def _link(entry: os.DirEntry[str], folder: int, owner: int) -> None:
    try:
        os.link(entry.path, entry.name, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EMLINK, errno.EXDEV):
            _copy(entry, folder, owner)
        elif error.errno != errno.EEXIST:
            raise


def _copy(entry: os.DirEntry[str], folder: int, owner: int) -> None:
    """Makes a file or link of the owner's own, unless there is one of that name."""
    with suppress(FileExistsError):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), entry.name, dir_fd=folder)  # noqa: PTH115  # a Path shortens `./x`
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


def _folders(root: Path, pattern: str) -> list[Path]:
    return [path for path in root.glob(pattern) if path.is_dir() and not path.is_symlink()]


def is_mark(entry: os.DirEntry[str]) -> bool:
    """Whether it is one of `.lock`, `sdists-v9/.git` and their like: uv opens them for writing at every start."""
    named_so = entry.name.startswith(".") or entry.name.endswith(".lock")
    return named_so and entry.stat(follow_symlinks=False).st_size == 0


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


def walk(root: str | Path) -> Iterator[os.DirEntry[str]]:
    """All there is under `root`, ordered by name. Raises TreeFault beyond DEEPEST and LONGEST_PATH."""
    return _walk(root, DEEPEST, LONGEST_PATH + len(os.fsencode(root)))


def _walk(folder: str | Path, levels: int, longest: int) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        if not levels or len(os.fsencode(entry.path)) > longest:
            raise TreeFault(
                f"a package has folders more than {DEEPEST} deep, or paths longer than {LONGEST_PATH} bytes"
            )
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, levels - 1, longest)


def _sync(folder: Path) -> None:
    # One call for thousands of files.
    with _opened(folder) as descriptor:
        if _syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
