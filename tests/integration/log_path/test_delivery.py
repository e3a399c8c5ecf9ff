"""Output that a program wrote is all in its log, soon, whatever restarts and breaks on the way."""

from __future__ import annotations

import asyncio

import pytest
from fastflow.agent.v1 import gateway_pb2
from fastflow_agent.logs.shipper import ShipSettings
from fastflow_controlplane.logs.store import LogKey

from tests.integration.log_path.world import MIB, World, lines, open_files, until, write, write_slowly


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
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        grown = asyncio.Event()
        log.listen(grown.set)
        # The best of some rounds, since this is about the log's path and not about what else the machine does.
        for _ in range(10):
            delays = []
            for _ in range(10):
                await asyncio.sleep(0.1)
                grown.clear()
                start = clock()
                write(world.agent.file(key), b"a line\n")
                await grown.wait()
                delays.append(clock() - start)
            if (median := sorted(delays)[len(delays) // 2]) < 0.2:
                break
    assert median < 0.2


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
