"""Which packages of a cache belong to what: uv keeps each unpacked wheel in a folder of its own. All of it blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastflow.deletion import delete_trees

from fastflow_agent.uvcache.tree import TreeFault, archive_folders, environment_folders, is_mark, walk

FETCHED = "fetched"
"""Folder in a cache where the wrapper script `fetch` has uv install by links."""

_ARCHIVE = re.compile(r"/archive-v[0-9]+/([^/]+)")


def take_fetched(cache: Path) -> frozenset[str]:
    """Returns the names of the archives that were fetched, and removes the links that named them."""
    fetched = cache / FETCHED
    names = _named(walk(fetched)) if fetched.is_dir() else set()
    delete_trees(fetched)
    return frozenset(names)


def check_shared(stock: Path, cache: Path) -> None:
    """Raises TreeFault if `cache`, made of `stock`, has another file in the place of one that is part of a package.

    uv never does that: whoever did would change what others import.
    """
    for folder in archive_folders(stock):
        for entry in walk(folder):
            if entry.is_file(follow_symlinks=False) and not is_mark(entry):
                other = cache / folder.name / os.path.relpath(entry.path, folder)
                try:
                    same = other.lstat().st_ino == entry.inode()
                except OSError:
                    same = False
                if not same:
                    raise TreeFault(f"{other.relative_to(cache)} is not the file any more that it was before")


def drop_unused(cache: Path, stock: Path) -> None:
    """Removes from `cache`, made of `stock` and prepared, the packages of `stock` that its environment does not use.

    An environment has its packages' files as links to them or, if it was made so, shares the files themselves.
    """
    inherited = {
        path.name: cache / folder.name / path.name for folder in archive_folders(stock) for path in folder.iterdir()
    }
    new = [entry for entry in _archives_and_environments(cache) if entry.name not in inherited]
    new += [inner for entry in new if entry.is_dir(follow_symlinks=False) for inner in walk(entry.path)]
    used = _named(new)
    files = {entry.inode() for entry in new if entry.is_file(follow_symlinks=False)}
    # What is no folder any more, code of a package has put there.
    unused = [path for name, path in inherited.items() if name not in used and path.is_dir() and not path.is_symlink()]
    delete_trees(*(path for path in unused if files.isdisjoint(entry.inode() for entry in walk(path))))


def _archives_and_environments(cache: Path) -> Iterator[os.DirEntry[str]]:
    for folder in (*archive_folders(cache), *environment_folders(cache)):
        with os.scandir(folder) as entries:
            yield from entries


def _named(entries: Iterable[os.DirEntry[str]]) -> set[str]:
    """The names of the archives that links among these point into."""
    targets = (os.readlink(entry.path) for entry in entries if entry.is_symlink())  # noqa: PTH115  # thousands of them
    return {found[1] for target in targets if (found := _ARCHIVE.search(target))}
