"""A log whose file can not be used at the control plane waits alone, is spoken of once, and loses nothing."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.clock import SystemClock
from fastflow_controlplane.composition import compose
from fastflow_controlplane.logs.files import FileLogStore, log_file
from fastflow_controlplane.logs.ingest import IngestSettings, LogIngest
from fastflow_controlplane.logs.store import Log, LogKey, StoreUnavailable
from fastflow_controlplane.logs.uploads import Answer, Chunk, Seal, Upload
from fastflow_controlplane.runs.model import AttemptKey as StoredKey
from fastflow_controlplane.settings import ControlPlaneSettings
from google_crc32c import value as crc32c
from structlog.testing import capture_logs

from tests.integration.log_path.world import MIB, Attempts, World, lines, until, write

FILE_BYTES = MIB
"""No file of this process may grow beyond it, where a test says so."""


@contextmanager
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def deliver_another(world: World) -> None:
    key, output = world.key(), b"another run speaks\n" * 1000
    world.agent.ship(key)
    write(world.agent.file(key), output)
    assert await world.agent.seal(key) == len(output)
    assert await world.controlplane.log(key) == output


@pytest.mark.parametrize("content", [None, b"gap 0 \xff\n", b"sealed soon\n"], ids=["folder", "bytes", "words"])
async def test_a_log_with_something_else_in_its_place_waits_alone_and_arrives_whole_later(
    world: World, content: bytes | None
) -> None:
    hindered, output = world.key(), lines(20_000)
    obstacle = log_file(world.controlplane.folder, hindered.run_id, 1)
    obstacle.parent.mkdir(parents=True)
    if content is None:
        obstacle.mkdir()
    else:
        obstacle = obstacle.with_suffix(".marks")
        obstacle.write_bytes(content)
    world.agent.ship(hindered)
    write(world.agent.file(hindered), output)
    sealing = asyncio.create_task(world.agent.seal(hindered))
    await until(lambda: world.controlplane.store.problem is not None)

    await deliver_another(world)
    assert not sealing.done()
    assert world.agent.shipper.durable(hindered) == 0

    obstacle.rmdir() if content is None else obstacle.unlink()
    assert await sealing == len(output)
    assert await world.controlplane.log(hindered) == output
    assert world.agent.losses == []


@pytest.mark.parametrize("inbox_bytes", [64 * 1024, 4 * MIB], ids=["asked for again", "held meanwhile"])
async def test_a_log_that_can_not_grow_waits_alone_and_arrives_whole_later(world: World, inbox_bytes: int) -> None:
    await world.controlplane.stop()
    world.controlplane.settings = replace(world.controlplane.settings, inbox_bytes=inbox_bytes)
    await world.controlplane.start()
    hindered, output = world.key(), lines(30_000)
    write(world.agent.file(hindered), output)
    assert len(output) > 2 * FILE_BYTES
    with small_files():
        world.agent.ship(hindered)
        sealing = asyncio.create_task(world.agent.seal(hindered))
        await until(lambda: world.controlplane.store.problem is not None)
        await deliver_another(world)
        assert not sealing.done()
        assert world.agent.shipper.durable(hindered) <= FILE_BYTES
    assert await sealing == len(output)
    assert await world.controlplane.log(hindered) == output
    assert world.agent.losses == []


class CountingStore(FileLogStore):
    """Counts how often a log was opened, or could not be."""

    tries = 0

    def open(self, key: LogKey) -> AbstractAsyncContextManager[Log]:
        self.tries += 1
        return super().open(key)

    async def tried(self, times: int) -> None:
        """Returns once logs were opened so often."""
        await until(lambda: self.tries >= times)


class Stream:
    """An upload stream without gRPC: what is put into it arrives, what is answered is kept."""

    def __init__(self, ingest: LogIngest) -> None:
        self.answers: list[Answer] = []
        self._uploads: asyncio.Queue[Upload | None] = asyncio.Queue()
        self._serving = asyncio.create_task(ingest.serve(self._arriving(), self._send))

    def put(self, *uploads: Upload | None) -> None:
        for upload in uploads:
            self._uploads.put_nowait(upload)

    async def end(self) -> None:
        """Returns once all that came is stored and answered."""
        self.put(None)
        async with asyncio.timeout(60):
            await self._serving

    async def break_off(self) -> None:
        self._serving.cancel()
        await asyncio.wait([self._serving])

    @property
    def cancelled(self) -> bool:
        return self._serving.cancelled()

    async def _arriving(self) -> AsyncIterator[Upload]:
        while (upload := await self._uploads.get()) is not None:
            yield upload

    async def _send(self, answer: Answer) -> None:
        self.answers.append(answer)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountingStore]:
    store = CountingStore(tmp_path / "logs")
    yield store
    await store.aclose()


def new_key(attempts: Attempts) -> StoredKey:
    key = StoredKey(new_id(), 1, "token")
    attempts.tokens[key.run_id, 1] = "token"
    return key


def chunk(key: StoredKey, data: bytes) -> Chunk:
    return Chunk(key, 0, data, crc32c(data))


def said_of(key: StoredKey, entries: list[MutableMapping[str, Any]]) -> list[tuple[str, int]]:
    """Levels and attempts of what an operator reads of a run."""
    return [
        (entry["log_level"], entry["attempt"])
        for entry in entries
        if entry.get("run") == key.run_id and entry["log_level"] != "debug"
    ]


async def test_the_operator_is_told_once_that_a_log_waits_and_once_that_it_goes_on(
    store: CountingStore, tmp_path: Path
) -> None:
    attempts = Attempts()
    key = new_key(attempts)
    obstacle = log_file(tmp_path / "logs", key.run_id, 1)
    obstacle.mkdir(parents=True)
    ingest = LogIngest(store, attempts, IngestSettings(sync_interval=0.01, retry_interval=0.01))
    with capture_logs() as entries:
        # A stream that is broken and comes again is no news.
        for tries in (3, 6):
            stream = Stream(ingest)
            stream.put(chunk(key, b"all of it"))
            await store.tried(tries)
            await stream.break_off()
        assert said_of(key, entries) == [("warning", 1)]
        (warning,) = (entry for entry in entries if entry.get("run") == key.run_id and entry["log_level"] == "warning")
        assert str(obstacle) in warning["why"]
        assert "Is a directory" in warning["why"]
        assert "see that" in warning["why"]

        obstacle.rmdir()
        stream = Stream(ingest)
        stream.put(chunk(key, b"all of it"), Seal(key, len(b"all of it")))
        await stream.end()
        assert said_of(key, entries) == [("warning", 1), ("info", 1)]
    assert stream.answers[-1].sealed


@pytest.mark.parametrize("part", ["sync", "seal"])
async def test_a_log_that_can_not_be_made_durable_delays_no_other(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    attempts, tried = Attempts(), asyncio.Event()
    hindered, other = new_key(attempts), new_key(attempts)

    async def refuse(*_: object) -> int:
        tried.set()
        raise StoreUnavailable("the disk is broken")

    ingest = LogIngest(store, attempts, IngestSettings(sync_interval=0.01, retry_interval=3600.0))
    with capture_logs() as entries:
        stream = Stream(ingest)
        async with store.open(LogKey(hindered.run_id, 1)) as log:
            monkeypatch.setattr(log, part, refuse)
            stream.put(chunk(hindered, b"some output"), Seal(hindered, len(b"some output")))
            async with asyncio.timeout(60):
                await tried.wait()
            stream.put(chunk(other, b"all of it"), Seal(other, len(b"all of it")))
            await until(lambda: any(answer.run_id == other.run_id and answer.sealed for answer in stream.answers))
        await stream.break_off()
    assert not any(answer.run_id == hindered.run_id and answer.sealed for answer in stream.answers)
    assert said_of(hindered, entries) == [("warning", 1)]


async def test_an_agent_that_was_told_that_its_log_is_sealed_is_told_nothing_more_of_it(store: CountingStore) -> None:
    attempts = Attempts()
    key = new_key(attempts)
    stream = Stream(LogIngest(store, attempts, IngestSettings(sync_interval=0.2)))
    stream.put(chunk(key, b"all of it"), Seal(key, len(b"all of it")))
    await until(lambda: any(answer.sealed for answer in stream.answers))
    await stream.end()
    assert [answer.sealed for answer in stream.answers].count(True) == 1


async def test_a_stream_that_a_stopped_server_left_has_ended_before_the_store_closes(store: CountingStore) -> None:
    attempts = Attempts()
    key = new_key(attempts)
    ingest = LogIngest(store, attempts)
    stream = Stream(ingest)
    stream.put(chunk(key, b"some output"))
    await until(lambda: stream.answers)
    # It is to be written, and the stream has not come to that.
    stream.put(Chunk(key, len(b"some output"), b"more", crc32c(b"more")))
    await ingest.aclose()
    await store.aclose()
    assert stream.cancelled


async def test_a_control_plane_that_ends_leaves_no_stream_to_write_to_its_closed_store(tmp_path: Path) -> None:
    settings = ControlPlaneSettings(data_dir=tmp_path / "data", pipelines_dir=tmp_path)
    async with compose(settings, SystemClock()) as controlplane:
        stream = Stream(controlplane.services.ingest)
        await asyncio.sleep(0)
    assert stream.cancelled
