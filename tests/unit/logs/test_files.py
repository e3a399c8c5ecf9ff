"""Logs as files: what a crash or a failing disk may leave behind."""

import errno
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.logs.files import QUIET_CHECKS, FileLogStore
from fastflow_controlplane.logs.store import Gap, LogKey, LogMismatch, LogOutOfOrder, StoreUnavailable

KEY = LogKey("01939f3e-7c1a-7b5e-9d2f-0123456789ab", 3)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileLogStore]:
    store = FileLogStore(tmp_path)
    yield store
    await store.aclose()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the log of KEY is kept, its folder made."""
    file = tmp_path / "ab" / KEY.run_id / "3.log"
    file.parent.mkdir(parents=True)
    return file


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Makes the kernel refuse to let files grow: writes come to an end in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_log_is_one_plain_file_of_its_bytes(store: FileLogStore, file: Path) -> None:
    async with store.open(KEY) as log:
        await log.append(0, [b"plain\xff", b" bytes"])
        await log.seal(12)
    assert file.read_bytes() == b"plain\xff bytes"
    assert sorted(path.name for path in file.parent.iterdir()) == ["3.log", "3.marks"]


async def test_bytes_written_but_not_acknowledged_before_a_crash_count(store: FileLogStore, file: Path) -> None:
    file.write_bytes(b"left by a process that died")
    async with store.open(KEY) as log:
        assert log.end == log.durable == 27


async def test_a_mark_that_a_crash_cut_off_counts_as_not_made(store: FileLogStore, file: Path) -> None:
    file.write_bytes(b"x" * 20)
    file.with_suffix(".marks").write_bytes(b"gap 5 10\nsealed 2")
    async with store.open(KEY) as log:
        assert not log.sealed
        assert list(log.gaps) == [Gap(5, 10)]
        await log.seal(20)
    assert file.with_suffix(".marks").read_bytes() == b"gap 5 10\nsealed 20\n"


async def test_a_gap_that_was_noted_before_the_crash_is_made_whole(store: FileLogStore, file: Path) -> None:
    file.write_bytes(b"x" * 5)
    file.with_suffix(".marks").write_bytes(b"gap 5 1000\n")
    async with store.open(KEY) as log:
        assert log.end == 1000
        await log.append(1000, [b"on"])
        assert log.extent(0) == (0, 5)
        assert log.extent(5) == (1000, 1002)


async def test_a_gap_behind_bytes_that_a_power_failure_took_waits_for_them(store: FileLogStore, file: Path) -> None:
    file.write_bytes(b"x" * 3)
    file.with_suffix(".marks").write_bytes(b"gap 5 1000\n")
    async with store.open(KEY) as log:
        assert log.end == 3
        await log.append(3, [b"xx"])
        await log.skip(5, 1000)
        assert list(log.gaps) == [Gap(5, 1000)]


async def test_a_disk_that_refuses_loses_nothing_and_the_same_bytes_are_taken_later(
    store: FileLogStore, file: Path
) -> None:
    pieces = [b"a" * 3000, b"b" * 3000]
    async with store.open(KEY) as log:
        await log.append(0, [b"before"])
        await log.sync()
        with files_no_larger_than(4096):
            with pytest.raises(StoreUnavailable) as refusal:
                await log.append(6, pieces)
            await store.recheck()
            assert store.problem == Problem("LOG_STORE_UNAVAILABLE", str(refusal.value))
            assert str(file) in store.problem.message
        assert log.durable == 6
        await log.append(6, pieces)
        for _ in range(1, QUIET_CHECKS):
            assert store.problem is not None
            await store.recheck()
        assert store.problem is None
        assert await log.sync() == 6006
        with pytest.raises(LogMismatch):
            await log.append(6, [b"b"])
    assert file.read_bytes() == b"before" + b"".join(pieces)


@pytest.mark.parametrize("failing", [1, 2])
async def test_bytes_that_a_failed_sync_may_have_lost_come_again_before_a_gap(
    store: FileLogStore, file: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls = 0

    def fdatasync(descriptor: int) -> None:
        # The kernel tells of a failed write-back once: the next sync succeeds, though the bytes are gone.
        nonlocal calls
        calls += 1
        if calls == failing:
            os.pwrite(descriptor, bytes(3), 3)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with store.open(KEY) as log:
        await log.append(0, [b"abc"])
        await log.sync()
        await log.append(3, [b"def"])
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        with pytest.raises(StoreUnavailable):
            await log.skip(6, 10)
        if failing == 1:
            with pytest.raises(LogOutOfOrder):
                await log.skip(6, 10)
            assert log.end == log.durable == 3
            await log.append(3, [b"def"])
            await log.skip(6, 10)
            assert await log.read(0, 10) == b"abcdef"
        else:
            await log.skip(6, 10)
        assert (list(log.gaps), log.end, log.durable) == ([Gap(6, 10)], 10, 10)


async def test_a_link_in_a_logs_place_is_not_followed(store: FileLogStore, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    file.symlink_to(target)
    with pytest.raises(StoreUnavailable):
        async with store.open(KEY):
            pass
    assert target.read_bytes() == b"precious"


async def test_closed_logs_hold_no_descriptor(store: FileLogStore) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with store.open(KEY) as log:
        await log.append(0, [b"x"])
    before = descriptors()
    for number in range(10, 30):
        async with store.open(LogKey(KEY.run_id, number)) as log:
            await log.append(0, [b"x"])
            await log.seal(1)
    assert descriptors() <= before
