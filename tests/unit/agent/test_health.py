import errno
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.health import Health, is_disk_full
from fastflow_agent.runtime.base import RuntimeFault

from tests.unit.agent.doubles import FACTS, FakeClock, FakeRuntime


class Sick:
    """A host whose health is looked at."""

    def __init__(self, folder: Path, disk: Executor, reserve: int = 0) -> None:
        self.clock = FakeClock(disk)
        self.changes = 0
        self.conditions = Conditions(self.clock, self._changed)
        self.runtime = FakeRuntime()
        self.folder_stands = True
        self.health = Health(
            self.runtime,
            self.conditions,
            self.clock,
            disk,
            data_dir=folder,
            disk_reserve=reserve,
            interval=3.0,
            runtime_name="docker",
            folder_stands=lambda: self.folder_stands,
        )

    def _changed(self) -> None:
        self.changes += 1


async def test_an_engine_that_is_away_blocks_placement_and_recovers_by_itself(tmp_path: Path, disk: Executor) -> None:
    host = Sick(tmp_path, disk)
    host.runtime.unavailable = True
    await host.health.look()
    (held,) = host.conditions.all()
    assert held.type is ConditionType.DOCKER_UNAVAILABLE
    assert held.blocks_placement
    await host.clock.advance(5.0)
    await host.health.look()
    assert host.conditions.all() == [held], "since stays that of the first time"
    host.runtime.unavailable = False
    await host.health.look()
    assert host.conditions.all() == []
    assert host.changes == 2


async def test_a_missing_image_is_said_and_blocks_nothing(tmp_path: Path, disk: Executor) -> None:
    host = Sick(tmp_path, disk)
    host.runtime.facts = replace(FACTS, image_digest="", problem="build it with make image")
    await host.health.look()
    (held,) = host.conditions.all()
    assert held.type is ConditionType.IMAGE_MISSING
    assert held.message == "build it with make image"
    assert not held.blocks_placement
    host.runtime.facts = FACTS
    await host.health.look()
    assert host.conditions.all() == []


async def test_a_disk_without_its_reserve_is_full(tmp_path: Path, disk: Executor) -> None:
    host = Sick(tmp_path, disk, reserve=1 << 60)
    await host.health.look()
    (held,) = host.conditions.all()
    assert held.type is ConditionType.DISK_FULL
    assert held.blocks_placement
    assert str(tmp_path) in held.message


async def test_a_refused_write_is_said_until_there_is_room_again(tmp_path: Path, disk: Executor) -> None:
    host = Sick(tmp_path, disk)
    host.health.disk_refused(OSError(errno.ENOSPC, "No space left on device"))
    assert host.conditions.holds(ConditionType.DISK_FULL)
    await host.health.look()
    assert not host.conditions.holds(ConditionType.DISK_FULL)


async def test_a_data_folder_that_is_lost_blocks_placement_and_says_what_to_do(tmp_path: Path, disk: Executor) -> None:
    host = Sick(tmp_path, disk)
    host.folder_stands = False
    await host.health.look()
    (held,) = host.conditions.all()
    assert held.type is ConditionType.DATA_FOLDER_LOST
    assert held.blocks_placement
    assert str(tmp_path) in held.message
    assert "start the agent anew" in held.message
    host.folder_stands = True
    await host.health.look()
    assert host.conditions.all() == []


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (RuntimeFault("write /var/lib/docker/x: no space left on device"), True),
        (RuntimeFault("no such image"), False),
    ],
)
def test_a_full_disk_is_recognized(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full
    wrapped = RuntimeFault("could not be made")
    wrapped.__cause__ = error
    assert is_disk_full(wrapped) is full
