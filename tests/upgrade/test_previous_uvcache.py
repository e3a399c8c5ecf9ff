"""Today's agent takes up a uv cache whose index an agent of a previous version wrote.

The indexes are as those agents' own code wrote them: three generations, each made of a copy of the one before, which
hold the environments of alpha, of alpha and beta, and of both and a script that needs gamma.
"""

import os
import shutil
from pathlib import Path

import pytest
from fastflow_agent.uvcache import Generation

from tests.unit.uvcache.world import IMAGE, OTHER_SLOT, SLOT, World

INDEXES = Path(__file__).parent / "previous/uvcache"
WRITTEN = 1_700_000_000
"""When the files of packages were written, in seconds since 1970: it is part of a generation's seal."""


@pytest.fixture(params=[path.name for path in sorted(INDEXES.iterdir())])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """An agent that has just started over what a previous one left, with runs in flight on generations 1 and 3."""
    cache = tmp_path / "cache"
    for number, packages in enumerate((["alpha"], ["alpha", "beta"], ["alpha", "beta", "gamma"]), 1):
        for package in packages:
            module = cache / "generations" / str(number) / "archive-v0" / package / "module.py"
            module.parent.mkdir(parents=True)
            module.write_text(f"NAME = {package!r}")
            os.utime(module, (WRITTEN, WRITTEN))
            link = cache / "generations" / str(number) / "environments-v2" / package
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(f"../archive-v0/{package}")
    shutil.copy(INDEXES / request.param, cache / "index.json")
    (cache / "staging" / "half-done").mkdir(parents=True)
    world = World(tmp_path)
    await world.open()
    world.cache.pin("1", SLOT)
    world.cache.pin("3", OTHER_SLOT)
    await world.cache.clear_up()
    return world


async def everything(world: World) -> list[Generation]:
    return [await world.ensure("alpha"), await world.ensure("beta"), await world.ensure(header="gamma")]


async def test_runs_get_what_was_prepared_and_nothing_is_prepared_for_them(world: World) -> None:
    await world.cache.verify()
    found = await everything(world)
    assert [(each.id, each.packages, each.offline) for each in found] == [
        ("3", ("alpha==1.0",), True),
        ("3", ("beta==1.0",), True),
        ("3", ("gamma==1.0",), True),
    ]
    assert world.uv.runs == []


async def test_what_runs_in_flight_use_stays_until_they_end_and_the_rest_goes(world: World) -> None:
    await everything(world)
    await world.forget_leases()
    assert generations(world) == [1, 3]
    for ahead in (world.code("alpha"), world.code("beta"), world.code(header="gamma")):
        await world.cache.ensure_ahead(ahead, "", IMAGE, max_age=7 * 24 * 3600.0)
    found = await everything(world)
    # In one generation, code of one's packages had been able to change what another imports.
    assert len(world.uv.prepared) == 3
    assert len({each.id for each in found} | {"1", "2", "3"}) == 6
    await world.forget_leases()
    assert {1, 3} < set(generations(world))
    world.cache.unpin(SLOT)
    world.cache.unpin(OTHER_SLOT)
    await world.forget_leases()
    assert not {1, 2, 3} & set(generations(world))
    await world.open()
    assert await everything(world) == found


async def test_a_new_environment_takes_nothing_of_the_old(world: World) -> None:
    made = await world.ensure("alpha\nbeta")
    old = world.folder / "cache/generations/3/archive-v0/alpha/module.py"
    assert not (made.path / "archive-v0/alpha/module.py").samefile(old)
    assert not (made.path / "archive-v0/gamma").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"generations": 3}',
        b'{"generations": [{}]}',
        b'{"generations": [{"number": 1e999, "environments": {}}]}',
        b'{"generations": [{"number": 3, "environments": {"sha256:x": {"packages": 3, "offline": true}}}]}',
        b"[" * 100_000,
    ],
)
async def test_with_an_index_that_nobody_can_read_all_is_prepared_anew_and_runs_in_flight_keep_theirs(
    world: World, damaged: bytes
) -> None:
    (world.folder / "cache/index.json").write_bytes(damaged)
    await world.open()
    world.cache.pin("3", SLOT)
    await everything(world)
    await world.forget_leases()
    assert len(world.uv.prepared) == 3
    assert 3 in generations(world)
    assert not {1, 2} & set(generations(world))


def generations(world: World) -> list[int]:
    return sorted(int(path.name) for path in (world.folder / "cache/generations").iterdir())
