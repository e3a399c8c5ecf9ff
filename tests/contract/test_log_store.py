"""What every log store must do."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.store import (
    Gap,
    Log,
    LogIsSealed,
    LogKey,
    LogMismatch,
    LogOutOfOrder,
    LogStore,
)

KEY = LogKey("01939f3e-7c1a-7b5e-9d2f-0123456789ab", 1)
OTHER = LogKey(KEY.run_id, 2)
BINARY = bytes(range(256)) + b"\xff\xfe no newline at the end"

OpenStore = Callable[[], LogStore]


@pytest.fixture(params=["files"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens the same store again and again, as a restarted process does."""
    return {"files": lambda: FileLogStore(tmp_path / "logs")}[request.param]


async def stored(log: Log) -> bytes:
    """All stored bytes, gaps left out."""
    result, offset = b"", 0
    while True:
        start, stop = log.extent(offset)
        if start == stop:
            return result
        data = await log.read(start, stop - start)
        result, offset = result + data, start + len(data)


async def in_a_new_process(open_store: OpenStore, use: Callable[[Log], Awaitable[None]]) -> None:
    store = open_store()
    async with store.open(KEY) as log:
        await use(log)
    await store.aclose()


class TestLogStore:
    async def test_bytes_are_read_back_as_they_were_and_outlive_the_process(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.append(0, [BINARY, b"", b"second"])
            assert await stored(log) == BINARY + b"second"
            assert await log.sync() == log.end == len(BINARY) + 6

        async def read(log: Log) -> None:
            assert log.end == log.durable == len(BINARY) + 6
            assert await stored(log) == BINARY + b"second"
            assert await log.read(3, 4) == BINARY[3:7]

        await in_a_new_process(open_store, write)
        await in_a_new_process(open_store, read)

    async def test_a_log_nobody_wrote_is_empty_and_opening_it_stores_nothing(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        async def look(log: Log) -> None:
            assert (log.end, log.durable, log.sealed) == (0, 0, False)
            assert await log.read(0, 10) == b""

        await in_a_new_process(open_store, look)
        assert not list(tmp_path.rglob("*.log"))

    async def test_bytes_sent_again_are_taken_once(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.append(0, [b"abcdef"])
            await log.append(2, [b"cd"])
            await log.append(4, [b"e", b"fgh", b"ij"])
            assert await stored(log) == b"abcdefghij"

        await in_a_new_process(open_store, write)

    async def test_bytes_sent_again_that_differ_are_refused_and_change_nothing(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.append(0, [b"abcdef"])
            with pytest.raises(LogMismatch):
                await log.append(3, [b"dXfghi"])
            assert await stored(log) == b"abcdef"

        await in_a_new_process(open_store, write)

    async def test_bytes_beyond_the_end_are_refused(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.append(0, [b"abc"])
            with pytest.raises(LogOutOfOrder):
                await log.append(4, [b"e"])
            with pytest.raises(LogOutOfOrder):
                await log.skip(4, 10)
            assert log.end == 3

        await in_a_new_process(open_store, write)

    async def test_a_sealed_log_stays_sealed_and_takes_nothing_more(self, open_store: OpenStore) -> None:
        async def seal(log: Log) -> None:
            await log.append(0, [b"all"])
            await log.seal(3)
            await log.seal(3)

        async def offer_more(log: Log) -> None:
            assert log.sealed
            assert log.end == 3
            with pytest.raises(LogIsSealed):
                await log.append(3, [b"more"])
            with pytest.raises(LogIsSealed):
                await log.skip(3, 5)
            with pytest.raises(LogIsSealed):
                await log.seal(2)
            await log.seal(3)

        await in_a_new_process(open_store, seal)
        await in_a_new_process(open_store, offer_more)

    async def test_an_empty_log_can_be_sealed(self, open_store: OpenStore) -> None:
        await in_a_new_process(open_store, lambda log: log.seal(0))

        async def look(log: Log) -> None:
            assert log.sealed

        await in_a_new_process(open_store, look)

    async def test_a_log_is_sealed_only_where_it_ends(self, open_store: OpenStore) -> None:
        async def seal_elsewhere(log: Log) -> None:
            await log.append(0, [b"abc"])
            with pytest.raises(LogOutOfOrder):
                await log.seal(5)
            assert not log.sealed

        await in_a_new_process(open_store, seal_elsewhere)

    async def test_offsets_stay_true_over_a_gap_and_its_bytes_are_never_read(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.append(0, [b"head"])
            await log.skip(4, 1000)
            await log.append(1000, [b"tail"])
            await log.sync()

        async def read(log: Log) -> None:
            assert log.end == 1004
            assert list(log.gaps) == [Gap(4, 1000)]
            assert log.extent(0) == (0, 4)
            assert log.extent(4) == log.extent(500) == (1000, 1004)
            assert await log.read(0, 2000) == b"head"
            assert await log.read(500, 10) == b""
            assert await log.read(1000, 10) == b"tail"

        await in_a_new_process(open_store, write)
        await in_a_new_process(open_store, read)

    async def test_a_gap_named_again_or_over_stored_bytes_takes_none_away(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            await log.skip(0, 10)
            await log.append(10, [b"kept"])
            await log.skip(0, 10)
            await log.skip(8, 20)
            await log.skip(20, 25)

        async def read(log: Log) -> None:
            assert list(log.gaps) == [Gap(0, 10), Gap(14, 25)]
            assert await stored(log) == b"kept"
            assert log.end == 25

        await in_a_new_process(open_store, write)
        await in_a_new_process(open_store, read)

    async def test_who_listens_is_told_of_bytes_gaps_and_the_seal(self, open_store: OpenStore) -> None:
        async def write(log: Log) -> None:
            told: list[tuple[int, bool]] = []
            end = log.listen(lambda: told.append((log.end, log.sealed)))
            await log.append(0, [b"abc"])
            await log.skip(3, 5)
            await log.seal(5)
            assert told == [(3, False), (5, False), (5, True)]
            end()

        await in_a_new_process(open_store, write)

    async def test_readers_see_bytes_of_the_writer_before_they_are_durable(self, open_store: OpenStore) -> None:
        store = open_store()
        async with store.open(KEY) as writer, store.open(KEY) as reader, store.open(OTHER) as other:
            await writer.append(0, [b"abc"])
            assert await stored(reader) == b"abc"
            assert reader.durable == 0
            assert await stored(other) == b""
        await store.aclose()

    async def test_many_writers_of_many_logs_do_not_disturb_each_other(self, open_store: OpenStore) -> None:
        store = open_store()
        keys = [LogKey(KEY.run_id, number) for number in range(1, 21)]

        async def write(key: LogKey) -> None:
            async with store.open(key) as log:
                for index in range(20):
                    await log.append(index * 3, [b"%03d" % index])
                    assert await log.sync() == log.end

        await asyncio.gather(*map(write, keys))
        expected = b"".join(b"%03d" % index for index in range(20))
        for key in keys:
            async with store.open(key) as log:
                assert await stored(log) == expected
        await store.aclose()

    async def test_a_removed_log_is_read_to_its_end_by_who_has_it_open_and_is_gone_for_who_comes_later(
        self, open_store: OpenStore
    ) -> None:
        store = open_store()
        async with store.open(KEY) as log:
            await log.append(0, [BINARY])
            await log.seal(len(BINARY))
        async with store.open(KEY) as reader:
            await store.remove(KEY.run_id, KEY.attempt)
            async with store.open(KEY) as second:
                assert (second.end, second.sealed) == (len(BINARY), True)
            assert await stored(reader) == BINARY
            with pytest.raises(LogIsSealed):
                await reader.append(len(BINARY), [b"more"])
        async with store.open(KEY) as late:
            assert (late.end, late.sealed) == (0, False)
        await store.aclose()

    async def test_one_attempt_or_all_of_a_run_can_be_removed_and_again_without_harm(
        self, open_store: OpenStore
    ) -> None:
        store = open_store()
        for key in (KEY, OTHER):
            async with store.open(key) as log:
                await log.append(0, [b"abc"])
                await log.seal(3)
        await store.remove(KEY.run_id, KEY.attempt)
        async with store.open(OTHER) as kept:
            assert await stored(kept) == b"abc"
        for _ in range(2):
            await store.remove(KEY.run_id)
        async with store.open(OTHER) as late:
            assert late.end == 0
        await store.aclose()

    async def test_a_run_id_that_is_none_reaches_no_file(self, open_store: OpenStore) -> None:
        store = open_store()
        with pytest.raises(ValueError, match="not a run id"):
            async with store.open(LogKey("../../etc/passwd", 1)):
                pass
        await store.aclose()
