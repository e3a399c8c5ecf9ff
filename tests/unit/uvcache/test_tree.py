"""Trees of uv caches that somebody else has written: whatever stands there, nothing outside is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fastflow_agent.uvcache import tree

OWNER = os.geteuid()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "bucket-v0/inner").mkdir(parents=True)
    (folder / "bucket-v0/inner/payload").write_text("payload")
    return folder


@pytest.mark.parametrize("place", ["bucket-v0", "bucket-v0/inner"])
def test_a_link_in_a_folders_place_is_refused_and_nothing_is_written_through_it(
    source: Path, outside: Path, tmp_path: Path, place: str
) -> None:
    target = tmp_path / "target"
    (target / place).parent.mkdir(parents=True)
    (target / place).symlink_to(outside)
    with pytest.raises(tree.TreeFault):
        tree.link(source, target, OWNER)
    assert list(outside.iterdir()) == []


def test_a_link_in_a_files_place_stays_and_is_not_followed(source: Path, outside: Path, tmp_path: Path) -> None:
    (outside / "payload").write_text("outside")
    target = tmp_path / "target"
    (target / "bucket-v0/inner").mkdir(parents=True)
    (target / "bucket-v0/inner/payload").symlink_to(outside / "payload")
    tree.link(source, target, OWNER)
    assert (outside / "payload").read_text() == "outside"
    assert (target / "bucket-v0/inner/payload").is_symlink()


def test_what_the_target_has_already_stays_and_the_rest_is_added(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "bucket-v0/inner").mkdir(parents=True)
    (target / "bucket-v0/inner/payload").write_text("its own")
    (source / "bucket-v0/more").write_text("more")
    tree.link(source, target, OWNER)
    assert (target / "bucket-v0/inner/payload").read_text() == "its own"
    assert (target / "bucket-v0/more").samefile(source / "bucket-v0/more")
