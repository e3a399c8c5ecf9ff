"""Bundles on disk: `<folder>/<64 hexadecimal digits>`, each written once, whole or not at all."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from fastflow.durable import sync_folder
from fastflow.pipelines.bundle import Bundle, digest_hex

from fastflow_controlplane.errors import DataLoss, InvalidArgument, NotFound, Unavailable

PARTIAL_PREFIX = ".partial-"
READ_THREADS = 2
"""Threads that read bundles for agents: short reads of a local disk, so few serve many."""


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
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._open, path)

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
        return BundleFile(path, self._readers)

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
    """One open bundle. `size` is in bytes."""

    def __init__(self, path: Path, threads: ThreadPoolExecutor) -> None:
        digest = f"sha256:{path.name}"
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            message = f'there is no bundle "{digest}"'
            raise NotFound(message, reason="BUNDLE_NOT_FOUND", metadata={"digest": digest}) from None
        except OSError as fault:
            raise Unavailable(f"the bundle {digest} can not be read: {fault.strerror}") from fault
        self._threads = threads
        self.size = os.fstat(self._file.fileno()).st_size

    async def read(self, offset: int, limit: int) -> bytes:
        """Returns up to `limit` bytes from `offset` on, b"" at the end."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, os.pread, self._file.fileno(), limit, offset)

    def close(self) -> None:
        """Closes the file; a second time nothing happens."""
        self._file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
