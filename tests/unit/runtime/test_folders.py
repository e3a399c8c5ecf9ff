"""The folders of a slot, and the template of all."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import RuntimeFault, SlotPaths
from fastflow_agent.runtime.folders import make_slot_folders, make_template

SLOT = SlotId("0123456789abcdef")


@pytest.fixture
def paths(tmp_path: Path) -> SlotPaths:
    (tmp_path / "env").mkdir()
    return SlotPaths.of(tmp_path / "data", tmp_path / "env", SLOT)


def test_folders_are_made_once_and_what_stands_in_them_stays(paths: SlotPaths) -> None:
    make_slot_folders(paths, os.geteuid())
    paths.log.write_text("written")
    (paths.tmp / "file").touch()
    make_slot_folders(paths, os.geteuid())
    assert paths.log.read_text() == "written"
    assert (paths.tmp / "file").exists()
    assert oct(paths.root.stat().st_mode & 0o777) == "0o700"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_folder_that_a_dead_agent_had_made_but_not_given_away_is_given_away(
    paths: SlotPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(os, "chown", die)
        with pytest.raises(KeyboardInterrupt):
            make_slot_folders(paths, 1000)
    make_slot_folders(paths, 1000)
    assert {folder.stat().st_uid for folder in (paths.out, paths.tmp, paths.upper, paths.work)} == {1000}


def test_a_log_that_became_a_link_is_not_followed(paths: SlotPaths, tmp_path: Path) -> None:
    make_slot_folders(paths, os.geteuid())
    paths.log.unlink()
    paths.log.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        make_slot_folders(paths, os.geteuid())
    assert not (tmp_path / "victim").exists()


def test_a_folder_of_environments_that_somebody_removed_is_made_again_where_no_secret_reaches_a_disk(
    tmp_path: Path,
) -> None:
    with TemporaryDirectory(dir="/dev/shm") as memory:
        paths = SlotPaths.of(tmp_path / "data", Path(memory) / "fastflow" / "env", SLOT)
        make_slot_folders(paths, os.geteuid())
        assert (paths.env / "release").is_fifo()
        assert oct(paths.env.parent.stat().st_mode & 0o777) == "0o700"
    on_disk = SlotPaths.of(tmp_path / "data", tmp_path / "env", SLOT)
    with pytest.raises(RuntimeFault, match="on a tmpfs"):
        make_slot_folders(on_disk, os.geteuid())
    assert not on_disk.env.exists()


def test_the_template_is_made_once_and_holds_what_is_mounted_on(tmp_path: Path) -> None:
    template = make_template(tmp_path)
    assert make_template(tmp_path) == template
    assert {entry.name for entry in template.iterdir()} == {
        *("start", "fetch", "prepare", "await"),
        *("code", "out", "env", "log", "ca.pem"),
    }
    assert oct((template / "start").stat().st_mode & 0o777) == "0o555"


def test_a_template_half_made_by_a_dead_agent_is_made_anew(tmp_path: Path) -> None:
    template = make_template(tmp_path)
    template.rename(template.with_name(template.name + ".draft"))
    (template.with_name(template.name + ".draft") / "start").unlink()
    assert (make_template(tmp_path) / "start").exists()
