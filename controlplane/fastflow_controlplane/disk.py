"""A full disk: how it is recognised, and what people are told of it."""

import errno
import os
import tempfile
from pathlib import Path

DISK_FULL = "DISK_FULL"
"""`ErrorInfo.reason` of what fails because of a full disk."""
ROOM_BYTES = 1024 * 1024
"""A disk that was full counts so until this much fits: a few free blocks would be gone with the next write."""
_CODES = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether the system refused because there is no room: no space, no inode, or a quota that is used up."""
    return error.errno in _CODES


def says_full(text: str) -> bool:
    """Whether the message of a library quotes such an error of the system, or is SQLite's own (SQLITE_FULL)."""
    return "disk is full" in text or any(os.strerror(code) in text for code in _CODES)


def has_room(folder: Path) -> bool:
    """Whether ROOM_BYTES can be stored in `folder` now; True where that can not be told. Blocks.

    It is tried: the count of free blocks knows nothing of quotas, nor of what is kept for root.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)
    except OSError as error:
        return not is_full(error)
    return True


def full_message(place: object, consequence: str) -> str:
    """The sentence for people: which disk, what follows ("nothing can be stored"), and what to do."""
    return f"the disk that holds {place} is full: {consequence} until there is room; free some space there"
