"""Finds what a power cut or a disk made of an object database, before libgit2 reads it.

Objects are written without waiting for the disk, as there can be thousands at a time. What is left of one after a power
cut may end anywhere, and libgit2 1.9 never returns from reading the beginning of an object, with Python's lock held.
"""

import errno
import hashlib
import zlib
from pathlib import Path

BOOT = "boot"
"""File in the database that names the boot of this machine in which it was last opened."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PIECE_BYTES = 1024 * 1024


def is_of_this_boot(path: Path) -> bool:
    """Tells whether all that is in the folder `path` was written, or seen to be whole, in this boot."""
    try:
        return (path / BOOT).read_bytes() == _BOOT_ID.read_bytes()
    except FileNotFoundError:
        return False


def damaged(path: Path) -> list[Path]:
    """Returns the objects in the folder `path` that are not what their names say. Reads them all."""
    return [file for file in path.glob("objects/??/*") if not _is_whole(file)]


def note_boot(path: Path) -> None:
    """Notes what `is_of_this_boot` tells."""
    (path / BOOT).write_bytes(_BOOT_ID.read_bytes())


def _is_whole(file: Path) -> bool:
    stream, digest = zlib.decompressobj(), hashlib.sha1(usedforsecurity=False)
    try:
        with file.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                while found := stream.decompress(piece, _PIECE_BYTES):
                    digest.update(found)
                    piece = stream.unconsumed_tail
    except zlib.error:
        return False
    except OSError as fault:
        if fault.errno == errno.EIO:
            return False
        raise
    return stream.eof and digest.hexdigest() == file.parent.name + file.name
