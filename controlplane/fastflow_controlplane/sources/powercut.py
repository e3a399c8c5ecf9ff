"""Finds what a power cut made of an object database, before libgit2 reads it.

Objects are written without waiting for the disk, as there can be thousands at a time. What is left of one after a power
cut may end anywhere, and libgit2 1.9 never returns from reading the beginning of an object, with Python's lock held.
"""

import zlib
from pathlib import Path

BOOT = "boot"
"""File in the database that names the boot of this machine in which it was last opened."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PIECE_BYTES = 1024 * 1024


def is_intact(path: Path) -> bool:
    """Tells whether all objects in the folder `path` are whole. Reads them all once after each boot, else nothing."""
    try:
        if (path / BOOT).read_bytes() == _BOOT_ID.read_bytes():
            return True
    except FileNotFoundError:
        pass
    return all(_is_whole(file) for file in path.glob("objects/??/*"))


def note_boot(path: Path) -> None:
    """Notes that what is in the folder `path` was written, or seen to be whole, in this boot."""
    (path / BOOT).write_bytes(_BOOT_ID.read_bytes())


def _is_whole(file: Path) -> bool:
    stream = zlib.decompressobj()
    try:
        with file.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                while len(stream.decompress(piece, _PIECE_BYTES)) == _PIECE_BYTES or stream.unconsumed_tail:
                    piece = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof
