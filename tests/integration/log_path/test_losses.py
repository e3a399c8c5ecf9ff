"""Output that can not be in the log: where it is missing, and that this is recorded."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest
from fastflow.agent.v1 import gateway_pb2
from fastflow_controlplane.logs.store import LogKey

from tests.integration.log_path.world import MIB, World, lines, until, write, write_slowly


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
    assert world.agent.told == world.agent.losses


async def test_a_log_that_is_cut_by_its_program_ends_there_with_a_recorded_loss(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    path = world.agent.file(key)
    write(path, b"x" * 1000)
    await until(lambda: world.agent.shipper.durable(key) == 1000)
    os.truncate(path, 0)
    await until(lambda: len(world.agent.losses) == 1)
    write(path, b"y" * 3000)
    assert await world.agent.seal(key) == 1000
    assert await world.controlplane.log(key) == b"x" * 1000
    assert [(loss.kind, loss.offset, loss.bytes) for loss in world.agent.losses] == [("TAMPERED", 1000, None)]
    assert world.agent.told == world.agent.losses


async def test_a_log_that_is_emptied_while_its_arrival_is_not_heard_of_lost_nothing_that_arrived(world: World) -> None:
    world.controlplane.settings = replace(world.controlplane.settings, sync_interval=60.0)
    await world.controlplane.stop()
    await world.controlplane.start()
    key = world.key()
    world.agent.ship(key)
    path = world.agent.file(key)
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        write(path, b"x" * 1000)
        await until(lambda: log.end == 1000)
        os.truncate(path, 0)
        await until(lambda: len(world.agent.losses) == 1)
        # The connection breaks, and the new one asks where the log stands.
        world.agent.shipper.hold(cut=True)
        world.agent.shipper.go_on()
        assert await world.agent.seal(key) == 1000
    assert await world.controlplane.log(key) == b"x" * 1000
    assert log.gaps == []
    assert [(loss.kind, loss.offset, loss.bytes) for loss in world.agent.losses] == [("TAMPERED", 1000, None)]


@pytest.mark.parametrize("left", [0, 300], ids=["emptied", "cut"])
async def test_a_log_cut_while_no_agent_ran_ends_where_the_control_plane_has_it(world: World, left: int) -> None:
    key = world.key()
    world.agent.ship(key)
    path = world.agent.file(key)
    write(path, b"x" * 1000)
    await until(lambda: world.agent.shipper.durable(key) == 1000)
    await world.agent.kill()
    os.truncate(path, left)
    await world.agent.start()
    # What the control plane told some time ago: less than it has by now.
    world.agent.ship(key, 200)
    assert await world.agent.seal(key) == 1000
    assert await world.controlplane.log(key) == b"x" * 1000
    assert {loss.kind for loss in world.agent.losses} == {"TAMPERED"}
    assert world.agent.told == world.agent.losses


async def test_output_past_the_log_limit_is_not_kept_and_the_loss_recorded(world: World) -> None:
    world.agent.log_limit = 3 * MIB
    key, output = world.key(), lines(1000) * 200
    world.agent.ship(key)
    path = world.agent.file(key)
    await write_slowly(path, output, pieces=10)
    assert await world.agent.seal(key) == 3 * MIB
    assert await world.controlplane.log(key) == output[: 3 * MIB]
    assert [(loss.kind, loss.offset) for loss in world.agent.losses] == [("TRUNCATED", 3 * MIB)]
    assert world.agent.told == world.agent.losses
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
    await until(lambda: path.stat().st_blocks * 512 < 9 * MIB)
    write(path, b"last words\n")
    await world.controlplane.start()
    end = 12 + len(output) + 11
    world.agent.until_told.clear()
    sealing = asyncio.create_task(world.agent.seal(key))
    await until(lambda: bool(world.agent.losses))
    assert [(loss.kind, loss.offset) for loss in world.agent.losses] == [("DROPPED", 12)]
    await asyncio.sleep(0.3)
    assert not world.attempts.ends, "a log that lacks something is sealed once that is recorded"
    world.agent.until_told.set()
    assert await sealing == end
    assert world.agent.told == world.agent.losses
    lost = world.agent.losses[0].bytes
    assert lost is not None
    assert lost > len(output) - 8 * MIB
    async with world.controlplane.store.open(LogKey(key.run_id, 1)) as log:
        assert log.end == end
        assert [(gap.offset, gap.end) for gap in log.gaps] == [(12, 12 + lost)]
        assert await log.read(0, 100) == b"first words\n"
        assert await log.read(12 + lost, end) == (output + b"last words\n")[lost:]
