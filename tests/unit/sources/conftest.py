"""A mounted folder, and the control plane's catalog of it."""

import json
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.clock import Clock, ManualClock
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.mounted import MountedFolder, WallClock
from fastflow_controlplane.sources.reader import ANSWER_SECONDS
from fastflow_controlplane.sources.repository import SnapshotRepository

DEFAULTS = Limits(cpu_hard_milli_cores=500, memory_hard_bytes=128 * 1024**2)
LATER_NS = 3600 * 1_000_000_000


def at_rest() -> WallClock:
    """A clock to which every file changed an hour ago: nothing is half written, nothing is racy."""
    return WallClock(
        now_ns=lambda: time.time_ns() + LATER_NS, sleep=lambda _: pytest.fail("nothing is to be waited for")
    )


def catalog_of(
    root: Path,
    data_dir: Path,
    python_versions: Collection[str] = (),
    clock: Clock | None = None,
    answer_seconds: float = ANSWER_SECONDS,
) -> Catalog:
    """The catalog of one plain folder."""
    data_dir.mkdir(exist_ok=True)
    source = MountedFolder(root, SnapshotRepository(data_dir / "snapshots.git"), DEFAULTS, at_rest())
    return Catalog({"folder": source}, data_dir, lambda: python_versions, clock or ManualClock(), answer_seconds)


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
async def catalog(root: Path, data_dir: Path, python_versions: set[str]) -> AsyncIterator[Catalog]:
    catalog = catalog_of(root, data_dir, python_versions)
    yield catalog
    await catalog.close()


def make(folder: Path, main: str = "print(1)\n", **metadata: Any) -> Path:
    """Makes a pipeline; `metadata` goes into its pipeline.json."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(main)
    if metadata:
        (folder / "pipeline.json").write_text(json.dumps(metadata))
    return folder
