"""A mounted folder, a Git repository that is followed, and the control plane's catalog of them."""

import json
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastflow.pipelines.bundle import Bundle
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.clock import Clock, ManualClock
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchProcess, Workplace
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.model import Changes, PinnedCode, RunCode
from fastflow_controlplane.sources.mounted import MountedFolder, WallClock
from fastflow_controlplane.sources.reader import ANSWER_SECONDS
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address
from fastflow_controlplane.sources.repository import SnapshotRepository

from tests.origins import Origin

DEFAULTS = Limits(cpu_hard_milli_cores=500, memory_hard_bytes=128 * 1024**2)
PATIENCE_SECONDS = 60.0
FETCH_SECONDS = 60.0
LATER_NS = 3600 * 1_000_000_000


def at_rest() -> WallClock:
    """A clock to which every file changed an hour ago: nothing is half written, nothing is racy."""
    return WallClock(
        now_ns=lambda: time.time_ns() + LATER_NS, sleep=lambda _: pytest.fail("nothing is to be waited for")
    )


class Runs:
    """The runs of the database, as far as a catalog asks for them."""

    def __init__(self) -> None:
        self._codes: dict[str, RunCode] = {}

    def add(self, *codes: PinnedCode, tree: str = "") -> None:
        """Adds runs that are pinned to `codes`, or, of these bundles, to a `tree`."""
        for code in codes:
            self._codes[code.bundle_digest] = RunCode(Bundle(code.bundle_digest, code.bundle_size), tree or code.tree)

    async def code(self, digest: str) -> RunCode | None:
        """Tells what those with a bundle are pinned to."""
        return self._codes.get(digest)


def catalog_of(
    root: Path,
    data_dir: Path,
    python_versions: Collection[str] = (),
    clock: Clock | None = None,
    answer_seconds: float = ANSWER_SECONDS,
    runs: Runs | None = None,
) -> Catalog:
    """The catalog of one plain folder."""
    data_dir.mkdir(exist_ok=True)
    code_of_runs = (runs or Runs()).code
    source = MountedFolder(root, SnapshotRepository(data_dir / "snapshots.git"), DEFAULTS, at_rest())
    return Catalog(
        {"folder": source}, data_dir, lambda: python_versions, code_of_runs, clock or ManualClock(), answer_seconds
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def python_versions() -> set[str]:
    return set()


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
async def catalog(root: Path, data_dir: Path, python_versions: set[str], runs: Runs) -> AsyncIterator[Catalog]:
    catalog = catalog_of(root, data_dir, python_versions, runs=runs)
    yield catalog
    await catalog.close()


def make(folder: Path, main: str = "print(1)\n", **metadata: Any) -> Path:
    """Makes a pipeline; `metadata` goes into its pipeline.json."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(main)
    if metadata:
        (folder / "pipeline.json").write_text(json.dumps(metadata))
    return folder


def on_disk(data_dir: Path, pinned: PinnedCode) -> Path:
    """The bundle of `pinned`, as the control plane keeps it."""
    return data_dir / "bundles" / "sha256" / pinned.bundle_digest.removeprefix("sha256:")


@dataclass
class Followed:
    """A Git source that is fetched from `origin` when a test says so."""

    origin: Origin
    source: GitSource
    runs: Runs
    catalog: Catalog
    process: FetchProcess

    async def sync(self) -> Changes:
        commit = await self.process.fetch(Credentials())
        found = [Changes()]
        self.catalog.on_source_change = lambda _, changes: found.append(changes)
        await self.catalog.readers["git"].take(lambda: self.source.advance(commit), PATIENCE_SECONDS)
        return found[-1]

    def names(self) -> list[str]:
        return [view.name for view in self.catalog.list()]

    def problems(self, name: str) -> list[str]:
        return [str(problem) for problem in self.catalog.get(name).problems]


@asynccontextmanager
async def follow(origin: Origin, data: Path, *, branch: str = "", folder: str = "") -> AsyncIterator[Followed]:
    mirror = Mirror(data / "repository.git")
    source = GitSource("git", Upstream(origin.url, branch), folder, mirror, DEFAULTS)
    remote = Remote("git", parse_address(origin.url), branch)
    process = FetchProcess(remote, Workplace(data / "repository.git", data / "home"), FETCH_SECONDS)
    runs = Runs()
    catalog = Catalog({"git": source}, data, set, runs.code, ManualClock())
    try:
        yield Followed(origin, source, runs, catalog, process)
    finally:
        await process.close()
        await catalog.close()


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin.git")


@pytest.fixture
async def followed(origin: Origin, data_dir: Path) -> AsyncIterator[Followed]:
    data_dir.mkdir()
    async with follow(origin, data_dir) as followed:
        yield followed
