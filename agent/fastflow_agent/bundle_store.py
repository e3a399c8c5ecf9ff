"""Unpacked bundles on this disk: which are whole, when each was used last, and which go when there are too many.

A bundle is the folder `<hex digits of its digest>`, all of it read-only. Beside it lies `<digits>.used`: its bytes on
disk, and as the file's time the last use, so that this outlives the agent. All of it blocks; use from one thread,
`broken` from any.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import structlog
from fastflow.deletion import delete_trees
from fastflow.pipelines import bundle
from fastflow.pipelines.code import ANY_SIZE, read_code
from fastflow.pipelines.folder import DiskFolder, FolderFault

log = structlog.get_logger(__name__)

_USED = ".used"
_BROKEN_PREFIX = ".broken-"
"""How the names of bundles begin that were found damaged while a container had them mounted."""


class BundleStore:
    """All bundles under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._looks: dict[str, int] = {}
        self._opened = False

    def open(self) -> None:
        """Makes the folder, and removes what a process that died left half done. Only the first call does."""
        if self._opened:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        delete_trees(*self._folder.glob(f"{bundle.PARTIAL_PREFIX}*"))
        for path in self._folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                self._sizes[path.name] = self._known_size(path)
        self._opened = True

    @property
    def size(self) -> int:
        """Bytes on disk of all bundles."""
        return sum(self._sizes.values())

    def path(self, name: str) -> Path:
        """Where a bundle is, or would be."""
        return self._folder / name

    def has(self, name: str) -> bool:
        """Whether a bundle is there; `broken` tells whether it is whole."""
        return self.path(name).is_dir()

    def put(self, archive: IO[bytes], name: str, now: datetime) -> None:
        """Unpacks an archive whose digest was verified. Raises bundle.BundleFault and OSError."""
        archive.seek(0)
        bundle.unpack(archive, self.path(name))
        self._looks[name] = _look(self.path(name))
        self._sizes[name] = self._measure(self.path(name))
        self.touch(name, now)

    def touch(self, name: str, now: datetime) -> None:
        """Keeps `now` as the time of the last use. A disk that refuses keeps no run from starting."""
        used = now.astimezone(UTC).timestamp()
        try:
            os.utime(self._used(name), (used, used))
        except OSError:
            try:
                self._used(name).write_text(str(self._sizes.get(name, 0)))
                os.utime(self._used(name), (used, used))
            except OSError as error:
                log.warning("the use of a bundle is not kept", bundle=name, error=str(error))

    def broken(self, name: str) -> str:
        """Says what is wrong with a bundle that is there; "" if it is what its digest says.

        The first time a process asks, every byte is read (a bundle is packed as it was sent: the same files give the
        same digest). After that only if the look of a file has changed, which no write through the system hides.
        """
        try:
            look = _look(self.path(name))
            if self._looks.get(name) == look:
                return ""
            found = bundle.pack(read_code(DiskFolder(self.path(name)), ANY_SIZE), _Nowhere())
        except FolderFault as fault:
            return str(fault)
        if bundle.digest_hex(found.digest) != name:
            return f"its files have the digest {found.digest}"
        self._looks[name] = look
        return ""

    def set_aside(self, name: str) -> None:
        """Takes a bundle out of use under another name, which containers that have it mounted do not notice."""
        aside = self._free_name(f"{_BROKEN_PREFIX}{name}-")
        # It may be damaged by having been removed.
        with suppress(FileNotFoundError):
            self.path(name).rename(aside)
        self._forget(name)

    def excess(self, limit: int, in_use: Callable[[str], bool]) -> list[Path]:
        """Takes away what is to go, and returns where it is now, to be deleted.

        That is every damaged bundle that was set aside, and of the others those used least recently until the rest has
        at most `limit` bytes. What is `in_use` stays, whatever its size.
        """
        gone = [
            path
            for path in self._folder.glob(f"{_BROKEN_PREFIX}*")
            if not in_use(path.name.removeprefix(_BROKEN_PREFIX).rpartition("-")[0])
        ]
        size = self.size
        for name in sorted(self._sizes, key=self._last_use) if size > limit else ():
            if size <= limit:
                break
            if not in_use(name):
                size -= self._sizes[name]
                gone.append(self._take_out(name))
        return gone

    def _take_out(self, name: str) -> Path:
        # Under the name of something half done: whatever ends this process, the next one removes it.
        out = self._free_name(bundle.PARTIAL_PREFIX)
        if self.has(name):
            self.path(name).rename(out)
        self._forget(name)
        return out

    def _forget(self, name: str) -> None:
        self._used(name).unlink(missing_ok=True)
        self._sizes.pop(name, None)
        self._looks.pop(name, None)

    def _free_name(self, prefix: str) -> Path:
        number = 0
        while (path := self._folder / f"{prefix}{number}").exists():
            number += 1
        return path

    def _used(self, name: str) -> Path:
        return self._folder / f"{name}{_USED}"

    def _last_use(self, name: str) -> float:
        try:
            return self._used(name).stat().st_mtime
        except OSError:
            return 0.0

    def _known_size(self, path: Path) -> int:
        try:
            return int(self._used(path.name).read_text())
        except (OSError, ValueError):
            return self._measure(path)

    def _measure(self, path: Path) -> int:
        return sum(entry.lstat().st_blocks * 512 for entry in (path, *path.rglob("*")))


def _look(path: Path) -> int:
    """What can be seen of a bundle without reading its files: no change of one of them leaves it as it was."""
    return hash(tuple((file.path, file.entry.signature) for file in read_code(DiskFolder(path), ANY_SIZE).files))


class _Nowhere:
    def write(self, data: bytes, /) -> None:
        """Takes all of it."""
