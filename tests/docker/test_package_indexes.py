"""Package indexes as hosts have them: private ones, ones that are down, and packages that are none."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import pytest
from fastflow_agent.runtime.base import Egress
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.indexes import Indexes
from fastflow_agent.uvcache import EnvironmentFault, UvCache

from tests.slots import PackageIndex, Workshop, bridge_address, built_source, gitty, source_archive, tiny_wheel

UID = 1000
IMAGE = "sha256:as the tests call it"
PASSWORD = "s3cret-word"

TELLTALE = """
import os
def build_wheel(*arguments, **options):
    raise RuntimeError(dict(os.environ))
"""


@pytest.fixture
def public() -> Iterator[PackageIndex]:
    index = PackageIndex(bridge_address())
    index.add("alpha", *tiny_wheel("alpha", "NAME = 'public'\n"))
    index.add("broken", "broken-1.0.tar.gz", source_archive("broken", built_source(TELLTALE)))
    yield index
    index.close()


@pytest.fixture
def private() -> Iterator[PackageIndex]:
    index = PackageIndex(bridge_address(), f"builder:{PASSWORD}")
    index.add("alpha", *tiny_wheel("alpha", "NAME = 'private'\n"))
    index.add("inhouse", *tiny_wheel("inhouse", "NAME = 'inhouse'\n"))
    yield index
    index.close()


@dataclass
class Host:
    """A uv cache on a host with these indexes; its runs can reach nothing."""

    agent_id: str
    folder: Path
    cache: UvCache
    workshop: Workshop

    async def prepare(self, requirements: str, main: str = "") -> Path:
        files = {"requirements.txt": requirements.encode()} if requirements else {}
        code = self.workshop.code("prepare", main, files)
        generation = await self.cache.ensure(code, "", IMAGE)
        # Else what it replaced would go while a test looks at all there is.
        await self.cache.settle()
        return generation.path

    async def run(self, main: str, requirements: str) -> str:
        cache = await self.prepare(requirements)
        ended = await self.workshop.slot(main, files={"requirements.txt": requirements.encode()}, cache=cache).run()
        assert ended.exit_code == 0, ended.text
        return ended.text

    def preparers(self) -> list[dict[str, Any]]:
        """Its living preparers as `docker inspect` shows them."""
        labels = ("org.fastflow.preparer", f"org.fastflow.agent={self.agent_id}")
        with docker.APIClient() as engine:
            living = engine.containers(filters={"label": list(labels)})
            return [engine.inspect_container(container["Id"]) for container in living]

    def generations(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "generations").iterdir())


@pytest.fixture
async def host_of(docker_options: Callable[..., DockerOptions]) -> AsyncIterator[Callable[[Egress], Awaitable[Host]]]:
    async with AsyncExitStack() as opened:

        async def connect(egress: Egress) -> Host:
            preparing = docker_options(egress=egress)
            connected = DockerRuntime(preparing)
            options = docker_options(egress=replace(egress, network="none"))
            alone = DockerRuntime(options)
            folder = options.data_dir / f"uv-{os.urandom(4).hex()}"
            cache = await UvCache.open(folder, connected, owner=UID, index_url=Indexes.of(egress).names)
            host = Host(preparing.agent_id, folder, cache, Workshop(alone, options.data_dir, options.env_dir, folder))
            opened.callback(shutil.rmtree, folder)
            # What it notes and removes in the background would go on in a folder that is being removed.
            opened.push_async_callback(cache.settle)
            opened.push_async_callback(alone.aclose)
            opened.push_async_callback(connected.aclose)
            opened.push_async_callback(host.workshop.clear)
            return host

        yield connect


HostOf = Callable[[Egress], Awaitable[Host]]
SEEN = "import alpha, inhouse, os; print(alpha.NAME, inhouse.NAME, os.environ)"


def with_login(url: str) -> str:
    return url.replace("://", f"://builder:{PASSWORD}@")


async def test_a_private_index_serves_preparers_and_no_run_learns_its_login(
    host_of: HostOf, public: PackageIndex, private: PackageIndex
) -> None:
    host = await host_of(Egress(index_url=public.url, extra_index_urls=(with_login(private.url),)))
    said = await host.run(SEEN, "alpha\ninhouse\n")
    # The extra index goes first.
    assert said.startswith("private inhouse ")
    assert private.url in said
    assert PASSWORD not in said
    files = [path for path in host.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


LOOK = """
import pathlib
for environment in pathlib.Path("/proc").glob("*/environ"):
    try:
        seen = environment.read_bytes()
    except OSError:
        continue
    with open("/uvcache/seen", "ab") as file:
        file.write(seen)
"""
CURIOUS = f"import base64; exec(base64.b64decode({b64encode(LOOK.encode())!r}), {{}})\n"
"""Line of a .pth file: code of a wheel that runs with every Python that sees it, and notes what all processes know."""


@pytest.mark.parametrize(
    ("requirements", "header", "seen"),
    [
        ("curious\n", "", False),
        ("", '# dependencies = ["curious"]\n', False),
        # What the README warns of, and no more.
        ("curious\ngitty\n", "", True),
        ("", '# dependencies = ["curious"]\n# [tool.uv]\n# prerelease = "allow"\n', True),
    ],
)
async def test_code_of_wheels_learns_the_login_only_where_something_may_have_to_be_built(
    host_of: HostOf, private: PackageIndex, requirements: str, header: str, seen: bool
) -> None:
    private.add("curious", *tiny_wheel("curious", "", more={"curious.pth": CURIOUS}))
    private.add("gitty", "gitty-1.0.tar.gz", source_archive("gitty", gitty("built")))
    host = await host_of(Egress(index_url=with_login(private.url)))
    main = f"# /// script\n{header}# ///\n" if header else ""
    found = (await host.prepare(requirements, main) / "seen").read_bytes()
    assert b"UV_CACHE_DIR=" in found
    assert (PASSWORD.encode() in found) is seen


async def test_a_login_from_a_file_serves_as_well(
    host_of: HostOf, public: PackageIndex, private: PackageIndex, tmp_path: Path
) -> None:
    logins = tmp_path / "netrc"
    host = await host_of(Egress(index_url=public.url, extra_index_urls=(private.url,), index_netrc=logins))
    logins.write_text(f"machine {bridge_address()} login builder password {PASSWORD}\n")
    assert (await host.run(SEEN, "alpha\ninhouse\n")).startswith("private inhouse ")


async def test_the_engine_shows_no_login_of_a_living_preparer(host_of: HostOf, private: PackageIndex) -> None:
    shown: list[dict[str, Any]] = []
    host = await host_of(Egress(index_url=with_login(private.url)))
    private.on_request = lambda: shown.extend(host.preparers())
    await host.prepare("inhouse\n")
    assert shown
    assert PASSWORD not in json.dumps(shown)


async def test_a_living_preparer_gives_way_to_runs_as_the_engine_and_the_kernel_see_it(
    host_of: HostOf, public: PackageIndex
) -> None:
    seen: list[tuple[dict[str, Any], Path, float, int]] = []

    host = await host_of(Egress(index_url=public.url))

    def look() -> None:
        for container in host.preparers():
            process = Path("/proc") / str(container["State"]["Pid"])
            adjustment = int((process / "oom_score_adj").read_text())
            seen.append((container["HostConfig"], *_cpu_weight(process), adjustment))

    public.on_request = look
    await host.prepare("alpha\n")
    options = DockerOptions("", Path(), Path(), "")
    assert seen
    for told, group, weight, adjustment in seen:
        assert told["CpuShares"] == options.preparer_cpu_shares
        assert told["OomScoreAdj"] == adjustment == options.preparer_oom_score_adj > options.oom_score_adj
        assert told["Memory"] == told["MemorySwap"] == options.preparer_memory_bytes
        # Beside the groups of slots: elsewhere it would not be weighed against them.
        assert group.parent.name in ("fastflow", "fastflow.slice")
        assert weight < 0.25


def _cpu_weight(process: Path) -> tuple[Path, float]:
    """The control group of a container's first process, and its share of CPU as a multiple of the kernel's default."""
    for line in (process / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        relative = path.strip("/")
        if "cpu" in controllers.split(","):
            shares = Path("/sys/fs/cgroup/cpu") / relative / "cpu.shares"
            return Path(path), int(shares.read_text()) / 1024
        weight = Path("/sys/fs/cgroup") / relative / "cpu.weight"
        if number == "0" and weight.exists():
            return Path(path), int(weight.read_text()) / 100
    raise AssertionError("no control group weighs CPU")


async def test_a_missing_login_is_told_with_what_to_do(host_of: HostOf, private: PackageIndex) -> None:
    host = await host_of(Egress(index_url=private.url))
    with pytest.raises(EnvironmentFault, match="give this agent a login for that index, by FASTFLOW_INDEX_NETRC"):
        await host.prepare("inhouse\n")


@pytest.mark.parametrize(
    ("requirements", "words"),
    [
        ("no-such-package\n", r"no-such-package was not found.*To do: correct the name in requirements\.txt"),
        ("alpha==9\n", r"no version of alpha==9.*To do: correct the versions in requirements\.txt"),
        ("alpha\nalpha=>1\n", r"=>.*To do: correct that line of requirements\.txt"),
        ("./package\n", r"Distribution not found at.*To do: name a file that lies in the pipeline's folder"),
        ("broken\n", r"Failed to build `broken==1\.0`.*To do: choose a version that has a wheel"),
    ],
)
async def test_requirements_that_can_not_be_met_say_what_to_do_and_change_nothing(
    host_of: HostOf, public: PackageIndex, requirements: str, words: str
) -> None:
    host = await host_of(Egress(index_url=with_login(public.url)))
    await host.prepare("alpha\n")
    before = host.generations()
    with pytest.raises(EnvironmentFault, match=words) as fault:
        await host.prepare(requirements)
    # A build script sees what uv sees.
    assert PASSWORD.encode() not in fault.value.output
    assert PASSWORD not in str(fault.value)
    assert host.generations() == before
    assert await host.run("import alpha; print(alpha.NAME)", "alpha\n") == "public"


async def test_an_index_that_is_down_stops_no_run_whose_packages_are_here(
    host_of: HostOf, public: PackageIndex
) -> None:
    host = await host_of(Egress(index_url=public.url))
    await host.prepare("alpha\n")
    public.close()
    assert await host.run("import alpha; print(alpha.NAME)", "alpha\n") == "public"
    with pytest.raises(EnvironmentFault, match="To do: see whether that address can be reached from this agent"):
        await host.prepare("broken\n")
