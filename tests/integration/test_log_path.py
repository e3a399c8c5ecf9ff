"""The log path as a whole: a spool on one side, files on the other, real gRPC between them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.client import channel_options, open_channel
from fastflow.ids import new_id
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.shipper import Shipper, ShipSettings
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.ingest import IngestSettings, LogIngest, Rejection
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.runs.model import AttemptKey as StoredKey

MIB = 1024 * 1024


@dataclass
class Attempts:
    """The attempts the control plane knows; those not in `tokens` it does not."""

    tokens: dict[tuple[str, int], str] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)

    async def admit(self, key: StoredKey) -> Rejection:
        token = self.tokens.get((key.run_id, key.attempt))
        if token is None:
            return Rejection.UNKNOWN_ATTEMPT
        return Rejection.NONE if token == key.claim_token else Rejection.BAD_TOKEN

    async def sealed(self, key: StoredKey, end: int) -> None:
        self.ends[key.run_id, key.attempt] = end


class Gateway(AgentGatewayServicer):
    """The control plane's end of the stream. `damage` may change what arrives."""

    def __init__(self, ingest: LogIngest) -> None:
        super().__init__(sessions=cast(Any, None), ingest=ingest, catalog=cast(Any, None))
        self.damage: Callable[[gateway_pb2.UploadLogsRequest], gateway_pb2.UploadLogsRequest] = lambda request: request

    async def UploadLogs(self, request_iterator: AsyncIterable[gateway_pb2.UploadLogsRequest], context: Any) -> None:
        async def arriving() -> AsyncIterator[gateway_pb2.UploadLogsRequest]:
            async for request in request_iterator:
                yield self.damage(request)

        await super().UploadLogs(arriving(), context)


class ControlPlane:
    """Starts and stops like the real one; its files stay."""

    def __init__(self, folder: Path, attempts: Attempts, settings: IngestSettings) -> None:
        self.folder = folder
        self.attempts = attempts
        self.settings = settings
        self._port = 0
        self._server: grpc.aio.Server
        self.store: FileLogStore
        self.gateway: Gateway

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self.store = FileLogStore(self.folder)
        self.gateway = Gateway(LogIngest(self.store, self.attempts, self.settings))
        self._server = grpc.aio.server(options=channel_options())
        gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(self.gateway, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)
        await self.store.aclose()

    async def log(self, key: AttemptKey) -> bytes:
        async with self.store.open(LogKey(key.run_id, key.attempt)) as log:
            return await log.read(0, max(log.end, 1))


class Agent:
    """Ships spools; may be killed and started again over the same files."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        self.losses: list[LogLoss] = []
        self.spool_quota = 1 << 30
        self.log_limit = 0
        self.masks: tuple[bytes, ...] = ()
        self.settings = ShipSettings(idle_after=0.1)

    async def start(self) -> None:
        self._channel = open_channel(self._address, own_connection=True)
        self.shipper = Shipper(self._channel, backoff=Backoff(0.02, 0.1), settings=self.settings)
        self._running = asyncio.create_task(self.shipper.run())

    async def kill(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._channel.close(None)

    def file(self, key: AttemptKey) -> Path:
        return self._folder / f"{key.run_id}.{key.attempt}.log"

    def ship(self, key: AttemptKey, durable_offset: int = 0) -> Spool:
        path = self.file(key)
        path.touch()
        spool = Spool.open(
            path,
            start_offset=durable_offset,
            masks=self.masks,
            log_limit=self.log_limit,
            spool_quota=self.spool_quota,
        )
        self.shipper.add(key, spool, durable_offset, self.losses.append)
        return spool

    async def seal(self, key: AttemptKey) -> int:
        async with asyncio.timeout(30):
            return await self.shipper.seal(key)


@dataclass
class World:
    """One agent and one control plane."""

    controlplane: ControlPlane
    agent: Agent
    attempts: Attempts

    def key(self) -> AttemptKey:
        """A new attempt that both sides know."""
        key = AttemptKey(new_id(), 1, "token")
        self.attempts.tokens[key.run_id, key.attempt] = "token"
        return key


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    attempts = Attempts()
    settings = IngestSettings(window=4 * MIB, sync_interval=0.02, retry_interval=0.05)
    controlplane = ControlPlane(tmp_path / "controlplane", attempts, settings)
    await controlplane.start()
    (tmp_path / "agent").mkdir()
    agent = Agent(tmp_path / "agent", controlplane.address)
    await agent.start()
    yield World(controlplane, agent, attempts)
    await agent.kill()
    await controlplane.stop()


def lines(count: int, seed: int = 1) -> bytes:
    """Output of a program: lines, a very long one, and bytes that are no text."""
    source = random.Random(seed)
    middle = source.randbytes(300_000).replace(b"\n", b"")
    text = [b"%06d %s\n" % (index, source.randbytes(30).hex().encode()) for index in range(count)]
    return b"".join([*text[: count // 2], middle, b"\xff\xfe\n", *text[count // 2 :], b"no newline at the end"])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # sizes of files and offsets tell nobody when they change
            await asyncio.sleep(0.01)


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def open_files(folder: Path) -> list[str]:
    """Files below `folder` that this process has open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return [target for each in descriptors if (target := _target(each)).startswith(str(folder))]


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


async def write_slowly(path: Path, data: bytes, pieces: int = 40) -> None:
    step = len(data) // pieces + 1
    for start in range(0, len(data), step):
        write(path, data[start : start + step])
        await asyncio.sleep(0.01)


async def test_output_arrives_byte_for_byte_and_the_log_is_sealed_at_its_end(world: World) -> None:
    key, output = world.key(), lines(20_000)
    world.agent.ship(key)
    await write_slowly(world.agent.file(key), output)
    assert await world.agent.seal(key) == len(output)
    assert await world.controlplane.log(key) == output
    assert world.attempts.ends == {(key.run_id, 1): len(output)}
    assert world.agent.losses == []


async def test_a_sealed_log_is_held_open_no_longer_though_its_stream_goes_on(world: World) -> None:
    for _ in range(3):
        key = world.key()
        world.agent.ship(key)
        write(world.agent.file(key), b"some output")
        await world.agent.seal(key)
    unsealed = world.key()
    world.agent.ship(unsealed)
    write(world.agent.file(unsealed), b"some output")
    await until(lambda: world.agent.shipper.durable(unsealed) > 0)
    await until(lambda: len(open_files(world.controlplane.folder)) == 1)
    assert unsealed.run_id in open_files(world.controlplane.folder)[0]


async def test_a_run_without_output_is_sealed_empty(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    assert await world.agent.seal(key) == 0
    assert world.attempts.ends == {(key.run_id, 1): 0}


@pytest.mark.parametrize("rests", [False, True])
async def test_a_line_is_readable_within_200_ms_of_being_written(world: World, rests: bool) -> None:
    world.agent.settings = ShipSettings(idle_after=0.01 if rests else 60.0)
    await world.agent.kill()
    await world.agent.start()
    key = world.key()
    world.agent.ship(key)
    clock = asyncio.get_running_loop().time
    delays = []
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        grown = asyncio.Event()
        log.listen(grown.set)
        for _ in range(10):
            await asyncio.sleep(0.1)
            grown.clear()
            start = clock()
            write(world.agent.file(key), b"a line\n")
            await grown.wait()
            delays.append(clock() - start)
    assert sorted(delays)[len(delays) // 2] < 0.2


async def test_acknowledged_output_leaves_the_workers_disk_and_keeps_its_offset(world: World) -> None:
    key, output = world.key(), lines(1000) * 200
    world.agent.ship(key)
    path = world.agent.file(key)
    write(path, output)
    await until(lambda: world.agent.shipper.durable(key) == len(output))
    await until(lambda: path.stat().st_blocks * 512 < 6 * MIB)
    write(path, b"the end")
    assert await world.agent.seal(key) == len(output) + 7 == path.stat().st_size
    assert await world.controlplane.log(key) == output + b"the end"


async def test_a_control_plane_that_is_restarted_again_and_again_has_the_whole_log(world: World) -> None:
    key, output = world.key(), lines(60_000)
    world.agent.ship(key)
    writing = asyncio.create_task(write_slowly(world.agent.file(key), output, pieces=60))
    for _ in range(4):
        await asyncio.sleep(0.15)
        await world.controlplane.stop()
        await asyncio.sleep(0.05)
        await world.controlplane.start()
    await writing
    assert await world.agent.seal(key) == len(output)
    assert await world.controlplane.log(key) == output
    assert world.agent.losses == []


async def test_an_agent_that_is_restarted_again_and_again_delivers_the_whole_log(world: World) -> None:
    world.agent.masks = (b"hunter2-hunter2",)
    key, output = world.key(), lines(60_000).replace(b"00", b"hunter2-hunter2")
    world.agent.ship(key)
    writing = asyncio.create_task(write_slowly(world.agent.file(key), output, pieces=60))
    durable = 0
    for _ in range(4):
        await asyncio.sleep(0.15)
        # What the control plane told some time ago: less than it has by now.
        known, durable = durable, world.agent.shipper.durable(key)
        await world.agent.kill()
        await asyncio.sleep(0.05)
        await world.agent.start()
        world.agent.ship(key, known)
    await writing
    assert await world.agent.seal(key) == len(output)
    assert await world.controlplane.log(key) == output.replace(b"hunter2-hunter2", b"*" * 15)


async def test_many_runs_share_the_stream_and_a_loud_one_does_not_silence_the_others(world: World) -> None:
    loud, quiet = world.key(), [world.key() for _ in range(20)]
    for key in (loud, *quiet):
        world.agent.ship(key)
    flood = lines(1000) * 600
    write(world.agent.file(loud), flood)
    for index, key in enumerate(quiet):
        write(world.agent.file(key), b"run %d speaks\n" % index)
    ends = await asyncio.gather(*map(world.agent.seal, quiet))
    assert world.agent.shipper.durable(loud) < len(flood)
    for index, (key, end) in enumerate(zip(quiet, ends, strict=True)):
        assert await world.controlplane.log(key) == b"run %d speaks\n" % index
        assert end == len(b"run %d speaks\n" % index)
    assert await world.agent.seal(loud) == len(flood)
    assert await world.controlplane.log(loud) == flood


async def test_a_damaged_chunk_is_sent_again(world: World) -> None:
    key, output = world.key(), lines(5000)
    damaged = 0

    def damage(request: gateway_pb2.UploadLogsRequest) -> gateway_pb2.UploadLogsRequest:
        nonlocal damaged
        if request.chunk.data and damaged < 3:
            damaged += 1
            request.chunk.data = b"\0" + request.chunk.data[1:]
        return request

    world.controlplane.gateway.damage = damage
    world.agent.ship(key)
    write(world.agent.file(key), output)
    assert await world.agent.seal(key) == len(output)
    assert await world.controlplane.log(key) == output
    assert damaged == 3


async def test_a_log_nobody_knows_is_refused_and_no_byte_of_it_stored(world: World, tmp_path: Path) -> None:
    known, stranger = world.key(), AttemptKey(new_id(), 1, "token")
    imposter = replace(known, claim_token="guessed")
    for key in (stranger, imposter):
        world.agent.ship(key)
        write(world.agent.file(key), b"let me in")
        assert await world.agent.seal(key) == 0
    assert not list((tmp_path / "controlplane").rglob("*.log"))


async def test_a_log_that_is_removed_while_its_stream_asks_for_it_does_not_begin_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.key()
    answers = [Rejection.NONE]

    async def admit(_: StoredKey) -> Rejection:
        return answers.pop() if answers else Rejection.UNKNOWN_ATTEMPT

    monkeypatch.setattr(world.attempts, "admit", admit)
    world.agent.ship(key)
    world.agent.file(key).write_bytes(b"once more")
    assert await world.agent.seal(key) == 0
    assert not list((tmp_path / "controlplane").rglob("*.log"))


@pytest.mark.parametrize("dies", [True, False], ids=["control plane killed", "connection lost"])
async def test_a_log_counts_as_sealed_only_once_that_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    key, recording = world.key(), asyncio.Event()
    record = world.attempts.sealed

    async def never(key: StoredKey, end: int) -> None:
        recording.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.attempts, "sealed", never)
    world.agent.ship(key)
    write(world.agent.file(key), b"all of it")
    sealing = asyncio.create_task(world.agent.seal(key))
    await recording.wait()
    # The file says that the log is sealed, the rows do not yet: nobody may be told what only the file says.
    if dies:
        await world.controlplane.stop()
        monkeypatch.setattr(world.attempts, "sealed", record)
        await world.controlplane.start()
    else:
        await world.agent.kill()
        monkeypatch.setattr(world.attempts, "sealed", record)
        await world.agent.start()
        world.agent.ship(key)
        sealing = asyncio.create_task(world.agent.seal(key))
    assert await sealing == len(b"all of it")
    assert world.attempts.ends == {(key.run_id, 1): len(b"all of it")}


async def test_output_after_the_seal_is_refused(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    assert await world.agent.seal(key) == 3
    await world.agent.shipper.remove(key)
    write(world.agent.file(key), b" and more")
    world.agent.ship(key, 3)
    assert await world.agent.seal(key) == 3
    assert await world.controlplane.log(key) == b"all"


async def test_while_the_database_is_away_no_log_is_told_sealed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key, taken = world.key(), world.attempts.sealed
    calls = 0

    async def sealed(key: StoredKey, end: int) -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise Unavailable("the database is away")
        await taken(key, end)

    monkeypatch.setattr(world.attempts, "sealed", sealed)
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    assert await world.agent.seal(key) == 3
    assert world.attempts.ends == {(key.run_id, 1): 3}


async def test_a_log_that_a_dead_control_plane_sealed_is_recorded_before_the_agent_is_told(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    await world.agent.seal(key)
    await world.agent.shipper.remove(key)
    world.attempts.ends.clear()  # as a kill between the two leaves it
    world.agent.ship(key)
    assert await world.agent.seal(key) == 3
    assert world.attempts.ends == {(key.run_id, 1): 3}


async def test_bytes_that_changed_on_the_worker_end_the_log_with_a_recorded_loss(world: World) -> None:
    world.controlplane.settings = replace(world.controlplane.settings, sync_interval=60.0)
    await world.controlplane.stop()
    await world.controlplane.start()
    key = world.key()

    def damage(request: gateway_pb2.UploadLogsRequest) -> gateway_pb2.UploadLogsRequest:
        if request.chunk.offset == 10 and request.chunk.data:
            request.chunk.crc32c ^= 1
        return request

    world.controlplane.gateway.damage = damage
    world.agent.ship(key)
    path = world.agent.file(key)
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        write(path, b"true words")
        await until(lambda: log.end == 10)
    with path.open("r+b") as file:
        file.write(b"fals")
    # Sent damaged, and so from the last durable offset again.
    write(path, b", and more")
    assert await world.agent.seal(key) == 10
    assert await world.controlplane.log(key) == b"true words"
    assert [(loss.kind, loss.offset) for loss in world.agent.losses] == [("TAMPERED", 10)]


async def test_a_log_that_is_cut_by_its_program_ends_there_with_a_recorded_loss(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    path = world.agent.file(key)
    write(path, b"x" * 1000)
    await until(lambda: world.agent.shipper.durable(key) == 1000)
    os.truncate(path, 0)
    await asyncio.sleep(0.2)
    write(path, b"y" * 3000)
    assert await world.agent.seal(key) == 1000
    assert await world.controlplane.log(key) == b"x" * 1000
    assert [(loss.kind, loss.offset, loss.bytes) for loss in world.agent.losses] == [("TAMPERED", 1000, None)]


async def test_output_past_the_log_limit_is_not_kept_and_the_loss_recorded(world: World) -> None:
    world.agent.log_limit = 3 * MIB
    key, output = world.key(), lines(1000) * 200
    world.agent.ship(key)
    path = world.agent.file(key)
    await write_slowly(path, output, pieces=10)
    assert await world.agent.seal(key) == 3 * MIB
    assert await world.controlplane.log(key) == output[: 3 * MIB]
    assert [(loss.kind, loss.offset) for loss in world.agent.losses] == [("TRUNCATED", 3 * MIB)]
    await until(lambda: path.stat().st_blocks * 512 < 9 * MIB)


async def test_past_the_spool_quota_the_oldest_unsent_output_is_dropped_and_offsets_stay_true(world: World) -> None:
    world.agent.spool_quota = 8 * MIB
    key, output = world.key(), lines(1000) * 100
    world.agent.ship(key)
    path = world.agent.file(key)
    write(path, b"first words\n")
    await until(lambda: world.agent.shipper.durable(key) == 12)
    await world.controlplane.stop()
    await write_slowly(path, output)
    assert path.stat().st_blocks * 512 < 9 * MIB
    write(path, b"last words\n")
    await world.controlplane.start()
    end = 12 + len(output) + 11
    assert await world.agent.seal(key) == end
    assert [(loss.kind, loss.offset) for loss in world.agent.losses] == [("DROPPED", 12)]
    lost = world.agent.losses[0].bytes
    assert lost is not None
    assert lost > len(output) - 8 * MIB
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        assert log.end == end
        assert [(gap.offset, gap.end) for gap in log.gaps] == [(12, 12 + lost)]
        assert await log.read(0, 100) == b"first words\n"
        assert await log.read(12 + lost, end) == (output + b"last words\n")[lost:]
