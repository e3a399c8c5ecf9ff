"""Where local runs keep what makes the next one start fast: the uv cache, and what is known of the image.

One process works in a data folder at a time, so runs at the same time each get one of their own: the first that is
free. As a rule that is always the same, and warm.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fastflow.deletion import delete_trees
from fastflow.pipelines import bundle
from fastflow.pipelines.code import Code

from fastflow_agent.bundles import BundleFault
from fastflow_agent.identity import DataFolderInUse, DataFolderLock
from fastflow_agent.model import SlotId

MOST_FOLDERS = 64
"""Local runs at once under one cache folder: each has a uv cache of its own, which costs disk."""


def default_cache() -> Path:
    """`fastflow/local` in the user's cache folder, as the XDG base directory specification names it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastflow" / "local"


def take_folder(cache: Path) -> tuple[Path, DataFolderLock]:
    """The first data folder under `cache` that nobody works in, and the hold on it. Blocks.

    Raises DataFolderInUse if all are taken, OSError if none can be made.
    """
    for number in range(1, MOST_FOLDERS + 1):
        folder = cache.absolute() / str(number)
        try:
            return folder, DataFolderLock(folder)
        except DataFolderInUse:
            continue
    raise DataFolderInUse(f"{MOST_FOLDERS} local runs are under way with {cache}; wait for one to end")


class PackedCode:
    """The code of one folder, packed and unpacked as it would travel to an agent."""

    def __init__(self, folder: Path, packed: bundle.Bundle) -> None:
        self._folder = folder
        self.packed = packed

    @classmethod
    def of(cls, code: Code, folder: Path) -> PackedCode:
        """Unpacks `code` under `folder`, and clears what a process that died left there. Blocks.

        Raises FolderFault for a file that changed meanwhile, OSError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        delete_trees(*folder.iterdir())
        with tempfile.TemporaryFile(dir=folder) as archive:
            packed = bundle.pack(code, archive)
            archive.seek(0)
            bundle.unpack(archive, folder / bundle.digest_hex(packed.digest))
        return cls(folder, packed)

    async def ensure(self, digest: str, size: int) -> Path:
        """See `Bundles.ensure`."""
        path = self._folder / bundle.digest_hex(digest)
        if digest != self.packed.digest or not path.is_dir():
            raise BundleFault(f"the code {digest} was removed from {self._folder}; run it again")
        return path

    def pin(self, digest: str, slot: SlotId) -> None:
        """See `Bundles.pin`: it stays until `remove` anyway."""

    def unpin(self, slot: SlotId) -> None:
        """See `Bundles.unpin`."""

    def remove(self) -> None:
        """Removes it from the disk. Blocks."""
        delete_trees(self._folder / bundle.digest_hex(self.packed.digest))
