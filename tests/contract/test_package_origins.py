"""Packages that come from an address or a repository: what is told of them is what runs have, with a real uv."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress, PreparerResult, PreparerSpec
from fastflow_agent.runtime.process import ProcessOptions, ProcessRuntime
from fastflow_agent.runtime.release import environments_folder
from fastflow_agent.uvcache import Generation, UvCache, constraints
from fastflow_agent.uvcache.holding import commits

from tests.slots import Addresses, Workshop, gitty, source_archive, tiny_wheel

NO_INDEX = "http://127.0.0.1:9/simple"
SAY = "import gitty; print(gitty.SAYS)"


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[Addresses]:
    addresses = Addresses(tmp_path)
    yield addresses
    addresses.close()


def with_login(url: str) -> str:
    return url.replace("//", "//user:s3cret@")


class Host:
    """An agent's uv cache and process runtime in a folder of their own."""

    def __init__(self, folder: Path, env_dir: Path) -> None:
        # What is asked for is all there is.
        egress = Egress(index_url=with_login(NO_INDEX))
        options = ProcessOptions(folder, environments_folder(env_dir), egress)
        self._runtime = ProcessRuntime(options)
        self._workshop = Workshop(self._runtime, folder, options.env_dir, folder / "uv")
        self.cache: UvCache

    async def open(self) -> None:
        self.cache = await UvCache.open(self._workshop.cache, self._runtime)

    async def close(self) -> None:
        await self.cache.settle()
        await self._workshop.clear()
        await self._runtime.aclose()

    async def preparer(self, files: dict[str, bytes], environment: dict[str, str]) -> PreparerResult:
        """How one preparer ends that fetches, builds and installs."""
        cache = self._workshop.new_cache("own", os.geteuid())
        spec = PreparerSpec("own", self._workshop.code("own", SAY, files), cache, environment=environment)
        return await self._runtime.run_preparer(spec)

    async def prepare(self, files: dict[str, bytes], main: str = "", packages: tuple[str, ...] = ()) -> Generation:
        return await self.cache.ensure(self._workshop.code("code", main, files), "", "sha256:here", packages)

    async def run(self, generation: Generation, files: dict[str, bytes], main: str = SAY) -> str:
        """What a program says that gets this environment, as an agent gives it."""
        slot = self._workshop.slot(main, files=files, cache=generation.path, offline=generation.offline)
        await slot.begin(constraints(generation.packages))
        ended = await slot.end()
        assert ended.exit_code == 0, ended.text
        return ended.text.splitlines()[-1]


@pytest.fixture
async def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Host, Host]]:
    # Interpreters of the system alone: each one more that uv has to ask costs every test.
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    with tempfile.TemporaryDirectory(prefix="fastflow-test-", dir="/dev/shm") as memory:
        made = Host(tmp_path / "one", Path(memory) / "one"), Host(tmp_path / "two", Path(memory) / "two")
        for host in made:
            await host.open()
        yield made
        for host in made:
            await host.close()


def requirements(*lines: str) -> dict[str, bytes]:
    return {"requirements.txt": "".join(f"{line}\n" for line in lines).encode()}


def told(generation: Generation, *names: str) -> list[str]:
    """What is told of these packages; the interpreter may have others."""
    return [package for package in generation.packages if package.split("=")[0].split(" ")[0] in names]


async def test_what_comes_from_an_address_or_the_code_is_told_with_where_without_a_login(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    web, web_wheel = tiny_wheel("web", "")
    near, near_wheel = tiny_wheel("near", "")
    (addresses.served / web).write_bytes(web_wheel)
    (addresses.served / "gitty-1.0.tar.gz").write_bytes(source_archive("gitty", gitty("from an archive")))
    lines = (
        f"web @ http://{addresses.host}/{web}?token=s3cret",
        f"gitty @ http://user:s3cret@{addresses.host}/gitty-1.0.tar.gz",
    )
    needs = requirements(*lines, f"./{near}") | {near: near_wheel}
    first, second = [await host.prepare(needs) for host in hosts]
    assert told(first, "web", "near", "gitty") == [
        f"gitty @ http://{addresses.host}/gitty-1.0.tar.gz",
        f"near @ file:///fastflow/code/{near}",
        f"web @ http://{addresses.host}/{web}",
    ]
    assert first.packages == second.packages
    assert await hosts[0].run(first, needs) == "from an archive"


async def test_a_branch_is_what_it_was_when_the_environment_was_prepared_in_all_its_runs(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    first = addresses.commit("first")
    needs = requirements(f"gitty @ {with_login(addresses.origin)}@main")
    prepared = await hosts[0].prepare(needs)
    assert told(prepared, "gitty") == [f"gitty @ {addresses.origin}@{first}"]
    assert prepared.offline
    second = addresses.commit("second")
    assert await hosts[0].run(prepared, needs) == "first"
    other = await hosts[1].prepare(needs)
    assert told(other, "gitty") == [f"gitty @ {addresses.origin}@{second}"]
    assert await hosts[1].run(other, needs) == "second"
    # Nobody needs to be asked for what is there.
    addresses.close()
    assert await hosts[0].run(prepared, needs) == "first"


async def test_a_repeated_run_gets_the_commit_of_the_first_on_a_host_that_holds_nothing(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    addresses.commit("first")
    needs = requirements(f"gitty @ git+file://{addresses.repository}@main")
    first = await hosts[0].prepare(needs)
    addresses.commit("second")
    again = await hosts[1].prepare(needs, packages=first.packages)
    assert again.packages == first.packages
    assert await hosts[1].run(again, needs) == "first"
    assert await hosts[1].run(await hosts[1].prepare(needs), needs) == "second"


async def test_a_commit_that_is_gone_gives_way_to_what_the_branch_is_now_and_is_not_told(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    addresses.commit("now")
    needs = requirements(f"gitty @ {addresses.origin}@main")
    now = await hosts[0].prepare(needs)
    gone = tuple(
        package.replace(package[-40:], "0" * 40) if "gitty" in package else package for package in now.packages
    )
    again = await hosts[1].prepare(needs, packages=gone)
    assert again.packages == now.packages
    assert await hosts[1].run(again, needs) == "now"


async def test_a_preparer_that_is_to_take_a_commit_ends_where_it_can_not_and_says_why(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    addresses.commit("now")
    package = f"gitty @ {addresses.origin}"
    result = await hosts[0].preparer(requirements(f"{package}@main"), commits([f"{package}@{'0' * 40}"]))
    text = result.output.decode()
    assert result.exit_code != 0, text
    assert "0" * 40 in text
    # Nothing was installed instead.
    assert "now" not in text.splitlines()


async def test_of_a_header_that_names_a_branch_the_branch_is_told_since_each_run_follows_it(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    addresses.commit("first")
    package = f"gitty @ {addresses.origin}"
    main = f'# /// script\n# dependencies = ["{package}@main"]\n# ///\n{SAY}\n'
    prepared = await hosts[0].prepare({}, main)
    assert told(prepared, "gitty") == [f"{package}@main"]
    second = addresses.commit("second")
    assert await hosts[0].run(prepared, {}, main) == "second"
    exact = main.replace("@main", f"@{second}")
    assert told(await hosts[0].prepare({}, exact), "gitty") == [f"{package}@{second}"]


async def test_no_login_of_an_index_is_kept_with_what_was_resolved(
    hosts: tuple[Host, Host], addresses: Addresses
) -> None:
    addresses.commit("first")
    prepared = await hosts[0].prepare(requirements(f"gitty @ {addresses.origin}@main"))
    assert (prepared.path / "resolved.txt").read_text().startswith("gitty @ git+")
    kept = [path for path in prepared.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in kept if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in repr(prepared)
