"""What a source of pipelines is to those who read it: one small interface for plain folders and Git repositories."""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from fastflow.pipelines.folder import Folder, FolderFault

from fastflow_controlplane.sources.model import Commit, Contents, Snapshot


class NotSyncedYet(FolderFault):
    """Nothing was fetched so far; the message says how to learn why."""


class UnknownRef(Exception):
    """There is no such commit or branch; the message says what there is."""


class Source(Protocol):
    """One place of pipelines. Methods block and belong to one thread at a time.

    They raise FolderFault where the source can not be read, DamagedRepository where what was kept of it can not (then
    `repair` it), StorageFault where nothing can be kept.
    """

    @property
    def place(self) -> str:
        """Folder or address, as shown to people; holds no credential."""

    @property
    def label(self) -> str:
        """What errors call it: "the pipelines folder …"."""

    @property
    def objects(self) -> Path:
        """The bare repository that holds its code."""

    @property
    def has_commits(self) -> bool:
        """Whether it is a Git repository."""

    def scan(self) -> Contents:
        """Returns what it holds now; costs little where little changed."""

    def rescan(self, snapshot: Snapshot) -> Snapshot | None:
        """Returns one pipeline as it is now. None = only `scan` can tell what became of it."""

    def at(self, name: str, ref: str) -> tuple[Snapshot | None, Commit]:
        """Returns a pipeline as it is at a commit or branch, None where it is not there.

        Raises UnknownRef, and as `scan` where nothing can be looked up.
        """

    def holds(self, tree: str) -> bool:
        """Whether the code of this tree is kept; it may be damaged."""

    def folder(self, tree: str) -> Folder:
        """Returns the code of a tree that it holds."""

    def may_come_back(self, tree: str) -> bool:
        """Whether a sync may bring code of `tree` that was found damaged, and is that of no pipeline now."""

    def prune(self, trees: Collection[str], unused_since: float) -> int:
        """Removes what is kept of code that is neither in `trees` nor current nor younger; returns how many objects.

        `unused_since` is seconds since 1970.
        """

    def repair(self) -> None:
        """Makes anew what is damaged of what is kept of it, or has the next sync do so. Raises as `scan`."""

    def close(self) -> None:
        """Releases its files."""
