"""Being told that a log grew: once for each time it is armed, whoever wrote."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastflow_agent.logs.growth import Growth


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def write_elsewhere(path: Path) -> None:
    subprocess.run(["sh", "-c", f"echo line >>{path}"], check=True)


async def told(event: asyncio.Event) -> None:
    """Waits until it is told."""
    async with asyncio.timeout(60):
        await event.wait()
    event.clear()


async def untold(event: asyncio.Event) -> bool:
    """Whether nothing is told for a while."""
    await asyncio.sleep(0.2)
    return not event.is_set()


async def test_a_file_that_is_written_to_is_told_once_for_each_time_it_was_armed(path: Path, descriptor: int) -> None:
    event = asyncio.Event()
    growth = Growth(event.set)
    write_elsewhere(path)
    assert await untold(event)
    for _ in range(3):
        growth.arm(descriptor)
        growth.arm(descriptor)
        assert await untold(event)
        write_elsewhere(path)
        await told(event)
        write_elsewhere(path)
        assert await untold(event)
    growth.close()


async def test_a_file_that_is_cut_is_told_too(path: Path, descriptor: int) -> None:
    event = asyncio.Event()
    growth = Growth(event.set)
    write_elsewhere(path)
    growth.arm(descriptor)
    os.truncate(path, 0)
    await told(event)
    growth.close()


async def test_what_is_no_open_file_is_refused() -> None:
    growth = Growth(lambda: None)
    with pytest.raises(OSError, match="No such file"):
        growth.arm(1_000_000)
    growth.close()
