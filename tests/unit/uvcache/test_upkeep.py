"""What of the uv cache goes by age and size, and what becomes of it when its files are damaged."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastflow_agent.runtime.base import PreparerSpec, PreparerStep
from fastflow_agent.uvcache import EnvironmentFault, UvCache, tree
from fastflow_agent.uvcache.generations import Generations, Held

from tests.unit.uvcache.world import SLOT, World

DAY = 24 * 3600.0


class Kept(World):
    """A cache with limits, and a wall clock that the test moves."""

    time = 1_000_000.0

    async def open(self, size_limit: int = 1 << 40, max_idle: float = 0.0) -> UvCache:
        self.cache = await UvCache.open(
            self.folder / "cache", self.uv, now=lambda: self.time, size_limit=size_limit, max_idle=max_idle
        )
        return self.cache

    async def use(self, requirements: str = "", header: str = "") -> int:
        generation = await self.ensure(requirements, header)
        await self.cache.settle()
        self.cache._claims._leases.clear()
        self.time += DAY
        return int(generation.id)

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
    new = await world.use("alpha")
    await world.open(max_idle=10 * DAY)
    world.time += 9 * DAY
    await world.use("alpha")
    world.cache.pin(str(old), SLOT)
    assert await world.tidy() == [old, new]
    world.cache.unpin(SLOT)
    assert await world.tidy() == [new]


async def test_the_last_use_is_known_to_the_next_agent_and_forgotten_with_the_environment(world: Kept) -> None:
    one = await world.use(header="one")
    await world.use(header="two")
    world.time += 9 * DAY
    await world.use(header="one")
    await world.open(max_idle=9 * DAY)
    markers = world.folder / "cache" / "used"
    assert len(list(markers.iterdir())) == 2
    assert await world.tidy() == [one]
    assert len(list(markers.iterdir())) == 1


async def test_a_cache_at_rest_has_noted_the_last_use(world: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = Generations.touch

    def slow_touch(*arguments: Any) -> None:
        # The disk is slow: longer than it takes to ask for the cache to be at rest.
        time.sleep(0.2)
        touch(*arguments)

    monkeypatch.setattr(Generations, "touch", slow_touch)
    await world.use("alpha")
    assert len(list((world.folder / "cache" / "used").iterdir())) == 1


async def test_uses_of_what_is_not_held_are_forgotten_at_the_start(world: Kept) -> None:
    await world.use("alpha")
    markers = world.folder / "cache" / "used"
    (markers / "of an environment that is gone").touch()
    await world.open()
    assert len(list(markers.iterdir())) == 1


async def test_too_large_a_cache_loses_what_was_used_longest_ago_but_not_what_was_used_last(world: Kept) -> None:
    one, _, three = [await world.use(header=header) for header in ("one", "two", "three")]
    await world.use(header="one")
    await world.open(size_limit=1)
    world.cache.pin(str(three), SLOT)
    assert await world.tidy() == [one, three]
    world.cache.unpin(SLOT)
    assert await world.tidy() == [one]


async def test_what_was_fetched_goes_where_there_is_too_much_and_is_fetched_again(world: Kept) -> None:
    await world.use("alpha")
    await world.open(size_limit=1)
    kept = await world.tidy()
    assert [path.name for path in (world.folder / "cache/generations").iterdir()] == [str(number) for number in kept]
    assert (await world.ensure("alpha")).id == str(kept[0])
    await world.use("beta")
    assert not (world.stock() / "archive-v0/alpha").exists()


async def test_what_was_fetched_goes_once_no_environment_has_it(world: Kept) -> None:
    await world.use("large")
    await world.open(max_idle=10 * DAY)
    world.time += 9 * DAY
    used = await world.use("alpha")
    assert (world.stock() / "archive-v0/large").exists()
    world.time += 9 * DAY
    await world.use("alpha")
    (world.stock() / "archive-v0/large/filling").write_bytes(b"x" * 1_000_000)
    await world.tidy()
    assert await world.tidy() == [used]
    assert [path.name for path in (world.folder / "cache/generations").iterdir()] == [str(used)]


async def test_what_is_removed_was_handed_out_to_nobody_meanwhile(world: Kept) -> None:
    """A run that asks while files are being removed gets another generation than the one that goes."""
    first = await world.use("alpha")
    await world.open(max_idle=5 * DAY)
    world.time += 9 * DAY
    removing, go_on = threading.Event(), threading.Event()
    remove = world.cache._generations.remove

    def slowly(out: Sequence[Held], remains: Iterable[int]) -> None:
        removing.set()
        go_on.wait(60)
        remove(out, remains)

    world.cache._generations.remove = slowly  # type: ignore[method-assign]
    tidying = asyncio.create_task(world.cache.tidy())
    await asyncio.to_thread(removing.wait, 60)
    asked = asyncio.create_task(world.ensure("alpha"))
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()
    generation = await asked
    world.cache.pin(generation, SLOT)
    await tidying
    assert int(generation.id) != first
    assert (generation.path / "archive-v0/alpha/module.py").exists()


async def test_too_large_a_cache_is_tidied_though_something_is_pruned_while_it_is_measured(
    world: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await world.use("alpha")
    world.cache.pin(str(old), SLOT)
    await world.again("alpha")
    await world.use(header="one")
    last = await world.use(header="two")
    await world.open(size_limit=1)
    world.cache.pin(str(old), SLOT)
    measuring, go_on = threading.Event(), threading.Event()
    sizes = tree.sizes

    def measure_slowly(roots: Iterable[Path]) -> list[int]:
        measuring.set()
        go_on.wait(60)
        return sizes(roots)

    monkeypatch.setattr(tree, "sizes", measure_slowly)
    tidying = asyncio.create_task(world.cache.tidy())
    await asyncio.to_thread(measuring.wait, 60)
    world.cache.unpin(SLOT)
    while (world.folder / f"cache/generations/{old}").exists():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    go_on.set()
    await tidying
    assert world.numbers() == [last]


async def test_what_is_looked_at_to_prepare_with_stays_though_something_newer_is_published_meanwhile(
    world: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.use("alpha")
    old = world.stock()
    looked, go_on = threading.Event(), threading.Event()
    damage = Generations.damage

    def look_slowly(generations: Generations, held: Held) -> str:
        found = damage(generations, held)
        if generations.path(held.number) == old and not looked.is_set():
            looked.set()
            go_on.wait(60)
        return found

    monkeypatch.setattr(Generations, "damage", look_slowly)
    slow = asyncio.create_task(world.ensure("alpha\nbeta"))
    await asyncio.to_thread(looked.wait, 60)
    await world.ensure("gamma")
    world.cache._claims._leases.clear()
    await world.cache.tidy()
    assert world.stock() != old
    go_on.set()
    assert (await slow).path.is_dir()


async def test_environments_prepared_at_the_same_time_are_there_for_who_waited_however_little_room(
    world: Kept,
) -> None:
    await world.open(size_limit=1)
    for round_ in range(3):
        names = [f"script{round_}-{index}" for index in range(4)]
        found = await asyncio.gather(*(world.ensure(header=name) for name in names))
        assert all(generation.path.is_dir() for generation in found)


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


Damage = Callable[[Path], None]


def removed(generation: Path) -> None:
    (generation / "archive-v0/alpha/module.py").unlink()


def cut(generation: Path) -> None:
    os.truncate(generation / "archive-v0/alpha/module.py", 3)


def vanished(generation: Path) -> None:
    shutil.rmtree(generation)


@pytest.mark.parametrize("damage", [removed, cut, vanished])
async def test_a_damaged_generation_is_noticed_at_the_start_and_prepared_anew(world: Kept, damage: Damage) -> None:
    first = await world.ensure("alpha")
    damage(first.path)
    await world.open()
    await world.cache.verify()
    again = await world.ensure("alpha")
    assert len(world.uv.prepared) == 2
    assert (again.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"


async def test_a_whole_generation_is_not_taken_for_a_damaged_one(world: Kept) -> None:
    await world.ensure("alpha")
    await world.ensure("beta")
    await world.cache.verify()
    await world.open()
    await world.cache.verify()
    await world.ensure("alpha")
    assert len(world.uv.prepared) == 2


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


async def test_damage_of_a_file_that_others_share_is_noticed_in_all_of_them(world: Kept) -> None:
    first = await world.ensure("alpha")
    second = await world.ensure("alpha\nbeta")
    world.cache.pin(first, SLOT)
    cut(first.path)
    world.cache.suspect(SLOT)
    await world.cache.settle()
    again = await world.ensure("alpha\nbeta")
    assert again.id != second.id
    assert (again.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"


@pytest.mark.parametrize("damage", [removed, cut, vanished])
async def test_nothing_new_is_made_of_what_is_damaged(world: Kept, damage: Damage) -> None:
    await world.ensure("alpha")
    damage(world.stock())
    generation = await world.ensure("alpha\nbeta")
    assert (generation.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"
    assert (world.stock() / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"


async def test_what_can_not_be_prepared_of_what_was_fetched_before_is_prepared_from_nothing(world: Kept) -> None:
    """Damage of content that no look from outside shows."""
    await world.ensure("alpha")
    bad = world.stock()

    async def refuse(spec: PreparerSpec) -> None:
        here = (spec.cache / "archive-v0/alpha/module.py").exists()
        world.uv.fail_with = b"error: archive is corrupt" if here and spec.step is PreparerStep.FETCH else b""

    world.uv.during = refuse
    generation = await world.ensure("alpha\nbeta")
    assert (generation.path / "archive-v0/beta/module.py").exists()
    world.uv.during = None
    world.uv.fail_with = b""
    await world.ensure("beta")
    assert world.stock() != bad
    assert not (world.stock() / "archive-v0/alpha").exists()


async def test_needs_that_people_know_what_to_do_about_are_tried_once(world: Kept) -> None:
    await world.ensure("alpha")
    world.uv.fail_with = b"error: No solution found when resolving dependencies"
    before = len(world.uv.runs)
    with pytest.raises(EnvironmentFault):
        await world.ensure("beta")
    assert len(world.uv.runs) == before + 1


async def test_a_generation_that_vanished_under_a_living_agent_is_prepared_anew(world: Kept) -> None:
    first = await world.ensure("alpha")
    vanished(first.path)
    again = await world.ensure("alpha")
    assert len(world.uv.prepared) == 2
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
    assert len(world.uv.prepared) == 1
