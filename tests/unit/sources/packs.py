"""Packs in the copy of a repository that is followed, and damage that a disk does to them."""

import os
from pathlib import Path

from tests.origins import Origin
from tests.unit.sources.conftest import follow


def packs(data: Path) -> set[Path]:
    """Those of the copy below `data`."""
    return set((data / "repository.git" / "objects" / "pack").glob("*.pack"))


def replace(pack: Path, content: bytes) -> None:
    """Gives a pack other content."""
    # Another file, for this process may have mapped the one that is there.
    pack.unlink()
    pack.write_bytes(content)


def damage(pack: Path) -> None:
    """Makes what lies in the middle of a pack unreadable."""
    content, middle = pack.read_bytes(), pack.stat().st_size // 2
    replace(pack, content[:middle] + bytes(8) + content[middle + 8 :])


async def pushed_over(origin: Origin, data: Path) -> tuple[str, str, Path, Path]:
    """Syncs a commit and another one that was pushed over it; returns both, and the pack of each."""
    first = origin.push({"a/main.py": "1", "a/data": os.urandom(10_000)})
    async with follow(origin, data) as followed:
        await followed.sync()
        (old,) = packs(data)
        second = origin.push({"a/main.py": "2", "a/data": os.urandom(10_000)}, force=True)
        await followed.sync()
    (new,) = packs(data) - {old}
    return first, second, old, new
