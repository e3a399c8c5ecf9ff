"""What a power cut leaves of an object database: libgit2 would never come back from reading it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_controlplane.sources.powercut import BOOT, damaged, is_of_this_boot
from fastflow_controlplane.sources.repository import DamagedRepository, SnapshotRepository

from tests.unit.sources.conftest import make


@pytest.fixture
def path(root: Path, tmp_path: Path) -> Path:
    """A database with a file that compresses well, one that does not, and a small one."""
    folder = make(root / "p")
    (folder / "long.txt").write_text("a\n" * 4_000_000)
    (folder / "noise").write_bytes(os.urandom(3_000_000))
    repository = SnapshotRepository(tmp_path / "snapshots.git")
    (tmp_path / "tree").write_text(repository.write(read_code(DiskFolder(folder))))
    repository.close()
    return tmp_path / "snapshots.git"


def objects(path: Path) -> list[Path]:
    return sorted(path.glob("objects/??/*"), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("which", [0, 1, -2, -1])
@pytest.mark.parametrize("cut", [lambda size: 0, lambda size: size // 2, lambda size: size - 6])
def test_an_object_that_was_cut_off_is_removed_after_a_boot_and_no_other_is(
    path: Path, which: int, cut: Callable[[int], int]
) -> None:
    file = objects(path)[which]
    file.chmod(0o600)
    os.truncate(file, cut(file.stat().st_size))
    others = [each for each in objects(path) if each != file]
    (path / BOOT).write_text("of another boot")
    repository = SnapshotRepository(path)
    assert objects(path) == others
    with pytest.raises(DamagedRepository):
        repository.folder((path.parent / "tree").read_text()).entries()
    assert is_of_this_boot(path)


def test_an_object_with_another_content_than_its_name_says_is_damaged(path: Path) -> None:
    one, other = objects(path)[:2]
    one.chmod(0o600)
    one.write_bytes(other.read_bytes())
    assert damaged(path) == [one]


def test_a_whole_database_outlives_a_boot(path: Path) -> None:
    (path / BOOT).unlink()
    assert damaged(path) == []
    repository = SnapshotRepository(path)
    entries = repository.folder((path.parent / "tree").read_text()).entries()
    assert [entry.name for entry in entries] == ["long.txt", "main.py", "noise"]


def test_objects_are_read_once_after_a_boot(path: Path) -> None:
    file = objects(path)[0]
    file.chmod(0o600)
    os.truncate(file, 5)
    SnapshotRepository(path).close()
    assert file.exists(), "the page cache holds what this boot wrote, whoever died"
    (path / BOOT).write_text("of another boot")
    SnapshotRepository(path).close()
    assert not file.exists()
