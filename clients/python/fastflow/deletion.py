"""Deleting folders that others have filled, who may have left anything there.

`shutil.rmtree` is not for those: it calls itself for each level (so 1000 levels end it with RecursionError, up to
Python 3.12) and holds a descriptor open for each; it gives up at folders that were closed to their owner; and it either
stops at the first thing that can not be deleted or does not say that there was one.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def delete_trees(*paths: Path) -> None:
    """Delete what stands at `paths`, with all that is in it; no error for what is not there. Blocks.

    Links are deleted and never followed, and nothing outside is touched, whatever is moved about in there meanwhile;
    only the folders that `paths` lie in are trusted. However deep a tree is, a few descriptors are enough. Folders
    closed to their owner, who calls this, are opened. What can not be deleted keeps nothing else: raises the first
    OSError there was, at the end.
    """
    faults = [fault for path in paths if (fault := _delete_tree(path))]
    if faults:
        raise faults[0]


def _delete_tree(path: Path) -> OSError | None:
    """What kept the tree, or the first thing in it, from being deleted."""
    try:
        place = _Place(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    try:
        place.delete_all()
    except _WayLost as error:
        return place.fault or error
    finally:
        place.close()
    return place.fault


@dataclass(frozen=True)
class _Left:
    """A folder that was left to go into its entry `name`, and what else is to be deleted there."""

    identity: tuple[int, int]
    name: str
    others: list[str]


class _Place:
    """Where in the tree the deletion is. Names are looked up in one folder at a time, by its descriptor."""

    def __init__(self, path: Path) -> None:
        self._here = os.open(path.parent, _FOLDER)
        self._names = [path.name]
        self._above: list[_Left] = []
        self.fault: OSError | None = None
        """The first there was."""

    def delete_all(self) -> None:
        """Delete all that can be. Raises _WayLost."""
        while self._names or self._above:
            try:
                if not self._names:
                    os.rmdir(self._go_up(), dir_fd=self._here)
                elif not self._unlink(name := self._names.pop()):
                    self._go_into(name)
            except FileNotFoundError:
                # Somebody else deleted it.
                continue
            except _WayLost:
                raise
            except OSError as error:
                self.fault = self.fault or error

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._here)

    def _unlink(self, name: str) -> bool:
        """False for a folder."""
        try:
            os.unlink(name, dir_fd=self._here)
        except IsADirectoryError:
            return False
        return True

    def _go_into(self, name: str) -> None:
        inner = _open(name, self._here)
        try:
            names = os.listdir(inner)  # noqa: PTH208  # no Path stands for a descriptor
            self._above.append(_Left(_identity(self._here), name, self._names))
        except OSError:
            os.close(inner)
            raise
        os.close(self._here)
        self._here, self._names = inner, names

    def _go_up(self) -> str:
        """The name there of the folder it was in, which has been emptied as far as that was possible."""
        left = self._above.pop()
        try:
            outer = os.open("..", _FOLDER, dir_fd=self._here)
        except OSError as error:
            raise _WayLost(error.errno, error.strerror, left.name) from error
        os.close(self._here)
        self._here, self._names = outer, left.others
        if _identity(outer) != left.identity:
            raise _WayLost(errno.ESTALE, "the folder was moved while it was deleted", left.name)
        return left.name


class _WayLost(OSError):
    """It is not known any more where this is: nothing here may be deleted."""


def _open(name: str, folder: int) -> int:
    try:
        descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except PermissionError:
        _unlock(name, folder)
        descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    if os.fstat(descriptor).st_mode & 0o700 != 0o700:
        # Where that is refused, what can not be deleted for it says so itself.
        with suppress(OSError):
            os.fchmod(descriptor, 0o700)
    return descriptor


def _unlock(name: str, folder: int) -> None:
    # A descriptor of the name alone needs no rights, and by it no link is followed: os.chmod would follow one.
    named = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{named}", 0o700)  # noqa: PTH101
    finally:
        os.close(named)


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
