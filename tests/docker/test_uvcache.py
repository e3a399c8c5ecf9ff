"""The uv cache with the real preparer, the real uv and a package index that counts who asks it."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.uvcache import EnvironmentFault, Generation, UvCache

from tests.slots import Slot, Workshop, tiny_wheel

UID = 1000
IMAGE = "sha256:as the tests call it"


class Index:
    """A package index on the host's end of Docker's bridge."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                content = index.answer(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET  # noqa: N815  # as http.server calls it

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((_bridge_address(), 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}/simple"

    def add(self, project: str, file: str, content: bytes) -> None:
        self.files.setdefault(project, {})[file] = content

    def answer(self, path: str) -> bytes | None:
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return self.files[parts[1]][parts[2]]
        if parts[0] != "simple" or parts[-1] not in self.files:
            return None
        links = [
            f'<a href="/files/{parts[1]}/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
            for name, content in self.files[parts[1]].items()
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _bridge_address() -> str:
    command = ["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"]
    config = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]
    return str(config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts()))


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    for name in ("alpha", "beta"):
        index.add(name, *tiny_wheel(name, f"NAME = {name!r}\n"))
    yield index
    index.close()


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
        return await self.cache.ensure(self.code(main, requirements), "", IMAGE)

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
async def world(docker_options: Callable[..., DockerOptions], index: Index) -> AsyncIterator[World]:
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
    shutil.rmtree(folder)


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


async def test_a_warm_start_needs_no_network(world: World, index: Index) -> None:
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


async def test_a_packages_build_script_can_not_change_what_another_imports(world: World, index: Index) -> None:
    build = """
import pathlib, shutil
failures = []
for found in pathlib.Path("/uvcache").rglob("alpha.py"):
    for attempt in (lambda: found.chmod(0o666), lambda: found.open("r+").close()):
        try:
            attempt()
        except PermissionError as error:
            failures.append(error)
        else:
            found.write_text("NAME = 'evil'")

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "gamma-1.0-py3-none-any.whl"
    shutil.copy(pathlib.Path(__file__).with_name(name), wheel_directory)
    return name
"""
    name, wheel = tiny_wheel("gamma", "NAME = 'gamma'\n")
    project = '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n'
    members = {"pyproject.toml": project.encode(), "build.py": build.encode(), name: wheel}
    members["PKG-INFO"] = b"Metadata-Version: 2.1\nName: gamma\nVersion: 1.0\n"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for path, data in members.items():
            member = tarfile.TarInfo(f"gamma-1.0/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    index.add("gamma", "gamma-1.0.tar.gz", sink.getvalue())

    first = await world.ensure("", "alpha\n")
    before = content(first.path)
    assert await world.run("import gamma; print(gamma.NAME)", "gamma\n") == "gamma"
    assert content(first.path) == before
    assert await world.run("import alpha; print(alpha.NAME)", "alpha\n") == "alpha"


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
