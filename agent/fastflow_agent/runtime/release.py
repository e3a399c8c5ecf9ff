"""The release of a slot: its environment and the pipe the start wrapper waits at, in one folder on tmpfs.

Before the release only our wrapper runs inside, after it the pipeline does and may have put anything there. So the
folder is opened once without following a link, and every name in it is used relative to that descriptor, likewise.
All of it is memory, so these calls do not block and are made on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fastflow.deletion import delete_trees

from fastflow_agent.runtime.base import HostFault, RuntimeFault, SlotPaths

PIPE_POLL_SECONDS = 0.002
"""The wrapper opens its pipe some milliseconds after the start; each one waited here is one later first output."""

LIVES_POLL_SECONDS = 0.5
"""How often a wrapper that does not come to its pipe is looked for: that is rare, and asks the engine."""

PIPE_PATIENCE_SECONDS = 60.0
"""A wrapper that lives but is not at its pipe after this time never will be; a crowded host needs seconds."""

OFFLINE = "offline"
"""The file by which a preparer says that uv needed no network the second time."""

_PIPE = "release"
_ENVIRONMENT = "environment"
_DRAFT = "environment.draft"
_FAILED = "failed"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Gate:
    """The folder of one slot's release, for the wrapper of uid `owner`."""

    def __init__(self, paths: SlotPaths, owner: int) -> None:
        self._folder = paths.env
        self._number = paths.root / "gate"
        self._owner = owner

    def make(self) -> None:
        """Make the folder with its pipe; one that exists is left as it is. Raises OSError, HostFault."""
        if self._folder.exists():
            return
        parent = self._folder.parent
        if not parent.exists():
            # Somebody cleared it away under this agent, as a clean-up of /dev/shm does.
            environments_folder(parent, parent)
        draft = self._folder.with_name(self._folder.name + ".draft")
        delete_trees(draft)
        draft.mkdir(mode=0o700)
        os.mkfifo(draft / _PIPE, 0o600)
        # Its number is kept where the pipeline can not reach it: a pipe it makes in this one's place has another.
        self._number.write_text(str((draft / _PIPE).stat().st_ino))
        os.chown(draft / _PIPE, self._owner, self._owner)
        os.chown(draft, self._owner, self._owner)
        # In one step, so that a folder without the pipe always means: released.
        draft.rename(self._folder)

    async def release(self, content: bytes, lives: Callable[[], Awaitable[bool]]) -> bool:
        """Deliver `content` and tell the wrapper; true once told, also if it was told before. False if it had ended.

        `lives` asks whether the slot still runs. Raises HostFault when the folder can not be written, and
        RuntimeFault when the wrapper never comes to its pipe.
        """
        try:
            with self._opened() as folder:
                if self._is_passed(folder):
                    return True
                self._deliver(folder, content)
                told = await self._tell(folder, lives)
                if self._is_passed(folder):
                    # A release before this one was still under way: what it was told is enough.
                    _unlink(_ENVIRONMENT, folder)
                return told
        except OSError as error:
            raise HostFault(f"The environment could not be delivered to {self._folder}: {error.strerror}.") from error

    def was_released(self) -> bool | None:
        """Whether the wrapper took its environment; None if the folder is gone, after a reboot say."""
        try:
            with self._opened() as folder:
                return self._is_passed(folder)
        except OSError:
            return None

    def says(self, name: str) -> bool:
        """Whether the wrapper left the file `name`."""
        try:
            with self._opened() as folder:
                return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def wrapper_failed(self) -> bool:
        """Whether the wrapper said that it failed itself."""
        return self.says(_FAILED)

    def remove(self) -> None:
        """Remove the folder with all the pipeline put there. No error if it is gone. Blocks; raises OSError."""
        delete_trees(self._folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._folder, _FOLDER_FLAGS)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _is_passed(self, folder: int) -> bool:
        """Whether the wrapper has removed its pipe, which it does once it has the environment."""
        try:
            return os.stat(_PIPE, dir_fd=folder, follow_symlinks=False).st_ino != int(self._number.read_text())
        except FileNotFoundError:
            return True

    def _deliver(self, folder: int, content: bytes) -> None:
        _unlink(_DRAFT, folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_DRAFT, flags, 0o400, dir_fd=folder), "wb") as draft:
            os.fchown(draft.fileno(), self._owner, self._owner)
            draft.write(content)
        os.rename(_DRAFT, _ENVIRONMENT, src_dir_fd=folder, dst_dir_fd=folder)

    async def _tell(self, folder: int, lives: Callable[[], Awaitable[bool]]) -> bool:
        begin = asked = time.monotonic()
        while not self._try_to_tell(folder):
            await asyncio.sleep(PIPE_POLL_SECONDS)
            now = time.monotonic()
            if now - asked >= LIVES_POLL_SECONDS:
                asked = now
                if not await lives():
                    return self._is_passed(folder)
            if now - begin >= PIPE_PATIENCE_SECONDS:
                raise RuntimeFault(
                    "The start wrapper runs but did not come for its release; the runner image is broken."
                )
        return True

    def _try_to_tell(self, folder: int) -> bool:
        """One attempt; true if the wrapper has been told, now or earlier."""
        try:
            pipe = os.open(_PIPE, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            # ENXIO: nobody reads yet. Or what stands there is no longer our pipe.
            return self._is_passed(folder)
        try:
            if stat.S_ISFIFO(os.fstat(pipe).st_mode):
                os.write(pipe, b"go\n")
            return True
        except (BrokenPipeError, BlockingIOError):
            return False
        finally:
            os.close(pipe)


def render(environment: Mapping[str, str]) -> bytes:
    """The environment as lines for `sh`, closed by a sentinel; RuntimeFault for what no environment can hold.

    Surrogates stand for bytes that are not UTF-8, as in `os.environ`.
    """
    lines = [f"export {name}=".encode() + _quoted(name, value) + b"\n" for name, value in environment.items()]
    return b"".join([*lines, b"FASTFLOW_COMPLETE=yes\n"])


def environments_folder(preferred: Path, fallback: Path = Path("/dev/shm/fastflow-env")) -> Path:
    """The folder for slots' environments: `preferred` if it lies on a tmpfs, else `fallback`; made if need be.

    Secrets stand there for milliseconds, and on a tmpfs never reach a disk. Raises HostFault if neither will do.
    """
    for folder in (preferred, fallback):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_tmpfs(folder) and _is_ours(folder):
                return folder
    raise HostFault(
        f"Neither {preferred} nor {fallback} is a folder on a tmpfs that belongs to this user alone; "
        "set FASTFLOW_ENV_DIR to one."
    )


def _quoted(name: str, value: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise RuntimeFault(f"{name!r} is no name for an environment variable: letters, digits and _, no digit first.")
    if "\0" in value:
        raise RuntimeFault(f"The value of {name} contains a zero byte, which no environment can hold.")
    return b"'" + value.encode("utf-8", "surrogateescape").replace(b"'", b"'\\''") + b"'"


def _unlink(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _is_ours(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _is_tmpfs(folder: Path) -> bool:
    # os.statvfs does not tell the type of a file system; the mount table does.
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    best = max((fields for fields in mounts if folder.is_relative_to(fields[1])), key=lambda fields: len(fields[1]))
    return best[2] == "tmpfs"
