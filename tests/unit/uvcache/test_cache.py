"""Generations of the uv cache: what is shared, what is never changed, and what is removed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PreparerResult, PreparerSpec, PreparerStep
from fastflow_agent.uvcache import EnvironmentFault, Generation, UvCache
from fastflow_agent.uvcache.preparation import FULL_BYTES

from tests.trees import make_deep

IMAGE = "sha256:image"
SLOT, OTHER_SLOT = SlotId("0" * 16), SlotId("1" * 16)

HEADER = '# /// script\n# dependencies = ["{}"]\n# ///\n'


class Uv:
    """Fills a cache as uv does: files that are new or renamed into place, and locks that are opened for writing.

    Packages are named one a line; those in `sources` have to be built. What `code` has for one, is run wherever code of
    that package is.
    """

    def __init__(self) -> None:
        self.runs: list[PreparerSpec] = []
        self.began = asyncio.Event()
        self.fail_with = b""
        self.during: Callable[[PreparerSpec], Awaitable[None]] | None = None
        self.on_removal: Callable[[], None] | None = None
        self.sources: set[str] = set()
        self.code: dict[str, Callable[[Path], None]] = {}

    @property
    def prepared(self) -> list[PreparerSpec]:
        """The runs that made environments, or should have."""
        return [spec for spec in self.runs if spec.step is not PreparerStep.FETCH]

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
        packages, of_script = self.asked(spec.code)
        with (spec.cache / ".lock").open("a") as lock:
            lock.write("")
        try:
            if spec.step is not PreparerStep.INSTALL:
                for package in packages:
                    self.fetch(spec, package)
            if spec.step is not PreparerStep.FETCH:
                self.make_environment(spec.cache, packages, of_script=of_script)
        except OSError as error:
            return PreparerResult(2, f"error: `{error.filename}`: {error.strerror}\n".encode())
        listing = json.dumps([f"{package}==1.0" for package in packages])
        return PreparerResult(0, f"Resolved\nfastflow-packages {listing}\n".encode(), offline=True)

    def asked(self, code: Path) -> tuple[list[str], bool]:
        header = re.findall(r'dependencies = \["(.*?)"\]', (code / "main.py").read_text())
        requirements = code / "requirements.txt"
        lines = requirements.read_text().split() if requirements.exists() else []
        return [*lines, *header[:1]], bool(header)

    def fetch(self, spec: PreparerSpec, package: str) -> None:
        archive, index = spec.cache / "archive-v0" / package, spec.cache / "simple-v1"
        for folder in (archive, index):
            folder.mkdir(parents=True, exist_ok=True)
        self.rename_into_place(index / package, f"where {package} is")
        if package in self.sources:
            (spec.cache / "builds-v0").mkdir(exist_ok=True)
            (spec.cache / "builds-v0" / ".tmp123").mkdir()
            self.run_code(package, spec.cache)
        if not (archive / "module.py").exists():
            self.rename_into_place(archive / "module.py", f"NAME = {package!r}")
        if spec.step is PreparerStep.FETCH:
            links = spec.cache / "fetched" / package
            links.mkdir(parents=True)
            (links / "module.py").symlink_to(archive / "module.py")

    def make_environment(self, cache: Path, packages: list[str], *, of_script: bool) -> None:
        name = "-".join(packages) or "nothing"
        environment = cache / ("environments-v2/main-0123" if of_script else f"archive-v0/environment-{name}")
        environment.mkdir(parents=True)
        (environment / "pyvenv.cfg").touch()
        for package in packages:
            # As links to the archive, which each package's own Python code sees through.
            (cache / "archive-v0" / package / "module.py").stat()
            (environment / package).symlink_to(f"../../archive-v0/{package}")
            self.run_code(package, cache)
        if not of_script:
            (cache / "environments-v2/python").mkdir(parents=True, exist_ok=True)
            (cache / "environments-v2/python" / name).symlink_to(f"../../archive-v0/environment-{name}")

    def run_code(self, package: str, cache: Path) -> None:
        if run := self.code.get(package):
            run(cache)

    def rename_into_place(self, path: Path, text: str) -> None:
        partial = path.with_name(".tmp-partial")
        partial.write_text(text)
        partial.rename(path)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uv = Uv()
        self.cache: UvCache
        self.free = 1 << 40

    async def open(self) -> UvCache:
        self.cache = await UvCache.open(self.folder / "cache", self.uv, free_bytes=lambda folder: self.free)
        return self.cache

    def code(self, requirements: str = "", header: str = "") -> Path:
        code = self.folder / f"code {requirements!r} {header}"
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

    async def again(self, requirements: str) -> Generation:
        """Has what is there prepared once more."""
        return await self.cache.ensure_ahead(self.code(requirements), "", IMAGE, max_age=1e-9)

    def numbers(self) -> list[int]:
        """Generations on disk, but for the stock."""
        index = self.folder / "cache" / "index.json"
        held = json.loads(index.read_text())["generations"] if index.exists() else []
        stock = {each["number"] for each in held if each["stock"]}
        found = (int(path.name) for path in (self.folder / "cache" / "generations").iterdir())
        return sorted(number for number in found if number not in stock)

    def stock(self) -> Path:
        index = json.loads((self.folder / "cache" / "index.json").read_text())
        number = max(each["number"] for each in index["generations"] if each["stock"])
        return self.folder / "cache" / "generations" / str(number)

    async def forget_leases(self) -> None:
        self.cache._claims._leases.clear()
        await self.cache.tidy()


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
        go_on.wait(10)
        return work(*arguments)

    setattr(world.cache._generations, step, slowly)
    caller = asyncio.create_task(world.ensure("alpha"))
    await asyncio.to_thread(working.wait, 10)
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


async def test_a_full_disk_is_no_fault_of_the_requirements(world: World) -> None:
    world.uv.fail_with = b"error: Failed to write: No space left on device (os error 28)\n"
    with pytest.raises(EnvironmentFault, match="No space left"):
        await world.ensure("alpha")
    world.free = FULL_BYTES - 1
    with pytest.raises(OSError, match="No space left"):
        await world.ensure("alpha")


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
