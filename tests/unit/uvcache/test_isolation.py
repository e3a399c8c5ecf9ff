"""Code of packages, which runs where they are built and installed, and what it can do to the uv cache."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import PreparerSpec, PreparerStep
from fastflow_agent.uvcache import EnvironmentFault

from tests.trees import make_deep
from tests.unit.uvcache.world import World, content


def attack(cache: Path) -> None:
    """What code of a package may do to a cache that it can write to."""
    module = cache / "archive-v0/alpha/module.py"
    if module.exists():
        module.unlink()
        module.write_text("NAME = 'evil'")
    for bucket in ("simple-v1", "archive-v0", "environments-v2/python"):
        (cache / bucket).mkdir(parents=True, exist_ok=True)
        (cache / bucket / "planted").touch()


@pytest.mark.parametrize("built", [False, True])
async def test_what_code_of_a_package_does_to_its_cache_reaches_no_other_environment(world: World, built: bool) -> None:
    world.uv.code["evil"] = attack
    world.uv.sources = {"evil"} if built else set()
    await world.ensure("alpha")
    attacked = await world.ensure("alpha\nevil")
    assert (attacked.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'evil'"
    for generation in (await world.ensure("alpha"), await world.ensure("alpha\nbeta"), await world.ensure()):
        held = content(generation.path)
        assert held.get("archive-v0/alpha/module.py") in (None, "NAME = 'alpha'")
        assert not [name for name in held if "planted" in name]
    assert not [name for name in content(world.stock()) if "planted" in name]


async def test_what_has_to_be_built_is_made_of_what_was_fetched_and_comes_to_nobody_else(world: World) -> None:
    world.uv.sources = {"gamma"}
    await world.ensure("alpha")
    await world.ensure("beta")
    built = await world.ensure("alpha\ngamma")
    assert [spec.step for spec in world.uv.runs[4:]] == [PreparerStep.FETCH, PreparerStep.BUILD]
    assert (built.path / "archive-v0/alpha/module.py").samefile(world.stock() / "archive-v0/alpha/module.py")
    assert sorted(path.name for path in (built.path / "archive-v0").iterdir()) == [
        "alpha",
        "environment-alpha-gamma",
        "gamma",
    ]
    assert not (world.stock() / "archive-v0/gamma").exists()
    other = await world.ensure("gamma")
    assert not (other.path / "archive-v0/gamma/module.py").samefile(built.path / "archive-v0/gamma/module.py")


async def test_a_link_that_a_build_leaves_in_a_folders_place_is_never_followed(world: World) -> None:
    outside = world.folder / "outside"
    outside.mkdir()

    def leave_links(cache: Path) -> None:
        if (cache / "environments-v3").is_symlink():
            return
        shutil.rmtree(cache / "archive-v0" / "alpha")
        for name in ("alpha", "beta"):
            (cache / "archive-v0" / name).symlink_to(outside)
        (cache / "environments-v3").symlink_to(outside)

    world.uv.sources = {"evil"}
    world.uv.code["evil"] = leave_links
    await world.ensure("alpha")
    gate = asyncio.Event()

    async def wait(spec: PreparerSpec) -> None:
        if spec.step is PreparerStep.BUILD:
            await gate.wait()

    world.uv.during = wait
    evil = asyncio.create_task(world.ensure("evil"))
    await world.ensure("beta")
    gate.set()
    await evil
    assert list(outside.iterdir()) == []


async def test_a_package_of_more_folders_than_can_be_walked_through_is_refused(world: World) -> None:
    world.uv.code["deep"] = lambda cache: make_deep(cache, 150)
    with pytest.raises(EnvironmentFault, match="deep"):
        await world.ensure("deep")
    assert world.numbers() == []
    await world.ensure("alpha")
