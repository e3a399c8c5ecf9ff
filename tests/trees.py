"""Folders that are hard to delete, users who have no rights to, and what is read while others write and delete it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NOBODY = 65534


def make_deep(folder: Path, depth: int = 1500) -> None:
    """Make folders in folders, each with a file, deeper than Python calls may be and than any path can name."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.mkdir("folder", dir_fd=here)
        inner = os.open("folder", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and in those below it, passing over what goes meanwhile: `Path.rglob` fails then."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def content_of(path: Path) -> bytes:
    """What is in a file; nothing if it is gone."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


@contextmanager
def not_root() -> Iterator[None]:
    """What is done here, is done by a user without rights."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
