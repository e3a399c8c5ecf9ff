"""A folder of things that take long to build, each named by a hash of all that went into it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import LabError

FOLDER_VARIABLE = "FASTFLOW_HOSTLAB"

LOCK_TIMEOUT = 1200.0
"""Seconds to wait for another lab that builds: the longest build takes a few minutes, on a slow mirror more."""

KEEP = 3
"""Entries of one kind that stay, newest use first: a few branches can be worked on in turn without building."""

IN_USE_AGE = 7200.0
"""Seconds after its last use in which an entry is never removed: a running lab mounts it, and no lab runs longer."""


def default_folder() -> Path:
    """Return the cache folder: `FASTFLOW_HOSTLAB`, or `~/.cache/fastflow/hostlab`."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache/fastflow/hostlab").absolute()


def digest(*parts: str | bytes) -> str:
    """Return a short hash of the parts in their order; ("ab", "c") and ("a", "bc") differ."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest()[:16]


class Cache:
    """Entries are whole or absent: each is built under another name and renamed. Several labs may share one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def entry(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, after `build` has filled it if it was not there yet."""
        path = self.folder / f"{kind}-{key}"
        with self.locked():
            if not path.is_dir():
                self._build(path, build)
                self._remove_old(kind)
            os.utime(path)
        return path

    def _build(self, path: Path, build: Callable[[Path], None]) -> None:
        unfinished = self.folder / "unfinished"
        remove_tree(unfinished)
        unfinished.mkdir()
        build(unfinished)
        unfinished.rename(path)

    def _remove_old(self, kind: str) -> None:
        entries = sorted(self.folder.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[KEEP:]:
            if time.time() - entry.stat().st_mtime > IN_USE_AGE:
                remove_tree(entry)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other lab from building, starting and cleaning up meanwhile. Raises LabError after a time."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        with (self.folder / "lock").open("w") as lock:
            while not try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise LabError(f"another host lab holds {lock.name} for more than {LOCK_TIMEOUT:.0f} s")
                time.sleep(0.2)
            yield


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, until it is closed, if nobody else has it; say whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Return a hash of the names, relative to `root`, and contents of the files."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts += [str(path.relative_to(root)), path.read_bytes()]
    return digest(*parts)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, if it is there. It must have no mount in it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
