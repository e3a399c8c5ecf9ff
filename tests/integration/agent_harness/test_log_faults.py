"""One log whose file can not be freed or whose losses can not be written down keeps none of the others."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow.backoff import Backoff
from fastflow.client import open_channel
from fastflow.ids import new_id
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.lost import Lost
from fastflow_agent.logs.redact import Masks
from fastflow_agent.logs.shipper import Shipper, ShipSettings
from fastflow_agent.logs.spool import PUNCH_BYTES, Spool
from fastflow_agent.model import AttemptKey

from tests.integration.agent_harness.controlplane import ScriptedControlPlane

PATIENCE_SECONDS = 60


class Ship:
    """A shipper at work, and what it told."""

    def __init__(self, shipper: Shipper, folder: Path) -> None:
        self.shipper = shipper
        self.folder = folder
        self.losses: list[tuple[str, int]] = []

    def take(self, spool: Spool) -> AttemptKey:
        """Ship a spool as that of a new attempt."""
        key = AttemptKey(new_id(), 1, "token")
        self.shipper.add(key, spool, 0, self._lost)
        return key

    def path(self) -> Path:
        """A new log file."""
        path = self.folder / f"{new_id()}.log"
        path.touch()
        return path

    async def seal(self, key: AttemptKey) -> int:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.shipper.seal(key)

    async def until_durable(self, key: AttemptKey, offset: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.shipper.durable(key) < offset:  # noqa: ASYNC110 - offsets tell nobody that they changed
                await asyncio.sleep(0.01)

    def _lost(self, loss: LogLoss) -> None:
        self.losses.append((loss.kind, loss.offset))


@pytest.fixture
async def ship(controlplane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[Ship]:
    channel = open_channel(controlplane.address, own_connection=True)
    settings = ShipSettings(idle_after=0.05, round_interval=0.2)
    shipper = Shipper(channel, backoff=Backoff(0.02, 0.1), settings=settings)
    running = asyncio.create_task(shipper.run())
    yield Ship(shipper, tmp_path)
    assert not running.done(), running
    running.cancel()
    await asyncio.wait([running])
    await channel.close(None)


def _unfreeable(output: bytes, lost: Path, quota: int = 1 << 30) -> Spool:
    """A spool whose file the kernel punches no hole into: it is sealed against writing (EPERM, fcntl(2))."""
    descriptor = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, output)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return Spool(descriptor, Lost(lost), start_offset=0, masks=Masks(), log_limit=1 << 40, spool_quota=quota)


async def test_a_log_whose_blocks_can_not_be_freed_arrives_whole(
    controlplane: ScriptedControlPlane, ship: Ship, tmp_path: Path
) -> None:
    output = os.urandom(3 * PUNCH_BYTES)
    key = ship.take(_unfreeable(output, tmp_path / "log.lost"))
    await ship.until_durable(key, len(output))
    assert await ship.seal(key) == len(output)
    assert controlplane.logs[key.run_id] == output
    assert ship.losses == []


async def test_a_loss_is_told_though_what_found_it_then_fails(ship: Ship, tmp_path: Path) -> None:
    output = os.urandom(3 * PUNCH_BYTES)
    key = ship.take(_unfreeable(output, tmp_path / "log.lost", quota=PUNCH_BYTES))
    assert await ship.seal(key) == len(output)
    assert ship.losses == [("DROPPED", 0)]


async def test_a_log_that_was_cut_is_sealed_once_that_can_be_written_down(
    controlplane: ScriptedControlPlane, ship: Ship
) -> None:
    path = ship.path()
    path.write_bytes(b"x" * 1000)
    key = ship.take(Spool.open(path, spool_quota=1 << 30))
    await ship.until_durable(key, 1000)
    # No record of a loss can be written where a folder stands.
    obstacle = path.with_name(f"{path.name}.lost")
    obstacle.mkdir()
    os.truncate(path, 0)
    sealing = asyncio.create_task(ship.seal(key))
    other = ship.path()
    other.write_bytes(b"meanwhile")
    assert await ship.seal(ship.take(Spool.open(other, spool_quota=1 << 30))) == 9
    assert not sealing.done()
    obstacle.rmdir()
    assert await sealing == 1000
    assert controlplane.logs[key.run_id] == b"x" * 1000
    assert ship.losses == [("TAMPERED", 1000)]
