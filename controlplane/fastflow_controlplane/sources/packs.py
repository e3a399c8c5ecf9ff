"""Keeps the packs of a repository few: each fetch brings one, and every lookup asks them all.

Only small packs are joined, so the work follows what was fetched since, not what the repository holds. Readers in other
processes are not disturbed: libgit2 looks again for an object whose pack is gone, and the new one is there before.
"""

import os
from pathlib import Path

import pygit2
from fastflow.durable import sync_folder

MANY_PACKS = 50
"""So many small packs are joined into one."""

SMALL_BYTES = 8 * 1024**2
"""Packs up to this size are small: a joined one that has grown larger stays as it is."""

_INDEX_MAGIC = b"\xfftOc\x00\x00\x00\x02"
_FANOUT = len(_INDEX_MAGIC) + 255 * 4
_NAMES = len(_INDEX_MAGIC) + 256 * 4
_NAME_BYTES = 20


def join_packs(repository: pygit2.Repository, folder: Path) -> None:
    """Joins the small packs of a repository, if there are many. `folder` is its folder objects/pack."""
    small = [pack for pack in folder.glob("*.pack") if pack.stat().st_size <= SMALL_BYTES]
    if len(small) <= MANY_PACKS:
        return
    builder = pygit2.PackBuilder(repository)
    builder.set_threads(1)
    for pack in small:
        for name in _objects(pack.with_suffix(".idx")):
            builder.add(name)
    before = set(folder.glob("*.pack"))
    builder.write(str(folder))
    joined = set(folder.glob("*.pack")) - before
    if not joined:
        return
    for pack in joined:
        sync_file(pack)
        sync_file(pack.with_suffix(".idx"))
    sync_folder(folder)
    for pack in small:
        # The index first: without it nobody looks for the pack.
        for suffix in (".idx", ".pack", ".synced"):
            pack.with_suffix(suffix).unlink(missing_ok=True)


def _objects(index: Path) -> list[pygit2.Oid]:
    """Returns the objects of a pack; see gitformat-pack(5), version 2 indexes."""
    data = index.read_bytes()
    if not data.startswith(_INDEX_MAGIC):
        raise ValueError(f"{index.name} is no index of a pack")
    count = int.from_bytes(data[_FANOUT : _FANOUT + 4])
    names = data[_NAMES : _NAMES + count * _NAME_BYTES]
    return [pygit2.Oid(raw=names[at : at + _NAME_BYTES]) for at in range(0, len(names), _NAME_BYTES)]


def sync_file(path: Path) -> None:
    """Makes what a file holds durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
