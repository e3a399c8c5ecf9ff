"""What is prepared ahead of runs, in the cache itself: again when it is old, and never before what runs need."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PreparerSpec
from fastflow_agent.uvcache import EnvironmentFault, Generation, UvCache

from tests.unit.uvcache.world import IMAGE, World

DAY = 24 * 3600.0
PATIENCE_SECONDS = 60.0


class AgingWorld(World):
    """A cache whose wall clock stands where a test puts it."""

    now = 1_700_000_000.0

    async def open(self) -> UvCache:
        self.cache = await UvCache.open(self.folder / "cache", self.uv, now=lambda: self.now)
        return self.cache

    async def ahead(self, requirements: str, max_age: float = 7 * DAY) -> Generation:
        return await self.cache.ensure_ahead(self.code(requirements), "", IMAGE, max_age)


@pytest.fixture
async def world(tmp_path: Path) -> AgingWorld:
    world = AgingWorld(tmp_path)
    await world.open()
    return world


async def test_a_run_finds_what_was_prepared_ahead(world: AgingWorld) -> None:
    ahead = await world.ahead("alpha")
    assert (ahead.packages, ahead.prepared) == (("alpha==1.0",), world.now)
    assert await world.ensure("alpha") == ahead
    assert len(world.uv.prepared) == 1


async def test_an_old_environment_is_prepared_again_in_a_new_generation_and_pinned_runs_keep_theirs(
    world: AgingWorld,
) -> None:
    first = await world.ahead("alpha")
    slot = SlotId("0" * 16)
    world.cache.pin(first, slot)
    world.now += 6 * DAY
    assert await world.ahead("alpha") == first
    world.now += 2 * DAY
    await world.open()
    world.cache.pin(first, slot)
    second = await world.ahead("alpha")
    assert second.id != first.id
    assert second.prepared == world.now
    assert await world.ensure("alpha") == second
    await world.forget_leases()
    assert (first.path / "archive-v0/alpha/module.py").exists()
    world.cache.unpin(slot)
    await world.forget_leases()
    assert world.numbers() == [int(second.id)]


async def test_an_environment_never_becomes_too_old_where_no_age_is_set(world: AgingWorld) -> None:
    first = await world.ahead("alpha")
    world.now += 1000 * DAY
    assert await world.ahead("alpha", max_age=0) == first


async def test_what_can_not_be_prepared_again_stays_in_use(world: AgingWorld) -> None:
    first = await world.ahead("alpha")
    world.now += 8 * DAY
    world.uv.fail_with = b"error: the index is away\n"
    with pytest.raises(EnvironmentFault):
        await world.ahead("alpha")
    assert await world.ensure("alpha") == first


async def test_runs_get_the_old_environment_while_it_is_prepared_again(world: AgingWorld) -> None:
    first = await world.ahead("alpha")
    world.now += 8 * DAY
    gate = world.uv.hold()
    refreshing = asyncio.create_task(world.ahead("alpha"))
    await world.uv.began.wait()
    assert await world.ensure("alpha") == first
    gate.set()
    assert (await refreshing).id != first.id


async def test_a_run_shares_the_preparation_that_was_begun_ahead(world: AgingWorld) -> None:
    gate = world.uv.hold()
    ahead = asyncio.create_task(world.ahead("alpha"))
    await world.uv.began.wait()
    run = asyncio.create_task(world.ensure("alpha"))
    gate.set()
    assert (await run).id == (await ahead).id
    assert len(world.uv.prepared) == 1


async def test_nothing_is_prepared_ahead_while_a_run_waits_for_its_own(world: AgingWorld) -> None:
    gate = world.uv.hold()
    run = asyncio.create_task(world.ensure("alpha"))
    await world.uv.began.wait()
    ahead = [asyncio.create_task(world.ahead(name)) for name in ("beta", "alpha")]
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(world.uv.runs) == 1
    gate.set()
    generation = await run
    assert [(await each).packages for each in ahead] == [("beta==1.0",), generation.packages]
    assert len(world.uv.prepared) == 2


async def test_what_is_prepared_ahead_tells_how_many_are_before_it_until_it_begins(world: AgingWorld) -> None:
    gate = world.uv.hold()
    heard: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    told: dict[str, int] = {}

    def ahead(name: str, asker: str) -> asyncio.Task[Generation]:
        waits = partial(lambda asker, ahead: heard.put_nowait((asker, ahead)), asker)
        return asyncio.create_task(world.cache.ensure_ahead(world.code(name), "", IMAGE, 0, waits))

    async def until(*expected: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sorted(told.values()) != [*expected]:
                told.update([await heard.get()])

    work = [ahead(name, name) for name in ("beta", "gamma", "delta")]
    await until(0, 0, 2)
    # The same for another bundle, which is under way already.
    begun = next(name for name, before in told.items() if not before)
    work.append(ahead(begun, "another"))
    await until(0, 0, 0, 2)
    gate.set()
    await until(0, 0, 0, 0)
    await asyncio.gather(*work)


async def test_two_that_runs_wait_for_are_prepared_at_once_whatever_is_prepared_ahead(world: AgingWorld) -> None:
    gates, working, order = defaultdict[str, asyncio.Event](asyncio.Event), set[str](), list[str]()
    most = 0

    async def work(spec: PreparerSpec) -> None:
        nonlocal most
        name = (spec.code / "requirements.txt").read_text().strip()
        if name not in order:
            order.append(name)
        working.add(spec.name)
        most = max(most, len(working))
        await gates[name].wait()
        working.remove(spec.name)

    world.uv.during = work
    ahead = [asyncio.create_task(world.ahead(name)) for name in ("one", "two")]
    await _until(lambda: len(order) == 2)
    ahead += [asyncio.create_task(world.ahead(name)) for name in ("three", "four")]
    await _until(lambda: len(world.cache._turns._waiting) == 2)
    # One shares what was begun ahead.
    runs = [asyncio.create_task(world.ensure(name)) for name in ("alpha", "four", "beta")]
    await _until(lambda: len(world.cache._awaited) == 3 and len(order) == 4)
    assert "three" not in order
    # All but one of those that runs wait for end: so the last of these has a turn, and there is none to give beside it.
    for name in order[:3]:
        gates[name].set()
    await _until(lambda: len(order) == 5)
    assert "three" not in order
    for name in (*order, "three"):
        gates[name].set()
    async with asyncio.timeout(60):
        await asyncio.gather(*ahead, *runs)
    assert order.index("three") == 5
    assert sorted(order[2:]) == ["alpha", "beta", "four", "three"]
    assert most == 4
    assert len(world.uv.prepared) == 6


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what works on the disk tells nobody
            await asyncio.sleep(0.01)
