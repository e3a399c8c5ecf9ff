"""The uv cache with the real preparer, the real uv and a package index that counts who asks it."""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.uvcache import EnvironmentFault, Generation, UvCache

from tests.slots import PackageIndex, Slot, Workshop, bridge_address, built_source, source_archive, tiny_wheel

UID = 1000
IMAGE = "sha256:as the tests call it"


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    index = PackageIndex(bridge_address())
    for name in ("alpha", "beta"):
        index.add(name, *tiny_wheel(name, f"NAME = {name!r}\n"))
    yield index
    index.close()


ATTACK = """
import pathlib
for found in list(pathlib.Path("/uvcache").rglob("alpha.py")):
    for attempt in (lambda: found.chmod(0o666), lambda: found.open("r+").close(), lambda: found.unlink()):
        try:
            attempt()
        except OSError:
            continue
        found.write_text("NAME = 'evil'")
for folder in list(pathlib.Path("/uvcache").rglob("*")):
    if folder.is_dir():
        try:
            (folder / "planted").touch()
        except OSError:
            continue
"""
"""What code of a package may do to the cache it sees."""


class World:
    """A uv cache filled from the index, and slots that can reach nothing."""

    def __init__(self, cache: UvCache, workshop: Workshop) -> None:
        self.cache = cache
        self.workshop = workshop
        self._codes = 0

    def code(self, main: str, requirements: str = "") -> Path:
        self._codes += 1
        files = {"requirements.txt": requirements.encode()} if requirements else {}
        return self.workshop.code(f"{id(self)}-{self._codes}", main, files)

    async def ensure(self, main: str = "", requirements: str = "") -> Generation:
        generation = await self.cache.ensure(self.code(main, requirements), "", IMAGE)
        # Else what it replaced would go while a test looks at all there is.
        await self.cache.settle()
        return generation

    async def run(self, main: str, requirements: str = "") -> str:
        """What the program says, started from the generation that holds its environment, cut off from any network."""
        generation = await self.ensure(main, requirements)
        assert generation.offline
        files = {"requirements.txt": requirements.encode()} if requirements else {}
        slot: Slot = self.workshop.slot(main, files=files, cache=generation.path)
        ended = await slot.run()
        assert ended.exit_code == 0, ended.text
        return ended.text


@pytest.fixture
async def world(docker_options: Callable[..., DockerOptions], index: PackageIndex) -> AsyncIterator[World]:
    connected = DockerRuntime(docker_options(egress=Egress(network="bridge", index_url=index.url)))
    options = docker_options(egress=Egress(network="none", index_url=index.url))
    alone = DockerRuntime(options)
    folder = options.data_dir / f"uv-{os.urandom(4).hex()}"
    cache = await UvCache.open(folder, connected, owner=UID, index_url=index.url)
    workshop = Workshop(alone, options.data_dir, options.env_dir, folder)
    yield World(cache, workshop)
    await workshop.clear()
    await connected.aclose()
    await alone.aclose()
    # What it notes and removes in the background would go on in a folder that is being removed.
    await cache.settle()
    shutil.rmtree(folder)


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


async def test_a_warm_start_needs_no_network(world: World, index: PackageIndex) -> None:
    generation = await world.ensure("", "alpha\n")
    assert generation.packages[:1] == ("alpha==1.0",)
    asked = len(index.requests)
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"
    assert len(index.requests) == asked


async def test_packages_are_compiled_once_for_all_runs(world: World) -> None:
    main = "import alpha, os; print(os.stat(alpha.__cached__).st_uid)"
    # What a run compiles itself belongs to its own user.
    assert await world.run(main, "alpha\n") == "0"


async def test_a_script_with_a_header_starts_without_network_and_sees_its_own_packages_alone(world: World) -> None:
    header = '# /// script\n# dependencies = ["{}"]\n# ///\n'
    await world.ensure(header.format("beta"))
    main = header.format("alpha") + (
        "import alpha, importlib.util\nprint(alpha.NAME, importlib.util.find_spec('beta'), os.listdir(environments))\n"
    ).replace("print", "import os\nenvironments = '/uvcache/environments-v2'\nprint", 1).replace(
        ", os.listdir(environments)", ", alpha.__file__.startswith(environments)"
    )
    assert await world.run(main) == "alpha None True"
    again = header.format("beta") + "import beta; print(beta.NAME)"
    assert await world.run(again) == "beta"


async def test_a_pipeline_without_requirements_needs_no_network_either(world: World) -> None:
    assert await world.run("print('plain')") == "plain"


async def test_a_new_environment_shares_the_files_of_the_old_and_changes_none(world: World) -> None:
    first = await world.ensure("", "alpha\n")
    before = content(first.path)
    second = await world.ensure("", "alpha\nbeta\n")
    assert content(first.path) == before
    assert second.id != first.id
    shared = list(first.path.glob("archive-v0/**/alpha.py"))
    assert shared
    assert all((second.path / path.relative_to(first.path)).samefile(path) for path in shared)
    assert await world.run("import alpha, beta; print(alpha.NAME, beta.NAME)", "alpha\nbeta\n") == "alpha beta"
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"


async def test_a_run_can_not_change_what_another_imports(world: World) -> None:
    attack = """
        import alpha, os, pathlib
        for found in pathlib.Path("/uvcache").rglob("alpha.py"):
            try:
                found.unlink()
                found.write_text("NAME = 'evil'")
            except OSError as error:
                print(error)
        print(pathlib.Path(alpha.__file__).read_text())
    """
    generation = await world.ensure("", "alpha\n")
    before = content(generation.path)
    assert "evil" in await world.run(attack, "alpha\n")
    assert content(generation.path) == before
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"


async def test_a_packages_build_script_can_not_change_what_another_imports(world: World, index: PackageIndex) -> None:
    build = f"""
import shutil
{ATTACK}

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "gamma-1.0-py3-none-any.whl"
    shutil.copy(pathlib.Path(__file__).with_name(name), wheel_directory)
    return name
"""
    name, wheel = tiny_wheel("gamma", "NAME = 'gamma'\n")
    index.add("gamma", "gamma-1.0.tar.gz", source_archive("gamma", built_source(build, {name: wheel})))

    await attacked_by_gamma(world)


async def test_code_of_a_package_that_runs_while_it_is_installed_can_not_change_what_another_imports(
    world: World, index: PackageIndex
) -> None:
    # A line of a `.pth` file is run by every Python that sees it, those that uv starts included.
    line = f"import base64; exec(base64.b64decode({b64encode(ATTACK.encode())!r}), {{}})\n"
    index.add("gamma", *tiny_wheel("gamma", "NAME = 'gamma'\n", more={"gamma.pth": line}))
    await attacked_by_gamma(world)


async def attacked_by_gamma(world: World) -> None:
    """Whatever code of gamma did when it was prepared, others have what they asked for, prepared before or after."""
    first = await world.ensure("", "alpha\n")
    before = content(first.path)
    attacked = await world.ensure("", "gamma\n")
    assert list(attacked.path.rglob("planted")), "the attack did not run"
    assert await world.run("import gamma; print(gamma.NAME)", "gamma\n") == "gamma"
    assert content(first.path) == before
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"
    assert await world.run("import alpha, beta; print(alpha.NAME, beta.NAME)", "alpha\nbeta\n") == "alpha beta"
    header = "# /// script\n# dependencies = ['alpha', 'beta']\n# ///\n"
    assert await world.run(f"{header}import alpha, beta; print(alpha.NAME, beta.NAME)") == "alpha beta"
    assert {path.relative_to(attacked.path.parent).parts[0] for path in attacked.path.parent.rglob("planted")} == {
        attacked.id
    }


async def test_requirements_that_do_not_resolve_are_refused_in_uvs_own_words(world: World) -> None:
    with pytest.raises(EnvironmentFault, match="No solution found") as refusal:
        await world.ensure("", "alpha==9\n")
    assert b"alpha==9" in refusal.value.output
    assert b"fastflow-packages" not in refusal.value.output


async def test_no_file_of_a_published_generation_can_be_written_by_a_containers_user(world: World) -> None:
    generation = await world.ensure("", "alpha\n")
    for path in generation.path.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            continue
        if path.is_dir() or not status.st_size:
            assert status.st_uid in (0, UID)
        else:
            assert (status.st_uid, status.st_mode & 0o7022) == (0, 0), path


async def test_a_generation_with_missing_files_is_prepared_anew_and_runs_go_on(
    world: World, index: PackageIndex
) -> None:
    damaged = await world.ensure("", "alpha\n")
    for path in damaged.path.rglob("alpha.py"):
        path.unlink()
    await world.cache.verify()
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"


async def test_the_look_of_a_generation_stays_while_runs_use_it_and_others_are_made_of_it(world: World) -> None:
    first = await world.ensure("", "alpha\n")
    await world.run("import alpha; print(alpha.NAME)", "alpha\n")
    await world.ensure("", "alpha\nbeta\n")
    await world.run("import beta; print(beta.NAME)", "alpha\nbeta\n")
    held = world.cache.environments()
    await world.cache.verify()
    assert world.cache.environments() == held
    assert first.path.is_dir()


async def test_a_cache_too_large_keeps_what_a_container_uses_until_it_ends(
    world: World,
) -> None:
    main = "import alpha, time; print(alpha.NAME, flush=True); time.sleep(3); import beta; print(beta.NAME)"
    requirements = "alpha\nbeta\n"
    generation = await world.ensure("", requirements)
    slot = world.workshop.slot(main, files={"requirements.txt": requirements.encode()}, cache=generation.path)
    world.cache.pin(generation, slot.id)
    await slot.begin()
    await slot.said("alpha")
    world.cache._upkeep._size_limit = 1
    await world.cache.tidy()
    await world.ensure("# /// script\n# dependencies = ['alpha']\n# ///\n")
    world.cache._claims._leases.clear()
    await world.cache.tidy()
    ended = await slot.end()
    assert (ended.exit_code, ended.text.split()) == (0, ["alpha", "beta"])
