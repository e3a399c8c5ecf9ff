"""Deleting what others filled: whatever they left there, all of it goes, and nothing else does."""

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastflow.deletion import delete_trees

from tests.trees import NOBODY, not_root


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Room for a handful of descriptors more than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A folder that a user without rights may enter and write."""
    with tempfile.TemporaryDirectory(prefix="fastflow-test-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_tree_goes_with_all_that_is_in_it_and_its_neighbours_stay(tmp_path: Path) -> None:
    (tmp_path / "tree" / "folder" / "empty").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_text("x")
    (tmp_path / "tree" / os.fsdecode(b"no \xff text")).touch()
    os.mkfifo(tmp_path / "tree" / "pipe")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    delete_trees(tmp_path / "tree", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    delete_trees(tmp_path / "nothing", tmp_path / "nowhere" / "nothing")
    delete_trees()


def test_a_tree_deeper_than_python_calls_and_paths_reach_goes_with_a_handful_of_descriptors(
    tmp_path: Path, make_deep: Callable[[Path], None]
) -> None:
    (tmp_path / "tree").mkdir()
    make_deep(tmp_path / "tree")
    with few_descriptors():
        delete_trees(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_links_are_deleted_and_never_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("as it was")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "folder").symlink_to(kept)
    (tmp_path / "tree" / "file").symlink_to(kept / "file")
    (tmp_path / "link").symlink_to(kept)
    delete_trees(tmp_path / "tree", tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (kept / "file").read_text() == "as it was"


def test_a_folder_that_lies_behind_a_link_of_the_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "disk" / "tree").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    delete_trees(tmp_path / "data" / "tree")
    assert not (tmp_path / "disk" / "tree").exists()


@pytest.mark.parametrize("mode", [0o500, 0o400, 0o300, 0o100, 0])
def test_a_user_without_rights_deletes_folders_that_were_closed_to_it(anybodys: Path, mode: int) -> None:
    with not_root():
        inner = anybodys / "tree" / "closed" / "folder"
        inner.mkdir(parents=True)
        for folder in (inner, inner.parent, inner.parent.parent):
            (folder / "file").touch()
            folder.chmod(mode)
        delete_trees(anybodys / "tree")
    assert list(anybodys.iterdir()) == []


def test_what_a_link_points_to_is_not_opened_for_the_sake_of_a_closed_folder(anybodys: Path) -> None:
    with not_root():
        (anybodys / "kept").mkdir(mode=0o500)
        (anybodys / "tree").mkdir()
        (anybodys / "tree" / "link").symlink_to(anybodys / "kept")
        (anybodys / "tree").chmod(0)
        delete_trees(anybodys / "tree")
    assert (anybodys / "kept").stat().st_mode & 0o777 == 0o500


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put something there that another user can not delete")
def test_what_can_not_be_deleted_keeps_nothing_else_and_is_an_error(anybodys: Path) -> None:
    for name in ("a", "b", "c"):
        (anybodys / "tree" / name).mkdir(parents=True)
        (anybodys / "tree" / name / "file").touch()
        if name != "b":
            os.chown(anybodys / "tree" / name, NOBODY, NOBODY)
    (anybodys / "other").touch()
    os.chown(anybodys / "tree", NOBODY, NOBODY)
    with not_root(), pytest.raises(PermissionError):
        delete_trees(anybodys / "tree", anybodys / "other")
    assert sorted(str(path.relative_to(anybodys)) for path in anybodys.rglob("*")) == ["tree", "tree/b", "tree/b/file"]
    delete_trees(anybodys / "tree")
    assert list(anybodys.iterdir()) == []


def test_a_folder_that_is_moved_away_meanwhile_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "inner").mkdir()
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        real(name, dir_fd=dir_fd)
        (tmp_path / "tree" / "inner").rename(tmp_path / "elsewhere" / "moved")

    monkeypatch.setattr(os, "unlink", lambda name, *, dir_fd: (unlink if name == "file" else real)(name, dir_fd=dir_fd))
    with pytest.raises(OSError, match="moved"):
        delete_trees(tmp_path / "tree")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["inner", "moved"]
    monkeypatch.undo()
    delete_trees(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").touch()
    before = open_descriptors()

    def refuse(name: str, *, dir_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError, match="Input/output"):
        delete_trees(tmp_path / "tree")
    monkeypatch.undo()
    delete_trees(tmp_path / "tree")
    assert open_descriptors() == before
