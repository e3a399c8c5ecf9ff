"""Keeps the packs of a repository few, durable and whole. A function's `folder` is the repository's objects/pack.

Each fetch brings a pack, and every lookup asks them all. Only small ones are joined, so the work follows what was
fetched since, not what the repository holds. Readers in other processes are not disturbed: libgit2 looks again for an
object whose pack is gone, and the new one is there before.
"""

import hashlib
from pathlib import Path

import pygit2
from fastflow.durable import sync_file, sync_folder

MANY_PACKS = 20
"""So many small packs are joined into one. Each costs every fetch a few system calls, every join reads them all."""

SMALL_BYTES = 8 * 1024**2
"""Packs up to this size are small: a joined one that has grown larger stays as it is."""

_SYNCED = ".synced"
"""Ends the name of the empty file that says that a pack is on disk, whole."""

_PACK_SUFFIXES = (".idx", ".pack", ".rev", _SYNCED)
"""Of the files that make up a pack, in the order in which they are removed: without an index nobody looks for it."""

_ESSENTIAL = (".idx", ".pack")
"""Of these files, those without which the others are worth nothing."""

_INDEX_MAGIC = b"\xfftOc\x00\x00\x00\x02"
_FANOUT = len(_INDEX_MAGIC) + 255 * 4
_NAMES = len(_INDEX_MAGIC) + 256 * 4
_NAME_BYTES = 20
_PIECE_BYTES = 1024 * 1024


def join_packs(repository: pygit2.Repository, folder: Path) -> None:
    """Joins the small packs of a repository, if there are many."""
    packs = list(folder.glob("*.pack"))
    if len(packs) <= MANY_PACKS:
        return
    small = [pack for pack in packs if pack.stat().st_size <= SMALL_BYTES]
    if len(small) <= MANY_PACKS:
        return
    builder = pygit2.PackBuilder(repository)
    builder.set_threads(1)
    for pack in small:
        for name in _objects(pack):
            builder.add(pygit2.Oid(raw=name))
    builder.write(str(folder))
    joined = set(folder.glob("*.pack")).difference(packs)
    if not joined:
        return
    for pack in joined:
        sync_file(pack)
        sync_file(pack.with_suffix(".idx"))
    sync_folder(folder)
    for pack in small:
        _remove(pack)


def sync_packs(folder: Path) -> None:
    """Makes all packs durable. Raises OSError."""
    for pack in _unsynced(folder):
        sync_file(pack)
        sync_file(pack.with_suffix(".idx"))
        pack.with_suffix(_SYNCED).touch()
    sync_folder(folder)


def remove_cut_off(folder: Path) -> None:
    """Removes what the end of a process, or of the power, left of packs that were being written or removed."""
    files = set(folder.iterdir())
    for file in files:
        if file.suffix not in _PACK_SUFFIXES or not files.issuperset(map(file.with_suffix, _ESSENTIAL)):
            file.unlink(missing_ok=True)
    for pack in _unsynced(folder):
        if not _is_whole(pack):
            _remove(pack)


def adopt_packs(folder: Path, fresh: Path) -> None:
    """Moves the packs of the folder `fresh` to `folder`, durable, and removes those there that are damaged or hold
    nothing else. Raises OSError."""
    sync_packs(fresh)
    moved = list(fresh.glob("*.pack"))
    held = {name for pack in moved for name in _objects(pack)}
    for pack in moved:
        # The index last: with it the pack is looked for.
        for suffix in reversed(_PACK_SUFFIXES):
            if pack.with_suffix(suffix).exists():
                pack.with_suffix(suffix).rename(folder / pack.with_suffix(suffix).name)
    sync_folder(folder)
    names = {pack.name for pack in moved}
    for pack in folder.glob("*.pack"):
        if pack.name not in names and (not _is_whole(pack) or held.issuperset(_objects(pack))):
            _remove(pack)


def _unsynced(folder: Path) -> list[Path]:
    """Returns the packs that are not known to be on disk. Lists the folder and asks for no single file: most are."""
    files = set(folder.iterdir())
    return [file for file in files if file.suffix == ".pack" and file.with_suffix(_SYNCED) not in files]


def _remove(pack: Path) -> None:
    for suffix in _PACK_SUFFIXES:
        pack.with_suffix(suffix).unlink(missing_ok=True)


def _is_whole(pack: Path) -> bool:
    """Tells whether a pack and its index are as they were written; reads them. See gitformat-pack(5)."""
    return all(_ends_with_its_checksum(pack.with_suffix(suffix)) for suffix in _ESSENTIAL)


def _ends_with_its_checksum(path: Path) -> bool:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        left = path.stat().st_size - digest.digest_size
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            digest.update(piece)
            left -= len(piece)
        return left == 0 and file.read() == digest.digest()


def _objects(pack: Path) -> list[bytes]:
    """Returns the ids of the objects in a pack; see gitformat-pack(5), version 2 indexes."""
    index = pack.with_suffix(".idx")
    data = index.read_bytes()
    if not data.startswith(_INDEX_MAGIC):
        raise ValueError(f"{index.name} is no index of a pack")
    count = int.from_bytes(data[_FANOUT : _FANOUT + 4])
    names = data[_NAMES : _NAMES + count * _NAME_BYTES]
    return [names[at : at + _NAME_BYTES] for at in range(0, len(names), _NAME_BYTES)]
