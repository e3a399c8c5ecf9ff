import asyncio
import errno
import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest
from fastflow_agent.clock import Clock
from fastflow_agent.facts import ContainerGone, Ended, LogLossFound, SoftLimitCrossed, StateChanged
from fastflow_agent.journal import Journal, JournalClosed, UnknownRecord
from fastflow_agent.model import Reason, State, StopCause
from fastflow_agent.records import (
    Created,
    Exited,
    OomSeen,
    Prepared,
    Released,
    Releasing,
    Sealed,
    Signalled,
    Started,
    Stopping,
)

from tests.unit.agent.world import INTENT, NOW

PREPARING = StateChanged(State.PREPARING, slot="00112233aabbccdd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slots" / INTENT.slot / "journal"


async def _whole_life(path: Path, disk: Executor) -> Journal:
    journal = await Journal.create(path, INTENT, disk, Clock(), facts=[PREPARING])
    await journal.append(Prepared("generation-1"))
    await journal.append(Created(9))
    await journal.append(Started(), Releasing(NOW, 7.5, "boot-1"))
    await journal.append(Released(), facts=[StateChanged(State.RUNNING)])
    await journal.append(facts=[SoftLimitCrossed(1, "MEMORY", 10, 12, NOW), LogLossFound("TRUNCATED", 5, NOW)])
    await journal.append(OomSeen(3), Stopping(StopCause.TIMEOUT, NOW, 10.0), facts=[StateChanged(State.STOPPING)])
    await journal.append(Signalled(8.5))
    await journal.append(
        Exited("exited", False, "", 143), facts=[Ended(State.TIMED_OUT, Reason.TIMEOUT, exit_code=143)]
    )
    await journal.append(facts=[ContainerGone()])
    await journal.append(Sealed(77))
    return journal


async def test_what_was_appended_is_there_after_a_restart(path: Path, disk: Executor) -> None:
    before = await _whole_life(path, disk)
    after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert after.history == before.history
    assert after.history.ended == Ended(State.TIMED_OUT, Reason.TIMEOUT, exit_code=143)
    assert after.history.intent == INTENT
    assert after.history.state is State.TIMED_OUT
    assert [event.sequence for event in after.history.unacked.values()] == list(range(1, 8))


async def test_a_journal_cut_anywhere_gives_the_records_before_the_cut_and_takes_new_ones(
    path: Path, disk: Executor
) -> None:
    journal = await _whole_life(path, disk)
    await journal.close()
    content = path.read_bytes().rstrip(b"\0")
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        cut = await Journal.open(path, disk, Clock())
        if whole == 0:
            assert cut is None
            continue
        assert cut is not None
        last = cut.history.last_event
        await cut.append(facts=[ContainerGone()])
        await cut.close()
        assert path.read_bytes().rstrip(b"\0").count(b"\n") == whole + 1
        again = await Journal.open(path, disk, Clock())
        assert again is not None
        assert again.history.last_event == last + 1
        await again.close()


async def test_a_whole_line_behind_a_torn_one_is_not_brought_back(path: Path, disk: Executor) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    await journal.append(Prepared("torn-away"), Created(9))
    await journal.close()
    content = bytearray(path.read_bytes())
    torn = content.index(b"torn-away")
    content[torn : torn + 4] = b"\0\0\0\0"
    path.write_bytes(bytes(content))

    cut = await Journal.open(path, disk, Clock())
    assert cut is not None
    await cut.append(Prepared("torn-away"))
    await cut.close()
    again = await Journal.open(path, disk, Clock())
    assert again is not None
    assert again.history.generation == "torn-away"
    assert not again.history.created


async def test_a_record_of_a_newer_version_is_an_error_and_nothing_is_cut(path: Path, disk: Executor) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    await journal.close()
    content = path.read_bytes().rstrip(b"\0")
    line = b'{"step":"FROZEN"}'
    path.write_bytes(content + b"%08x %b\n" % (google_crc32c.value(line), line))
    with pytest.raises(UnknownRecord, match="FROZEN"):
        await Journal.open(path, disk, Clock())
    assert path.read_bytes().endswith(line + b"\n")


async def test_a_full_disk_leaves_neither_half_a_line_nor_a_number_used(
    path: Path, disk: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        await journal.append(Created(9), facts=[PREPARING])
    monkeypatch.undo()
    assert journal.history.last_event == 0
    await journal.append(facts=[PREPARING])
    await journal.close()
    after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert not after.history.created
    assert list(after.history.unacked) == [1]


async def test_the_disk_space_for_an_end_is_reserved_from_the_beginning(path: Path, disk: Executor) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    assert path.stat().st_blocks * 512 >= 64 * 1024
    for _ in range(600):
        await journal.append(facts=[replace(PREPARING, message="x" * 200)])
    used = len(path.read_bytes().rstrip(b"\0"))
    assert used > 64 * 1024
    assert path.stat().st_blocks * 512 >= used + 32 * 1024


async def test_acknowledged_events_are_not_sent_again_after_the_next_append(path: Path, disk: Executor) -> None:
    journal = await _whole_life(path, disk)
    journal.acknowledge(5)
    assert list(journal.history.unacked) == [6, 7]
    await journal.append(Sealed(78))
    after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert list(after.history.unacked) == [6, 7]


async def test_numbers_go_on_above_what_the_control_plane_knows(path: Path, disk: Executor) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock(), facts=[PREPARING])
    journal.acknowledge(9)
    await journal.append(facts=[ContainerGone()])
    after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert list(after.history.unacked) == [10]


async def test_a_volatile_journal_keeps_events_without_a_file(path: Path, disk: Executor) -> None:
    journal = Journal.volatile(INTENT, disk, Clock())
    await journal.append(facts=[Ended(State.FAILED, Reason.STATE_LOST)])
    assert list(journal.history.unacked) == [1]
    assert not path.exists()


async def test_a_journal_is_readable_by_the_agent_alone(path: Path, disk: Executor) -> None:
    await Journal.create(path, INTENT, disk, Clock())
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_end_of_a_container_that_is_gone_is_read_back(path: Path, disk: Executor) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    await journal.append(Exited("absent", False, ""), facts=[Ended(State.FAILED, Reason.CONTAINER_VANISHED)])
    await journal.close()
    after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert after.history.ended == Ended(State.FAILED, Reason.CONTAINER_VANISHED)


async def test_a_journal_closed_twice_closes_no_file_of_others(path: Path, disk: Executor, tmp_path: Path) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    await journal.close()
    # It gets the number that the journal had, or a lower one.
    with (tmp_path / "others").open("wb", buffering=0) as others:
        await journal.close()
        others.write(b"still open")
    assert (tmp_path / "others").read_bytes() == b"still open"


async def test_a_closed_journal_takes_no_record_and_writes_into_no_file_of_others(
    path: Path, disk: Executor, tmp_path: Path
) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock())
    await journal.close()
    with (tmp_path / "others").open("wb"), pytest.raises(JournalClosed):
        await journal.append(Created(9))
    assert (tmp_path / "others").read_bytes() == b""
    assert not journal.history.created


async def test_a_journal_is_closed_only_once_what_is_being_written_is_there(path: Path) -> None:
    with ThreadPoolExecutor(1) as disk:
        journal = await Journal.create(path, INTENT, disk, Clock())
        busy = threading.Event()
        disk.submit(busy.wait)
        appending = asyncio.ensure_future(journal.append(Created(9)))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(journal.close())
        await asyncio.sleep(0)
        busy.set()
        await asyncio.gather(appending, closing)
        after = await Journal.open(path, disk, Clock())
    assert after is not None
    assert after.history.created


async def test_events_that_were_settled_come_again_for_a_control_plane_that_lost_them(
    path: Path, disk: Executor
) -> None:
    journal = await Journal.create(path, INTENT, disk, Clock(), facts=[PREPARING])
    await journal.append(facts=[StateChanged(State.RUNNING), Ended(State.SUCCEEDED)])
    journal.acknowledge(3)
    assert list(journal.history.unacked) == []
    journal.history.rewind(1)
    assert list(journal.history.unacked) == [2, 3]
    journal.acknowledge(3)
    assert list(journal.history.unacked) == []
