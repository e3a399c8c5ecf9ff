"""A mounted folder: read only where it changed, and never half."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow.pipelines.code import Code, read_code
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.folder import DiskFolder, FolderFault
from fastflow_controlplane.sources.mounted import (
    READ_ATTEMPTS,
    SETTLE_SECONDS,
    KeepsChanging,
    MountedFolder,
    WallClock,
)
from fastflow_controlplane.sources.repository import SnapshotRepository, StorageFault

from tests.unit.sources.conftest import DEFAULTS, at_rest, make


class CountingRepository(SnapshotRepository):
    """Counts how often a pipeline is read, and lets a test act while that happens."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes = 0
        self.after_write: Callable[[], object] = lambda: None

    def write(self, code: Code) -> str:
        self.writes += 1
        tree = super().write(code)
        self.after_write()
        return tree


@pytest.fixture
def repository(data_dir: Path) -> CountingRepository:
    return CountingRepository(data_dir / "snapshots.git")


@pytest.fixture
def source(root: Path, repository: CountingRepository) -> MountedFolder:
    return MountedFolder(root, repository, DEFAULTS, at_rest())


def test_what_did_not_change_is_not_read_again(
    root: Path, source: MountedFolder, repository: CountingRepository
) -> None:
    make(root / "p")
    make(root / "q")
    first = source.scan().snapshots
    assert repository.writes == 2
    (root / "q" / "main.py").write_text("print(2)\n")
    second = source.scan().snapshots
    assert repository.writes == 3
    assert second["p"] is first["p"]
    assert second["q"].tree != first["q"].tree


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "main.py").write_text("print(2)\n"),
        lambda folder: (folder / "main.py").chmod(0o755),
        lambda folder: (folder / "new.py").touch(),
        lambda folder: (folder / "sub" / "x.py").unlink(),
        lambda folder: ((folder / "link").unlink(), (folder / "link").symlink_to("sub/x.py")),
    ],
    ids=["content", "mode", "new", "gone", "link"],
)
def test_every_change_of_the_code_is_another_tree(
    root: Path, source: MountedFolder, change: Callable[[Path], object]
) -> None:
    folder = make(root / "p")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.py").write_text("x")
    (folder / "link").symlink_to("main.py")
    before = source.scan().snapshots["p"]
    change(folder)
    assert source.scan().snapshots["p"].tree != before.tree


def test_a_change_of_nothing_but_times_is_the_same_tree(root: Path, source: MountedFolder) -> None:
    folder = make(root / "p")
    before = source.scan().snapshots["p"]
    os.utime(folder / "main.py", (1, 1))
    assert source.scan().snapshots["p"] is before


def test_a_file_that_changed_a_moment_ago_is_read_again(root: Path, repository: CountingRepository) -> None:
    clock = WallClock(now_ns=lambda: time.time_ns() + 1_000_000_000)
    source = MountedFolder(root, repository, DEFAULTS, clock)
    make(root / "p")
    source.scan()
    source.scan()
    assert repository.writes == 2, "a second change within the same tick would not show"


def test_a_file_that_changes_right_now_is_waited_for(root: Path, repository: CountingRepository) -> None:
    folder = make(root / "p", main="half")
    changed_ns = (folder / "main.py").stat().st_ctime_ns
    now = [changed_ns + 1_000_000]

    def sleep(seconds: float) -> None:
        assert 0 < seconds <= SETTLE_SECONDS
        (folder / "main.py").write_text("half and the other half")
        now[0] = time.time_ns() + 1_000_000_000

    source = MountedFolder(root, repository, DEFAULTS, WallClock(lambda: now[0], sleep))
    snapshot = source.scan().snapshots["p"]
    with repository.folder(snapshot.tree).open("main.py") as file:
        assert file.read() == b"half and the other half"
    assert repository.writes == 1


def test_a_pipeline_changed_while_it_is_read_is_read_once_more(
    root: Path, source: MountedFolder, repository: CountingRepository
) -> None:
    folder = make(root / "p", main="one")

    def edit() -> None:
        repository.after_write = lambda: None
        (folder / "main.py").write_text("two")

    repository.after_write = edit
    snapshot = source.scan().snapshots["p"]
    with repository.folder(snapshot.tree).open("main.py") as file:
        assert file.read() == b"two"


def test_a_pipeline_that_keeps_changing_is_never_taken_half(
    root: Path, source: MountedFolder, repository: CountingRepository
) -> None:
    folder = make(root / "p", main="at rest")
    known = source.scan().snapshots["p"]
    (folder / "log.txt").touch()
    repository.after_write = lambda: (folder / "log.txt").write_text(str(repository.writes))
    assert source.scan().snapshots["p"] is known
    with pytest.raises(KeepsChanging, match=r'the pipeline "p" keeps changing while it is read: log\.txt'):
        source.rescan(known)
    assert repository.writes == 1 + 2 * READ_ATTEMPTS


def test_a_new_pipeline_that_keeps_changing_is_invalid_until_it_rests(
    root: Path, source: MountedFolder, repository: CountingRepository
) -> None:
    folder = make(root / "p")
    repository.after_write = lambda: (folder / "main.py").write_text(str(repository.writes))
    snapshot = source.scan().snapshots["p"]
    assert snapshot.pipeline.state is PipelineState.INVALID
    assert "keeps changing" in snapshot.pipeline.problems[0].message
    repository.after_write = lambda: None
    assert source.scan().snapshots["p"].pipeline.state is PipelineState.READY


def test_code_that_can_not_travel_has_no_bundle(root: Path, source: MountedFolder) -> None:
    folder = make(root / "p")
    (folder / "up").symlink_to("../..")
    snapshot = source.scan().snapshots["p"]
    assert (snapshot.bundle, snapshot.tree) == (None, "")
    assert [problem.file for problem in snapshot.pipeline.problems] == ["up"]


def test_a_name_that_git_does_not_allow_is_told(root: Path, source: MountedFolder) -> None:
    folder = make(root / "p")
    (folder / "sub").mkdir()
    (folder / "sub" / "git~1").touch()
    (problem,) = source.scan().snapshots["p"].pipeline.problems
    assert problem.file == "sub/git~1"
    assert "rename it" in problem.message


def test_metadata_that_leaves_the_folder_makes_the_pipeline_invalid(root: Path, source: MountedFolder) -> None:
    (root / "common.json").write_text('{"mem_hard_limit": "8g"}')
    (make(root / "p") / "pipeline.json").symlink_to("../common.json")
    pipeline = source.scan().snapshots["p"].pipeline
    assert pipeline.state is PipelineState.INVALID
    assert [problem.file for problem in pipeline.problems] == ["pipeline.json"]


def test_a_root_that_is_gone_is_a_fault(root: Path, source: MountedFolder) -> None:
    root.rmdir()
    with pytest.raises(FolderFault, match="No such file or directory; make or mount it, or name another one"):
        source.scan()


def test_a_database_that_can_not_be_written_is_said(root: Path, data_dir: Path, repository: CountingRepository) -> None:
    make(root / "p")
    objects = data_dir / "snapshots.git" / "objects"
    for item in sorted(objects.rglob("*"), reverse=True):
        item.rmdir()
    objects.rmdir()
    objects.write_text("not a folder")
    with pytest.raises(StorageFault):
        repository.write(read_code(DiskFolder(root / "p")))
