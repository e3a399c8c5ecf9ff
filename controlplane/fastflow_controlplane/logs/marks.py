"""What a log file can not tell by its size: its gaps and its end, in a file of lines beside it; see `logs.file_log`."""

import errno
import os
from pathlib import Path

from fastflow.durable import sync_folder


class Marks:
    """The lines beside a log. A line is added whole and durably; one that a crash cut off counts as not added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.gaps: set[tuple[int, int]] = set()
        self.sealed: int | None = None

    def load(self) -> "Marks":
        """Reads all whole lines. Raises OSError, also where something else is written there."""
        self.gaps.clear()
        self.sealed = None
        try:
            self._read(self._path.read_text("ascii"))
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise OSError(errno.EBADMSG, f"{self._path.name} beside it is damaged") from error
        return self

    def _read(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            match line.split():
                case ["gap", offset, end] if line.endswith("\n"):
                    self.gaps.add((int(offset), int(end)))
                case ["sealed", end] if line.endswith("\n"):
                    self.sealed = int(end)

    def add(self, line: str) -> None:
        """Adds one line, durable on return. Raises OSError."""
        make_folders(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
            os.ftruncate(descriptor, whole)
            added = f"{line}\n".encode("ascii")
            if os.pwrite(descriptor, added, whole) < len(added):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self._path.parent)

    def remove(self) -> None:
        """Removes the file, if there is one."""
        self._path.unlink(missing_ok=True)


def make_folders(folder: Path) -> None:
    """Makes a folder and those above it, durable on return. Raises OSError."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(mode=0o750, exist_ok=True)
    sync_folder(folder.parent)
