"""Every kind of folder reads the same, so that discovery and bundles do not care where a pipeline lies."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder, Folder, FolderFault, Kind, read_file
from fastflow_controlplane.sources.repository import SnapshotRepository


def on_disk(source: Path, _data: Path) -> Folder:
    return DiskFolder(source)


def in_a_git_tree(source: Path, data: Path) -> Folder:
    repository = SnapshotRepository(data / "snapshots.git")
    return repository.folder(repository.write(read_code(DiskFolder(source))))


@pytest.fixture(params=[on_disk, in_a_git_tree])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    source = tmp_path / "source"
    (source / "sub" / "deeper").mkdir(parents=True)
    (source / "main.py").write_text("print(1)\n")
    (source / "empty").touch()
    (source / "tool").write_bytes(b"\0\xff")
    (source / "tool").chmod(0o755)
    (source / "sub" / "ü\n.txt").write_text("umlaut")
    (source / "sub" / "deeper" / "large").write_bytes(b"0123456789" * 300_000)
    (source / "link").symlink_to("sub/deeper/large")
    make: Callable[[Path, Path], Folder] = request.param
    return make(source, tmp_path)


def test_entries_are_sorted_and_tell_kind_size_and_mode(folder: Folder) -> None:
    assert [(entry.name, entry.kind, entry.size, entry.executable) for entry in folder.entries()] == [
        ("empty", Kind.FILE, 0, False),
        ("link", Kind.LINK, 16, False),
        ("main.py", Kind.FILE, 9, False),
        ("sub", Kind.FOLDER, 0, False),
        ("tool", Kind.FILE, 2, True),
    ]
    assert [entry.name for entry in folder.folder("sub").entries()] == ["deeper", "ü\n.txt"]


def test_files_are_read_whole(folder: Folder) -> None:
    assert read_file(folder, "main.py", 9) == b"print(1)\n"
    assert read_file(folder, "empty", 0) == b""
    with folder.folder("sub").folder("deeper").open("large") as file:
        assert file.read(4) == b"0123"
        assert len(file.read()) == 2_999_996
        assert file.read(1) == b""


def test_a_file_past_its_limit_is_not_read(folder: Folder) -> None:
    with pytest.raises(FolderFault, match=r"main\.py: has more than 8 bytes"):
        read_file(folder, "main.py", 8)


def test_links_are_read_and_never_followed(folder: Folder) -> None:
    assert folder.target("link") == "sub/deeper/large"
    with pytest.raises(FolderFault), folder.open("link"):
        pass


@pytest.mark.parametrize("name", ["missing", "sub"])
def test_what_is_no_file_can_not_be_opened(folder: Folder, name: str) -> None:
    with pytest.raises(FolderFault), folder.open(name):
        pass


@pytest.mark.parametrize("name", ["missing", "main.py", "link"])
def test_what_is_no_folder_can_not_be_listed(folder: Folder, name: str) -> None:
    with pytest.raises(FolderFault):
        folder.folder(name).entries()


def test_the_code_of_every_folder_is_the_same(folder: Folder) -> None:
    code = read_code(folder)
    assert code.problems == ()
    assert [(file.path, file.entry.size, file.target) for file in code.files] == [
        ("empty", 0, ""),
        ("link", 16, "sub/deeper/large"),
        ("main.py", 9, ""),
        ("sub/deeper/large", 3_000_000, ""),
        ("sub/ü\n.txt", 6, ""),
        ("tool", 2, ""),
    ]
