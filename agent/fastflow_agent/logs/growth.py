"""Being told that a file was written to, so that spools that rest cost nothing.

inotify(7), one event for each time a file is armed: a file that is written to a million times a second is looked at
from time to time instead, and costs its writer nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_init = _libc.inotify_init1
_init.argtypes = [ctypes.c_int]
_add_watch = _libc.inotify_add_watch
_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]

_MODIFY = 0x00000002
_ONESHOT = 0x80000000
"""IN_MODIFY and IN_ONESHOT: linux/inotify.h."""


class Growth:
    """Calls `grown` on the event loop once after a file that was armed is written to or cut."""

    def __init__(self, grown: Callable[[], None]) -> None:
        """Raises OSError where the kernel gives no more of these (fs.inotify.max_user_instances)."""
        self._grown = grown
        self._descriptor = _checked(_init(os.O_NONBLOCK | os.O_CLOEXEC))
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def arm(self, descriptor: int) -> None:
        """Arms the file of an open descriptor; if it is armed already, nothing changes. Raises OSError."""
        # By descriptor, never by path: what stands at the path may be another file by now.
        _checked(_add_watch(self._descriptor, b"/proc/self/fd/%d" % descriptor, _MODIFY | _ONESHOT))

    def close(self) -> None:
        """Ends it."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        # Which file it was does not matter: all are looked at.
        with suppress(BlockingIOError):
            os.read(self._descriptor, 64 * 1024)
        self._grown()


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
