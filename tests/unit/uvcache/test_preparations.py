"""Preparations of environments: who shares one, who stops one, and what is told of one that fails."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import PreparerSpec
from fastflow_agent.uvcache import EnvironmentFault, UvCache
from fastflow_agent.uvcache.preparation import FULL_BYTES

from tests.unit.uvcache.world import IMAGE, World


async def test_callers_that_need_the_same_share_one_preparer(world: World) -> None:
    gate = world.uv.hold()
    callers = [asyncio.create_task(world.ensure("alpha")) for _ in range(5)]
    await world.uv.began.wait()
    gate.set()
    found = await asyncio.gather(*callers)
    assert len({generation.id for generation in found}) == 1
    assert len(world.uv.prepared) == 1


async def test_a_preparer_nobody_waits_for_is_stopped(world: World) -> None:
    stopped = asyncio.Event()

    async def wait(spec: PreparerSpec) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    world.uv.during = wait
    caller = asyncio.create_task(world.ensure("alpha"))
    await world.uv.began.wait()
    caller.cancel()
    await stopped.wait()
    world.uv.during = None
    assert (await world.ensure("alpha")).packages == ("alpha==1.0",)


@pytest.mark.parametrize("step", ["stage", "publish_stock", "publish"])
async def test_a_caller_who_is_cancelled_while_the_disk_works_leaves_nothing_behind(world: World, step: str) -> None:
    working, go_on = threading.Event(), threading.Event()
    work = getattr(world.cache._generations, step)

    def slowly(*arguments: object) -> object:
        working.set()
        go_on.wait(60)
        return work(*arguments)

    setattr(world.cache._generations, step, slowly)
    caller = asyncio.create_task(world.ensure("alpha"))
    await asyncio.to_thread(working.wait, 60)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await world.cache.settle()
    assert list((world.folder / "cache/staging").iterdir()) == []


async def test_what_was_fetched_at_the_same_time_is_there_for_the_next(world: World) -> None:
    both = asyncio.Barrier(2)

    async def meet(spec: PreparerSpec) -> None:
        await both.wait()

    world.uv.during = meet
    found = await asyncio.gather(world.ensure("alpha"), world.ensure("beta"))
    for name, generation in zip(("alpha", "beta"), found, strict=True):
        assert (generation.path / "environments-v2/python" / name / name / "module.py").exists()
        assert (world.stock() / "archive-v0" / name / "module.py").samefile(
            generation.path / "archive-v0" / name / "module.py"
        )


async def test_what_uv_refuses_is_told_in_its_own_words_and_can_be_tried_again(world: World) -> None:
    world.uv.fail_with = b"Resolving\n  \xc3\x97 No solution found when resolving dependencies\n"
    with pytest.raises(EnvironmentFault, match="× No solution found") as refusal:
        await world.ensure("nonsense")
    assert refusal.value.output == world.uv.fail_with
    assert len(world.uv.runs) == 1
    assert world.numbers() == []
    assert not (world.folder / "cache" / "staging").exists() or not any((world.folder / "cache/staging").iterdir())
    world.uv.fail_with = b""
    await world.ensure("nonsense")


@pytest.mark.parametrize(
    ("requirements", "header", "place"),
    [
        ("nonsense", "", "requirements.txt"),
        ("", "nonsense", "the header of main.py"),
        ("nonsense", "alpha", "requirements.txt or the header of main.py"),
    ],
)
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (b"error: No solution found when resolving dependencies\n", "correct the versions in "),
        (b"error: nonsense was not found in the package registry\n", "correct the name in "),
    ],
)
async def test_what_to_do_names_the_place_that_names_the_packages(
    world: World, requirements: str, header: str, place: str, words: bytes, remedy: str
) -> None:
    world.uv.fail_with = words
    with pytest.raises(EnvironmentFault, match=rf"To do: {re.escape(remedy + place)}[.,]"):
        await world.ensure(requirements, header)


async def test_a_git_that_is_missing_is_not_taken_for_a_repository_that_is(world: World) -> None:
    world.uv.fail_with = b"error: Failed\n  cause: Git operation failed\n  cause: Git executable not found.\n"
    with pytest.raises(EnvironmentFault, match=r"To do: name an archive of that commit .* has no git"):
        await world.ensure("nonsense")


async def test_a_caller_is_told_how_many_are_prepared_before_what_it_waits_for(world: World) -> None:
    gate = world.uv.hold()
    told: dict[str, list[int]] = {name: [] for name in ("alpha", "beta", "gamma", "delta")}
    callers = []
    for name, heard in told.items():
        callers.append(asyncio.create_task(world.cache.ensure(world.code(name), "", IMAGE, waits=heard.append)))
        async with asyncio.timeout(30):
            while not heard:  # noqa: ASYNC110 - what works on the disk tells nobody
                await asyncio.sleep(0.01)
    assert [heard[-1] for heard in told.values()] == [0, 0, 2, 3]
    gate.set()
    await asyncio.gather(*callers)
    assert list(dict.fromkeys(told["delta"])) == [3, 2, 0]
    nothing: list[int] = []
    await world.cache.ensure(world.code("alpha"), "", IMAGE, waits=nothing.append)
    assert nothing == []


async def test_a_caller_who_comes_later_is_told_at_once(world: World) -> None:
    gate = world.uv.hold()
    first = asyncio.create_task(world.ensure("alpha"))
    await world.uv.began.wait()
    told: list[int] = []
    second = asyncio.create_task(world.cache.ensure(world.code("alpha"), "", IMAGE, waits=told.append))
    async with asyncio.timeout(30):
        while not told:  # noqa: ASYNC110 - what works on the disk tells nobody
            await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(first, second)
    assert set(told) == {0}


async def test_all_steps_of_a_preparation_share_one_time_limit_and_are_not_repeated_after_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    loop = asyncio.get_running_loop()
    world.cache = await UvCache.open(tmp_path / "cache", world.uv, prepare_seconds=100.0)
    await world.ensure("alpha")
    began = loop.time()
    await world.ensure("beta")
    fetched, installed = world.uv.runs[-2:]
    assert 100.0 >= fetched.seconds > installed.seconds > 100.0 - (loop.time() - began)
    world.cache = await UvCache.open(tmp_path / "cache", world.uv, prepare_seconds=0.0)
    world.uv.runs.clear()
    world.uv.fail_with = b"words that nobody knows\n"
    with pytest.raises(EnvironmentFault):
        await world.ensure("gamma")
    assert [spec.seconds for spec in world.uv.runs] == [0.0]


async def test_a_full_disk_is_no_fault_of_the_requirements(world: World) -> None:
    world.uv.fail_with = b"error: Failed to write: No space left on device (os error 28)\n"
    with pytest.raises(EnvironmentFault, match="No space left"):
        await world.ensure("alpha")
    world.free = FULL_BYTES - 1
    with pytest.raises(OSError, match="No space left"):
        await world.ensure("alpha")
