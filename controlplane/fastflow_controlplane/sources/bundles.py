"""Bundles on disk: `<folder>/<64 hexadecimal digits>`, each written once, whole or not at all.

A disk may change what was written. So each is hashed while it is sent, and one that is damaged is removed: to ask for
it again has it written anew.
"""

import asyncio
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

import structlog
from fastflow.durable import sync_folder
from fastflow.finishing import finish, take_over
from fastflow.pipelines.bundle import Bundle, digest_hex

from fastflow_controlplane.errors import DataLoss, InvalidArgument, NotFound, Unavailable

log = structlog.get_logger(__name__)

PARTIAL_PREFIX = ".partial-"
READ_THREADS = 2
"""Threads that read and hash bundles for agents: short reads of a local disk, so few serve many."""


class BundleStore:
    """The bundles in `folder`, which is made if it is not there. Leftovers of a crash are removed at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{PARTIAL_PREFIX}*"):
            leftover.unlink()
        self._using = threading.Lock()
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="bundle-read")

    def ensure(self, bundle: Bundle, pack: Callable[[BinaryIO], Bundle]) -> None:
        """Makes sure that `bundle` is on disk, durable. `pack` writes it if it is not. Blocks.

        Safe at the same time from several threads and processes: the content is what the name says, whoever wrote it.
        Raises DataLoss if `pack` writes something else, OSError for the disk.
        """
        path = self._path(bundle.digest)
        if self._use(path) == bundle.size:
            return
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if pack(file) != bundle:
                    raise DataLoss(
                        f"the code of bundle {bundle.digest} is no longer what it was", reason="BUNDLE_CHANGED"
                    )
                file.flush()
                os.fsync(file.fileno())
            with self._using:
                Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(self._folder)

    async def open(self, digest: str) -> "BundleFile":
        """Opens a bundle for reading; close it, or use it in an `async with`.

        Raises InvalidArgument for what is no digest, NotFound for a bundle that is not there.
        """
        try:
            path = self._path(digest)
        except ValueError as fault:
            raise InvalidArgument(str(fault), reason="BAD_DIGEST") from None
        opening = asyncio.get_running_loop().run_in_executor(self._readers, self._open, path)
        return await take_over(opening, BundleFile.close)

    async def prune(self, needed: Collection[str], unused_since: float) -> int:
        """Removes bundles that are not `needed` (digests) nor were used since; returns how many. Raises OSError.

        `unused_since` is seconds since 1970: who looks up a bundle for a run has from then on to store the run.
        """
        names = frozenset(map(digest_hex, needed))
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._prune, names, unused_since)

    def _prune(self, names: Collection[str], unused_since: float) -> int:
        bundles = [path for path in self._folder.iterdir() if not path.name.startswith(PARTIAL_PREFIX)]
        removed = 0
        for path in bundles:
            with self._using:
                if path.name not in names and path.stat().st_mtime < unused_since:
                    path.unlink()
                    removed += 1
        return removed

    def _open(self, path: Path) -> "BundleFile":
        self._use(path)
        return BundleFile(path, self._readers, self._discard)

    def _discard(self, file: int, path: Path, fault: str) -> str:
        """Removes the damaged bundle that is open as `file`, unless another is there by now; says what became of it."""
        log.error("a bundle is damaged on the disk", path=str(path), fault=fault)
        try:
            with self._using, suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file)):
                    path.unlink()
        except OSError as error:
            return f"and can not be removed ({error.strerror}): see to the disk of the data folder"
        return "and is written anew when it is asked for again; if that does not help, see to the disk"

    def _use(self, path: Path) -> int | None:
        """Notes that a bundle is used now; returns its size, None where there is none."""
        with self._using, suppress(FileNotFoundError):
            os.utime(path)
            return path.stat().st_size
        return None

    def close(self) -> None:
        """Ends the reading threads."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _path(self, digest: str) -> Path:
        return self._folder / digest_hex(digest)


class BundleFile:
    """One open bundle, read from its beginning to its end. `size` is in bytes.

    `discard` removes what is damaged, and says what is next; it gets the open file, its path and what is wrong.
    """

    def __init__(self, path: Path, threads: ThreadPoolExecutor, discard: Callable[[int, Path, str], str]) -> None:
        self._path = path
        self._digest = f"sha256:{path.name}"
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise no_bundle(self._digest) from None
        except OSError as fault:
            raise Unavailable(f"the bundle {self._digest} can not be read: {fault.strerror}") from fault
        self._threads = threads
        self._discard = discard
        self._hash = hashlib.sha256()
        self._read = 0
        self.size = os.fstat(self._file.fileno()).st_size

    async def read(self, limit: int) -> bytes:
        """Returns the next bytes, up to `limit`, b"" at the end.

        Raises DataLoss in place of the last ones where the bundle is not what its digest says; it is removed then.
        """
        # Else an agent that goes away has the file closed, and its number given to another one, while it is read.
        return await finish(asyncio.get_running_loop().run_in_executor(self._threads, self._next, limit))

    def _next(self, limit: int) -> bytes:
        try:
            data = os.read(self._file.fileno(), limit)
        except OSError as fault:
            raise self._damaged(f"can not be read: {fault.strerror}") from fault
        self._hash.update(data)
        self._read += len(data)
        if (self._read >= self.size or not data) and self._hash.hexdigest() != self._path.name:
            raise self._damaged(f"has the digest sha256:{self._hash.hexdigest()}")
        return data

    def _damaged(self, fault: str) -> DataLoss:
        what_next = self._discard(self._file.fileno(), self._path, fault)
        return DataLoss(
            f"the bundle {self._digest} is damaged on the disk of the control plane: it {fault}, {what_next}",
            reason="BUNDLE_DAMAGED",
            metadata={"digest": self._digest},
        )

    def close(self) -> None:
        """Closes the file; a second time nothing happens."""
        self._file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def no_bundle(digest: str, why: str = "") -> NotFound:
    """The error for a bundle that is not there."""
    message = f'there is no bundle "{digest}"' + (f": {why}" if why else "")
    return NotFound(message, reason="BUNDLE_NOT_FOUND", metadata={"digest": digest})
