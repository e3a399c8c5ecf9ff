from pathlib import Path

import pytest

from tests.unit.uvcache.world import World


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.open()
    return world
