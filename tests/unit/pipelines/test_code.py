"""Code: which files of a folder are the pipeline's, and which links stay inside."""

from pathlib import Path

import pytest
from fastflow.pipelines import code
from fastflow.pipelines.code import LinkFault, read_code, refused_links, resolve
from fastflow.pipelines.folder import DiskFolder, FolderFault
from hypothesis import given
from hypothesis import strategies as st


def paths(folder: Path) -> list[str]:
    return [file.path for file in read_code(DiskFolder(folder)).files]


def test_everything_is_code_but_what_tools_leave(tmp_path: Path) -> None:
    for name in ("main.py", ".env", "data.csv", "package/x.py", ".streamlit/config.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (".git", ".venv", "__pycache__", "package/__pycache__", ".mypy_cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        (tmp_path / name / "link").symlink_to("/usr/bin/python3")
    (tmp_path / "empty").mkdir()
    assert paths(tmp_path) == [".env", ".streamlit/config.toml", "data.csv", "main.py", "package/x.py"]


def test_code_is_sorted_by_the_bytes_of_whole_paths(tmp_path: Path) -> None:
    for name in ("a/z", "a.py", "a0", "ä", "🎈", "\uffff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert paths(tmp_path) == ["a.py", "a/z", "a0", "ä", "\uffff", "🎈"]


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("MAX_CODE_FILES", 2, "the code has more than 2 files"),
        ("MAX_CODE_DEPTH", 1, "lies deeper than 1 folders"),
    ],
)
def test_too_much_of_anything_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, said: str
) -> None:
    for name in ("a", "b/c", "b/d/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert read_code(DiskFolder(tmp_path)).problems == ()
    monkeypatch.setattr(code, bound, value)
    (problem,) = read_code(DiskFolder(tmp_path)).problems
    assert said in problem.message


def test_more_bytes_than_are_allowed_are_told_once_with_the_largest_file(tmp_path: Path) -> None:
    for name, size in (("a", 1000), ("b", 2000), ("c", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert read_code(DiskFolder(tmp_path), 3500).problems == ()
    (problem,) = read_code(DiskFolder(tmp_path), 2048).problems
    assert "the code has more than 2 KiB (b alone has 2 KiB); move data elsewhere" in problem.message


def test_a_folder_that_can_not_be_read_at_all_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(FolderFault):
        read_code(DiskFolder(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("links", "path", "end"),
    [
        ({}, "a/b", "a/b"),
        ({"l": "a"}, "l/b", "a/b"),
        ({"d/l": "../x"}, "d/l", "x"),
        ({"l": "."}, "l", ""),
        ({"l": "./a//b/"}, "l", "a/b"),
        ({"d/up": ".."}, "d/up/d/up/f", "f"),
    ],
)
def test_a_link_is_followed_as_the_kernel_does(links: dict[str, str], path: str, end: str) -> None:
    assert resolve(path, links) == end


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ({"l": "/"}, "absolute"),
        ({"l": ".."}, "leaves"),
        ({"l": "a/../.."}, "leaves"),
        ({"l": "l"}, "circles"),
        ({"l": "m", "m": "l/x"}, "circles"),
    ],
)
def test_a_link_that_leads_out_or_nowhere_is_a_fault(links: dict[str, str], said: str) -> None:
    with pytest.raises(LinkFault, match=said):
        resolve("l", links)


def test_a_link_that_leaves_by_way_of_another_is_refused() -> None:
    refused = refused_links({"deep/dir/up": "../..", "way_out": "deep/dir/up/../x", "fine": "deep/dir/up/x"})
    assert set(refused) == {"way_out"}


_part = st.sampled_from(["a", "b", "..", ".", "l", "m"])
_path = st.lists(_part, min_size=1, max_size=6).map("/".join)


@given(st.dictionaries(st.sampled_from(["l", "m", "a/l", "b/l", "a/b/l"]), _path, min_size=1))
def test_what_is_not_refused_really_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("links") / "very" / "deep" / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "b").mkdir()
    for path, target in links.items():
        (root / path).symlink_to(target)
    refused = refused_links(links)
    for path in links.keys() - refused.keys():
        try:
            end = (root / path).resolve()
        except (OSError, RuntimeError):
            continue
        assert end.is_relative_to(root), (path, end)
        if (root / path).exists():
            assert end == (root / resolve(path, links)).resolve()
