"""What of the uv cache goes by age and size, and what becomes of it when its files are damaged."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from fastflow_agent.uvcache import UvCache, tree

from tests.unit.uvcache.test_cache import SLOT, World

DAY = 24 * 3600.0


class Kept(World):
    """A cache with limits, and a wall clock that the test moves."""

    time = 1_000_000.0

    async def open(self, size_limit: int = 1 << 40, max_idle: float = 0.0) -> UvCache:
        self.cache = await UvCache.open(
            self.folder / "cache", self.uv, now=lambda: self.time, size_limit=size_limit, max_idle=max_idle
        )
        return self.cache

    async def use(self, requirements: str = "", header: str = "") -> str:
        generation = await self.ensure(requirements, header)
        await self.cache.settle()
        self.cache._leases.clear()
        self.time += DAY
        return generation.id

    async def tidy(self) -> list[int]:
        await self.cache.settle()
        await self.cache.tidy()
        return self.numbers()


@pytest.fixture
async def world(tmp_path: Path) -> Kept:
    world = Kept(tmp_path)
    await world.open()
    return world


async def test_an_environment_nobody_used_for_too_long_goes_and_one_in_use_stays(world: Kept) -> None:
    old = await world.use(header="old")
    await world.use("alpha")
    await world.open(max_idle=10 * DAY)
    world.time += 9 * DAY
    await world.use("alpha")
    world.cache.pin(old, SLOT)
    assert await world.tidy() == [1, 2]
    world.cache.unpin(SLOT)
    assert await world.tidy() == [2]


async def test_the_last_use_is_known_to_the_next_agent(world: Kept) -> None:
    await world.use(header="one")
    await world.use(header="two")
    world.time += 9 * DAY
    await world.use(header="one")
    await world.open(max_idle=9 * DAY)
    assert await world.tidy() == [1]


async def test_too_large_a_cache_loses_what_was_used_longest_ago_but_not_the_newest(world: Kept) -> None:
    for header in ("one", "two", "three"):
        await world.use(header=header)
    await world.use(header="one")
    await world.open(size_limit=1)
    world.cache.pin("1", SLOT)
    assert await world.tidy() == [1, 3]
    world.cache.unpin(SLOT)
    assert await world.tidy() == [3]


async def test_a_line_that_grew_too_large_is_copied_no_further_and_goes_after_its_successor_came(world: Kept) -> None:
    await world.use("alpha")
    await world.open(size_limit=1)
    assert await world.tidy() == [1]
    await world.use("beta")
    assert await world.tidy() == [2]
    assert not (world.folder / "cache/generations/2/archive-v0/alpha").exists()
    await world.use("alpha")
    assert len(world.uv.runs) == 3


async def test_files_that_generations_share_are_counted_once(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    (first / "large").write_bytes(b"x" * 1_000_000)
    os.link(first / "large", second / "large")
    (second / "own").write_bytes(b"x" * 100_000)
    newest, older = tree.sizes([second, first])
    assert 1_100_000 <= newest < 1_200_000
    assert older == 0


def removed(generation: Path) -> None:
    (generation / "archive-v0/alpha/module.py").unlink()


def cut(generation: Path) -> None:
    os.truncate(generation / "archive-v0/alpha/module.py", 3)


def vanished(generation: Path) -> None:
    shutil.rmtree(generation)


@pytest.mark.parametrize("damage", [removed, cut, vanished])
async def test_a_damaged_generation_is_noticed_at_the_start_and_prepared_anew(world: Kept, damage: object) -> None:
    first = await world.ensure("alpha")
    damage(first.path)
    await world.open()
    await world.cache.verify()
    again = await world.ensure("alpha")
    assert len(world.uv.runs) == 2
    assert (again.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"


async def test_a_whole_generation_is_not_taken_for_a_damaged_one(world: Kept) -> None:
    await world.ensure("alpha")
    await world.ensure("beta")
    await world.cache.verify()
    await world.open()
    await world.cache.verify()
    await world.ensure("alpha")
    assert len(world.uv.runs) == 2


async def test_a_damaged_generation_is_noticed_after_a_run_of_it_failed(world: Kept) -> None:
    first = await world.ensure("alpha")
    world.cache.pin(first, SLOT)
    removed(first.path)
    world.cache.suspect(SLOT)
    await world.cache.settle()
    assert (await world.ensure("alpha")).id != first.id
    # The slot keeps what it has, damaged as it is.
    await world.forget_leases()
    assert first.path.is_dir()


async def test_a_generation_that_vanished_under_a_living_agent_is_prepared_anew(world: Kept) -> None:
    first = await world.ensure("alpha")
    vanished(first.path)
    again = await world.ensure("alpha")
    assert len(world.uv.runs) == 2
    assert again.path.is_dir()


async def test_an_environment_counts_as_prepared_though_what_was_staged_can_not_be_removed(
    world: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        if any(path.exists() for path in paths):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fastflow_agent.uvcache.generations.delete_trees", refuse)
    await world.ensure("alpha")
    monkeypatch.undo()
    assert list((world.folder / "cache" / "staging").iterdir())
    await world.open()
    await world.cache.clear_up()
    assert not (world.folder / "cache" / "staging").exists()
    await world.ensure("alpha")
    assert len(world.uv.runs) == 1
