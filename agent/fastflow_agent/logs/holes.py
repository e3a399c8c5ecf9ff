"""Giving the disk space of a part of a file back, while others append to the file."""

from __future__ import annotations

import ctypes
import errno
import os

BLOCK = 4096
"""Whole blocks of this size leave the disk; all common file systems use it or a divisor of it."""

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE: linux/falloc.h, fallocate(2)."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(descriptor: int, start: int, end: int) -> bool:
    """Frees the whole blocks between `start` and `end`, which read as zeros from then on; the size stays.

    Needs a descriptor that may write. Returns whether the file system can do that. Raises OSError.
    """
    start = -(-start // BLOCK) * BLOCK
    end = end // BLOCK * BLOCK
    if start >= end:
        return True
    while _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, end - start) != 0:
        error = ctypes.get_errno()
        if error == errno.EOPNOTSUPP:
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True
