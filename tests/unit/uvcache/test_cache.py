"""Generations of the uv cache: what is shared, what is never changed, and what is removed."""

from __future__ import annotations

from fastflow_agent.runtime.base import PreparerSpec, PreparerStep

from tests.unit.uvcache.world import OTHER_SLOT, SLOT, World, content


async def test_an_environment_is_prepared_once_and_found_again(world: World) -> None:
    first = await world.ensure("alpha")
    assert first.packages == ("alpha==1.0",)
    assert first.offline
    assert (first.path / "environments-v2/python/alpha/alpha/module.py").read_text() == "NAME = 'alpha'"
    assert await world.ensure("alpha") == first
    assert len(world.uv.prepared) == 1
    await world.open()
    assert await world.ensure("alpha") == first
    assert len(world.uv.prepared) == 1
    assert world.cache.environments() == [first.environment]


async def test_a_pipeline_without_requirements_has_an_environment_that_no_package_was_ever_in(world: World) -> None:
    await world.ensure("alpha")
    bare = await world.ensure()
    assert bare.packages == ()
    assert not (bare.path / "archive-v0/alpha").exists()
    assert [spec.step for spec in world.uv.runs[2:]] == [PreparerStep.INSTALL]
    assert await world.ensure() == bare
    await world.ensure(image="sha256:another image")
    assert len(world.uv.prepared) == 3


async def test_the_preparer_sees_needs_and_no_code(world: World) -> None:
    async def look(spec: PreparerSpec) -> None:
        assert sorted(path.name for path in spec.code.iterdir()) == ["main.py", "requirements.txt"]
        assert "print('code')" not in (spec.code / "main.py").read_text()
        assert spec.environment == {}

    world.uv.during = look
    await world.ensure("alpha")


async def test_packages_are_fetched_where_nothing_can_be_built_and_installed_after_that(world: World) -> None:
    async def look(spec: PreparerSpec) -> None:
        builds = spec.cache / "builds-v0"
        assert builds.is_file() if spec.step is PreparerStep.FETCH else not builds.exists()

    world.uv.during = look
    await world.ensure("alpha")
    await world.ensure(header="alpha")
    assert [spec.step for spec in world.uv.runs] == [PreparerStep.FETCH, PreparerStep.INSTALL] * 2


async def test_a_new_environment_is_made_of_what_was_fetched_before_and_changes_no_published_file(world: World) -> None:
    first = await world.ensure("alpha")
    before = content(first.path)
    second = await world.ensure("alpha\nbeta")
    assert second.id != first.id
    assert content(first.path) == before
    assert (second.path / "archive-v0/alpha/module.py").samefile(first.path / "archive-v0/alpha/module.py")
    # What uv opens for writing is no shared file.
    assert not (second.path / ".lock").samefile(first.path / ".lock")
    third = await world.ensure("beta")
    # What it does not use, it does not have.
    assert not (third.path / "archive-v0/alpha").exists()
    assert (third.path / "archive-v0/beta/module.py").samefile(second.path / "archive-v0/beta/module.py")


async def test_each_environment_is_alone_in_its_generation(world: World) -> None:
    found = [
        await world.ensure(header="one"),
        await world.ensure(header="two"),
        await world.ensure("alpha"),
        await world.ensure("beta"),
    ]
    assert [
        sorted(path.relative_to(generation.path).as_posix() for path in generation.path.glob("environments-v2/*/*"))
        for generation in found
    ] == [
        ["environments-v2/main-0123/one", "environments-v2/main-0123/pyvenv.cfg"],
        ["environments-v2/main-0123/pyvenv.cfg", "environments-v2/main-0123/two"],
        ["environments-v2/python/alpha"],
        ["environments-v2/python/beta"],
    ]
    assert await world.ensure(header="one") == found[0]
    assert len(world.uv.prepared) == 4


async def test_a_generation_is_kept_while_a_slot_uses_it_and_removed_after(world: World) -> None:
    first = await world.ensure("alpha")
    world.cache.pin(first, SLOT)
    world.cache.pin(first.id, OTHER_SLOT)
    second = await world.again("alpha")
    await world.forget_leases()
    assert world.numbers() == [int(first.id), int(second.id)]
    world.cache.unpin(SLOT)
    await world.forget_leases()
    assert world.numbers() == [int(first.id), int(second.id)]
    world.cache.unpin(OTHER_SLOT)
    world.cache.unpin(OTHER_SLOT)
    await world.forget_leases()
    assert world.numbers() == [int(second.id)]
    assert await world.ensure("alpha") == second


async def test_a_generation_just_handed_out_is_not_removed_before_it_can_be_pinned(world: World) -> None:
    first = await world.ensure("alpha")
    second = await world.again("alpha")
    await world.cache.tidy()
    assert world.numbers() == [int(first.id), int(second.id)]


async def test_all_environments_are_kept_however_many(world: World) -> None:
    found = [int((await world.ensure(header=f"script{index}")).id) for index in range(12)]
    await world.forget_leases()
    assert world.numbers() == found
    assert len(list((world.folder / "cache/generations").iterdir())) == len(found) + 1


async def test_a_slot_that_lives_keeps_its_generation_over_a_restart_and_a_lost_index(world: World) -> None:
    first = await world.ensure("alpha")
    await world.cache.settle()
    (world.folder / "cache" / "index.json").write_text("{ damaged")
    await world.open()
    world.cache.pin(first.id, SLOT)
    again = await world.ensure("alpha")
    assert again.id != first.id
    await world.forget_leases()
    assert (first.path / "archive-v0/alpha/module.py").exists()
    world.cache.unpin(SLOT)
    await world.forget_leases()
    assert world.numbers() == [int(again.id)]


async def test_what_a_dead_agent_left_half_done_is_removed(world: World) -> None:
    await world.ensure("alpha")
    await world.cache.settle()
    (world.folder / "cache" / "generations" / "7").mkdir()
    (world.folder / "cache" / "staging" / "old" / "cache").mkdir(parents=True)
    await world.open()
    await world.cache.clear_up()
    assert not (world.folder / "cache" / "staging").exists()
    assert (await world.ensure()).id == "8"
    await world.forget_leases()
    assert world.numbers() == [2, 8]


async def test_a_dead_agents_preparer_is_gone_before_what_it_writes_to_is_removed_and_made_anew(world: World) -> None:
    staging = world.folder / "cache" / "staging" / "old"
    staging.mkdir(parents=True)
    seen: list[bool] = []
    await world.open()
    world.uv.on_removal = lambda: seen.append(staging.exists())
    await world.ensure("alpha")
    await world.ensure("beta")
    assert seen == [True]
    assert not staging.exists()
