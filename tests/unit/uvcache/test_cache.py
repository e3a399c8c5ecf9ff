"""Generations of the uv cache: what is shared, what is never changed, and what is removed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PreparerResult, PreparerSpec
from fastflow_agent.uvcache import EnvironmentFault, Generation, UvCache
from fastflow_agent.uvcache.generations import KEPT_SCRIPTS

IMAGE = "sha256:image"
SLOT, OTHER_SLOT = SlotId("0" * 16), SlotId("1" * 16)

HEADER = '# /// script\n# dependencies = ["{}"]\n# ///\n'


class Uv:
    """Fills a cache as uv does: files that are new or renamed into place, and locks that are opened for writing."""

    def __init__(self) -> None:
        self.runs: list[PreparerSpec] = []
        self.began = asyncio.Event()
        self.fail_with = b""
        self.during: Callable[[PreparerSpec], Awaitable[None]] | None = None
        self.on_removal: Callable[[], None] | None = None

    async def remove_preparers(self) -> None:
        if self.on_removal:
            self.on_removal()

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        self.runs.append(spec)
        self.began.set()
        if self.during:
            await self.during(spec)
        if self.fail_with:
            return PreparerResult(2, self.fail_with)
        main = (spec.code / "main.py").read_text()
        requirements = spec.code / "requirements.txt"
        package = requirements.read_text().strip() if requirements.exists() else ""
        cache = spec.cache
        for bucket in ("archive-v0", "environments-v2/python", "simple-v1", "git-v0/db", "builds-v0"):
            (cache / bucket).mkdir(parents=True, exist_ok=True)
        self.rename_into_place(cache / "simple-v1" / "index", f"after {package}")
        with (cache / ".lock").open("a") as lock:
            lock.write("")
        with (cache / "git-v0/db" / "FETCH_HEAD").open("a") as fetched:
            fetched.write(f"{package}\n")
        (cache / "builds-v0" / ".tmp123").mkdir(exist_ok=True)
        if package:
            (cache / "archive-v0" / package).mkdir(exist_ok=True)
            self.rename_into_place(cache / "archive-v0" / package / "module.py", f"NAME = {package!r}")
            link = cache / "environments-v2/python" / package
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../archive-v0/{package}")
        if "# /// script" in main:
            script = cache / "environments-v2" / "main-0123"
            script.mkdir(exist_ok=True)
            (script / "pyvenv.cfg").touch()
            (script / main.split('"')[1]).touch()
        listing = json.dumps([f"{package}==1.0"] if package else [])
        return PreparerResult(0, f"Resolved\nfastflow-packages {listing}\n".encode(), offline=True)

    def rename_into_place(self, path: Path, text: str) -> None:
        partial = path.with_name(".tmp-partial")
        partial.write_text(text)
        partial.rename(path)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uv = Uv()
        self.cache: UvCache

    async def open(self) -> UvCache:
        self.cache = await UvCache.open(self.folder / "cache", self.uv)
        return self.cache

    def code(self, requirements: str = "", header: str = "") -> Path:
        code = self.folder / f"code {requirements} {header}"
        if code.exists():
            # As real code, it is never written again: others may be reading it.
            return code
        code.mkdir()
        (code / "main.py").write_text((HEADER.format(header) if header else "") + "print('code')\n")
        if requirements:
            (code / "requirements.txt").write_text(f"{requirements}\n")
        return code

    async def ensure(self, requirements: str = "", header: str = "", image: str = IMAGE) -> Generation:
        return await self.cache.ensure(self.code(requirements, header), "", image)

    def numbers(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "cache" / "generations").iterdir())

    async def forget_leases(self) -> None:
        self.cache._leases.clear()
        await self.cache.prune()


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.open()
    return world


def content(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


async def test_an_environment_is_prepared_once_and_found_again(world: World) -> None:
    first = await world.ensure("alpha")
    assert first.packages == ("alpha==1.0",)
    assert first.offline
    assert (first.path / "archive-v0/alpha/module.py").read_text() == "NAME = 'alpha'"
    assert await world.ensure("alpha") == first
    assert len(world.uv.runs) == 1
    await world.open()
    assert await world.ensure("alpha") == first
    assert len(world.uv.runs) == 1
    assert len(world.cache.environments()) == 2


async def test_a_pipeline_without_requirements_uses_what_is_there(world: World) -> None:
    prepared = await world.ensure("alpha")
    bare = await world.ensure()
    assert bare.id == prepared.id
    assert bare.packages == ()
    assert len(world.uv.runs) == 1
    await world.ensure(image="sha256:another image")
    assert len(world.uv.runs) == 2


async def test_the_preparer_sees_needs_and_no_code(world: World) -> None:
    async def look(spec: PreparerSpec) -> None:
        assert sorted(path.name for path in spec.code.iterdir()) == ["main.py", "requirements.txt"]
        assert "print('code')" not in (spec.code / "main.py").read_text()
        assert spec.environment == {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "1"}

    world.uv.during = look
    await world.ensure("alpha")


async def test_a_new_environment_builds_on_the_newest_generation_and_changes_no_published_file(world: World) -> None:
    first = await world.ensure("alpha")
    before = content(first.path)
    second = await world.ensure("beta")
    assert second.id != first.id
    assert content(first.path) == before
    assert (second.path / "archive-v0/alpha/module.py").samefile(first.path / "archive-v0/alpha/module.py")
    assert (second.path / "environments-v2/python/alpha/module.py").exists()
    assert (await world.ensure("alpha")).id == second.id
    # What uv opens for writing is no shared file.
    for name in (".lock", "git-v0/db/FETCH_HEAD"):
        assert not (second.path / name).samefile(first.path / name)
    assert not (second.path / "builds-v0" / ".tmp123" / "x").exists()


async def test_the_environment_of_a_script_is_alone_in_its_generation(world: World) -> None:
    first = await world.ensure(header="one")
    second = await world.ensure(header="two")
    third = await world.ensure("alpha")
    scripts = [
        sorted(path.name for path in generation.path.glob("environments-v2/main-*/*"))
        for generation in (first, second, third)
    ]
    assert scripts == [["one", "pyvenv.cfg"], ["pyvenv.cfg", "two"], []]
    assert (await world.ensure(header="one")).id == first.id
    assert len(world.uv.runs) == 3


async def test_callers_that_need_the_same_share_one_preparer(world: World) -> None:
    gate = asyncio.Event()

    async def wait(spec: PreparerSpec) -> None:
        await gate.wait()

    world.uv.during = wait
    callers = [asyncio.create_task(world.ensure("alpha")) for _ in range(5)]
    await world.uv.began.wait()
    gate.set()
    found = await asyncio.gather(*callers)
    assert len({generation.id for generation in found}) == 1
    assert len(world.uv.runs) == 1


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


async def test_environments_prepared_at_the_same_time_end_in_one_generation(world: World) -> None:
    both = asyncio.Barrier(2)

    async def meet(spec: PreparerSpec) -> None:
        await both.wait()

    world.uv.during = meet
    found = await asyncio.gather(world.ensure("alpha"), world.ensure("beta"))
    newest = max(found, key=lambda generation: int(generation.id))
    for name in ("alpha", "beta"):
        assert (newest.path / "environments-v2/python" / name / "module.py").read_text() == f"NAME = {name!r}"
        assert (await world.ensure(name)).id == newest.id


async def test_what_uv_refuses_is_told_in_its_own_words_and_can_be_tried_again(world: World) -> None:
    world.uv.fail_with = b"Resolving\n  \xc3\x97 No solution found when resolving dependencies\n"
    with pytest.raises(EnvironmentFault, match="× No solution found") as refusal:
        await world.ensure("nonsense")
    assert refusal.value.output == world.uv.fail_with
    assert world.numbers() == []
    assert not (world.folder / "cache" / "staging").exists() or not any((world.folder / "cache/staging").iterdir())
    world.uv.fail_with = b""
    await world.ensure("nonsense")


async def test_a_full_disk_is_no_fault_of_the_requirements(world: World) -> None:
    world.uv.fail_with = b"error: Failed to write: No space left on device (os error 28)\n"
    with pytest.raises(OSError, match="No space left"):
        await world.ensure("alpha")


async def test_a_generation_is_kept_while_a_slot_uses_it_and_removed_after(world: World) -> None:
    first = await world.ensure("alpha")
    world.cache.pin(first, SLOT)
    world.cache.pin(first.id, OTHER_SLOT)
    await world.ensure("beta")
    await world.forget_leases()
    assert world.numbers() == [1, 2]
    world.cache.unpin(SLOT)
    await world.forget_leases()
    assert world.numbers() == [1, 2]
    world.cache.unpin(OTHER_SLOT)
    world.cache.unpin(OTHER_SLOT)
    await world.forget_leases()
    assert world.numbers() == [2]
    assert (await world.ensure("alpha")).id == "2"


async def test_a_generation_just_handed_out_is_not_removed_before_it_can_be_pinned(world: World) -> None:
    await world.ensure("alpha")
    await world.ensure("beta")
    await world.cache.prune()
    assert world.numbers() == [1, 2]


async def test_generations_of_scripts_are_kept_to_a_number(world: World) -> None:
    for index in range(KEPT_SCRIPTS + 3):
        await world.ensure(header=f"script{index}")
    await world.ensure(header="script1")
    await world.ensure("alpha")
    await world.forget_leases()
    assert len(world.numbers()) == KEPT_SCRIPTS + 1
    assert 2 in world.numbers()
    assert 1 not in world.numbers()


async def test_a_slot_that_lives_keeps_its_generation_over_a_restart_and_a_lost_index(world: World) -> None:
    first = await world.ensure("alpha")
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
    assert (await world.ensure("beta")).id == "8"
    await world.forget_leases()
    assert world.numbers() == [8]


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
