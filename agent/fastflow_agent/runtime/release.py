"""The release of a slot: its environment and the pipe the start wrapper waits at, in one folder on tmpfs.

Before the release only our wrapper runs inside, after it the pipeline does and may have put anything there. So the
folder is opened once without following a link, and every name in it is used relative to that descriptor, likewise.
All of it is memory, so these calls do not block and are made on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fastflow_agent.runtime.base import RuntimeFault

PIPE_POLL_SECONDS = 0.002
"""The wrapper opens its pipe some milliseconds after the start; each one waited here is one later first output."""

LIVES_POLL_SECONDS = 0.5
"""How often a wrapper that does not come to its pipe is looked for: that is rare, and asks the engine."""

PIPE_PATIENCE_SECONDS = 60.0
"""A wrapper that lives but is not at its pipe after this time never will be; a crowded host needs seconds."""

_PIPE = "release"
_ENVIRONMENT = "environment"
_DRAFT = "environment.draft"
_FAILED = "failed"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def environments_folder(preferred: Path, fallback: Path = Path("/dev/shm/fastflow-env")) -> Path:
    """The folder for slots' environments: `preferred` if it lies on a tmpfs, else `fallback`; made if need be.

    Secrets stand there for milliseconds, and on a tmpfs never reach a disk. Raises RuntimeFault if neither will do.
    """
    for folder in (preferred, fallback):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_tmpfs(folder) and _is_ours(folder):
                return folder
    raise RuntimeFault(
        f"Neither {preferred} nor {fallback} is a folder on a tmpfs that belongs to this user alone; "
        "set FASTFLOW_ENV_DIR to one."
    )


def prepare(folder: Path, owner: int) -> None:
    """Make a slot's folder with its pipe, for the wrapper of uid `owner`. One that exists is left as it is.

    Raises OSError.
    """
    if folder.exists():
        return
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    os.mkfifo(draft / _PIPE, 0o600)
    os.chown(draft / _PIPE, owner, owner)
    os.chown(draft, owner, owner)
    # In one step, so that a folder without a pipe always means: released.
    draft.rename(folder)


def render(environment: Mapping[str, str]) -> bytes:
    """The environment as lines for `sh`, closed by a sentinel; ValueError for a name or value no environment can hold.

    Surrogates stand for bytes that are not UTF-8, as in `os.environ`.
    """
    lines = [b"export %s=%s\n" % (_name(name), _quoted(name, value)) for name, value in environment.items()]
    return b"".join([*lines, b"FASTFLOW_COMPLETE=yes\n"])


async def release(folder: Path, content: bytes, owner: int, lives: Callable[[], Awaitable[bool]]) -> bool:
    """Deliver `content` and tell the wrapper; true once told, also if it was told before. False if it ended before.

    `lives` asks whether the slot still runs. Raises RuntimeFault when the folder can not be written or the wrapper
    never comes to its pipe.
    """
    try:
        with _opened(folder) as descriptor:
            if _pipe_is_gone(descriptor):
                return True
            _write(descriptor, content, owner)
            told = await _tell(descriptor, lives)
            if _pipe_is_gone(descriptor):
                # A release before this one was still under way: what it was told is enough.
                _unlink(_ENVIRONMENT, descriptor)
            return told
    except OSError as error:
        raise RuntimeFault(f"The environment could not be delivered to {folder}: {error.strerror}.") from error


def was_released(folder: Path) -> bool | None:
    """Whether the wrapper took its environment; None if the folder is gone, after a reboot say."""
    try:
        with _opened(folder) as descriptor:
            return _pipe_is_gone(descriptor)
    except OSError:
        return None


def has_mark(folder: Path, name: str) -> bool:
    """Whether the file `name` is there, which `failed` and `offline` are when the wrapper says so."""
    return stat.S_ISREG(mode) if (mode := _mode(folder, name)) is not None else False


def wrapper_failed(folder: Path) -> bool:
    """Whether the wrapper said that it failed itself."""
    return has_mark(folder, _FAILED)


def remove(folder: Path) -> None:
    """Remove a slot's folder with all the pipeline put there. No error if it is gone."""
    shutil.rmtree(folder, ignore_errors=True)


async def _tell(descriptor: int, lives: Callable[[], Awaitable[bool]]) -> bool:
    begin = asked = time.monotonic()
    while not _write_to_pipe(descriptor):
        await asyncio.sleep(PIPE_POLL_SECONDS)
        now = time.monotonic()
        if now - asked >= LIVES_POLL_SECONDS:
            asked = now
            if not await lives():
                return _pipe_is_gone(descriptor)
        if now - begin >= PIPE_PATIENCE_SECONDS:
            raise RuntimeFault("The start wrapper runs, but did not come for its release; the runner image is broken.")
    return True


def _write_to_pipe(descriptor: int) -> bool:
    """One attempt; true if the wrapper has been told, now or earlier."""
    try:
        pipe = os.open(_PIPE, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except FileNotFoundError:
        return True
    except OSError:
        # ENXIO: nobody reads yet. If something else stands where the pipe stood, user code put it there.
        return not _is_pipe(descriptor)
    try:
        if stat.S_ISFIFO(os.fstat(pipe).st_mode):
            os.write(pipe, b"go\n")
        return True
    except (BrokenPipeError, BlockingIOError):
        return False
    finally:
        os.close(pipe)


def _write(descriptor: int, content: bytes, owner: int) -> None:
    _unlink(_DRAFT, descriptor)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(_DRAFT, flags, 0o400, dir_fd=descriptor), "wb") as draft:
        os.fchown(draft.fileno(), owner, owner)
        draft.write(content)
    os.rename(_DRAFT, _ENVIRONMENT, src_dir_fd=descriptor, dst_dir_fd=descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER_FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unlink(name: str, descriptor: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=descriptor)


def _pipe_is_gone(descriptor: int) -> bool:
    try:
        os.stat(_PIPE, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _is_pipe(descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISFIFO(os.stat(_PIPE, dir_fd=descriptor, follow_symlinks=False).st_mode)
    return False


def _mode(folder: Path, name: str) -> int | None:
    try:
        with _opened(folder) as descriptor:
            return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
    except OSError:
        return None


def _name(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for an environment variable: letters, digits and _, no digit first")
    return name.encode()


def _quoted(name: str, value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"the value of {name} contains a zero byte, which no environment can hold")
    return b"'" + value.encode("utf-8", "surrogateescape").replace(b"'", b"'\\''") + b"'"


def _is_ours(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _is_tmpfs(folder: Path) -> bool:
    # os.statvfs does not tell the type of a file system; the mount table does.
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    best = max((fields for fields in mounts if folder.is_relative_to(fields[1])), key=lambda fields: len(fields[1]))
    return best[2] == "tmpfs"
