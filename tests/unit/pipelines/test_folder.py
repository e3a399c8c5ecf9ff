"""A folder on a disk: nothing below its root is reached through a symbolic link, whatever is swapped meanwhile."""

import os
from pathlib import Path

import pytest
from fastflow.pipelines.folder import DiskFolder, FolderFault, Kind


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert [entry.name for entry in DiskFolder(tmp_path / "link").entries()] == ["file"]


def test_a_folder_swapped_for_a_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("x")
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    folder = DiskFolder(root).folder("folder")
    (root / "folder").rmdir()
    (root / "folder").symlink_to(tmp_path / "secret")
    with pytest.raises(FolderFault, match="folder: can not be read"):
        folder.entries()
    with pytest.raises(FolderFault), folder.open("file"):
        pass


def test_a_file_swapped_for_a_pipe_does_not_hold_up_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "main.py")
    assert DiskFolder(tmp_path).entries()[0].kind is Kind.OTHER
    with pytest.raises(FolderFault, match="is no file"), DiskFolder(tmp_path).open("main.py"):
        pass


def test_a_change_is_told_by_the_signature_even_if_its_time_is_set_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, (1, 1))
    before = DiskFolder(tmp_path).entries()[0].signature
    file.write_text("two")
    os.utime(file, (1, 1))
    assert DiskFolder(tmp_path).entries()[0].signature != before
