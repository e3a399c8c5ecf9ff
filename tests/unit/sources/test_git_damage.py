"""Copies of repositories that a power cut or a disk damaged: what is whole stays, and the next sync brings the rest."""

import os
import shutil
from pathlib import Path

import pytest
from fastflow_controlplane.errors import InvalidArgument, Unavailable
from fastflow_controlplane.sources import packs as joining
from fastflow_controlplane.sources.fetch_process import FetchFailed
from fastflow_controlplane.sources.fetching import fetch
from fastflow_controlplane.sources.mirror import BRANCHES, IN_USE
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address

from tests.origins import Origin
from tests.unit.sources.conftest import follow
from tests.unit.sources.packs import damage, packs, pushed_over, replace


@pytest.mark.parametrize("left", ["nothing", "the index", "half", "an orphan"])
async def test_a_pack_that_a_power_cut_took_is_fetched_again_and_nothing_else_is_lost(
    origin: Origin, tmp_path: Path, left: str
) -> None:
    first, second, *_ = await pushed_over(origin, tmp_path)
    before = packs(tmp_path)
    third = origin.push({"a/main.py": "3"})
    async with follow(origin, tmp_path) as dying:
        await dying.process.fetch(Credentials())
    (cut,) = packs(tmp_path) - before
    cut.with_suffix(".synced").unlink(missing_ok=True)
    replace(cut, cut.read_bytes()[: cut.stat().st_size // 2 if left == "half" else 0])
    if left in ("nothing", "an orphan"):
        cut.with_suffix(".idx").unlink()
    if left == "nothing":
        cut.unlink()
    async with follow(origin, tmp_path) as again:
        await again.catalog.refresh()
        assert again.catalog.get("a").commit == second
        assert (await again.sync()).changed == ("a",)
        for ref, commit in (("", third), (first, first), (second, second)):
            assert (await again.catalog.snapshot("a", ref)).commit == commit


async def pushed_aside(origin: Origin, data: Path) -> tuple[str, str, Path]:
    """Pushes to the main branch and then to `side`, each synced.

    Returns the commits, and the pack that the last one came in.
    """
    main = origin.push({"a/main.py": "1"})
    async with follow(origin, data) as followed:
        await followed.sync()
        before = packs(data)
        side = origin.push({"a/main.py": "side"}, branch="side")
        await followed.sync()
    (pack,) = packs(data) - before
    return main, side, pack


async def test_a_branch_whose_commit_a_power_cut_took_is_fetched_again(origin: Origin, tmp_path: Path) -> None:
    _, side, cut = await pushed_aside(origin, tmp_path)
    for suffix in (".pack", ".idx", ".synced"):
        cut.with_suffix(suffix).unlink()
    async with follow(origin, tmp_path) as again:
        with pytest.raises(InvalidArgument, match='there is no commit or branch "side"'):
            await again.catalog.snapshot("a", "side")
        await again.sync()
        assert (await again.catalog.snapshot("a", "side")).commit == side


@pytest.mark.parametrize("content", [b"", b"\0" * 41], ids=["empty", "zeros"])
@pytest.mark.parametrize("file", [f"{BRANCHES}main", IN_USE, "HEAD", "config"])
async def test_a_file_that_a_power_cut_emptied_holds_up_no_sync(
    origin: Origin, tmp_path: Path, file: str, content: bytes
) -> None:
    first, *_ = await pushed_over(origin, tmp_path)
    (tmp_path / "repository.git" / file).write_bytes(content)
    third = origin.push({"a/main.py": "3"})
    async with follow(origin, tmp_path) as again:
        await again.sync()
        assert (await again.catalog.snapshot("a")).commit == third
        assert (await again.catalog.snapshot("a", first)).commit == first


async def test_damage_of_one_commit_leaves_the_one_in_use_also_while_the_remote_is_away(
    origin: Origin, tmp_path: Path
) -> None:
    first, second, old, _ = await pushed_over(origin, tmp_path)
    damage(old)
    shutil.rmtree(origin.path)
    for _ in range(2):
        async with follow(origin, tmp_path) as again:
            await again.catalog.refresh()
            with pytest.raises(Unavailable, match="its copy is damaged and is fetched anew at the next sync"):
                await again.catalog.snapshot("a", first)
            with pytest.raises(FetchFailed, match="there is no repository at url"):
                await again.sync()
            assert (await again.catalog.snapshot("a")).commit == second


async def test_a_damaged_commit_is_fetched_anew_and_what_was_pushed_over_stays(origin: Origin, tmp_path: Path) -> None:
    first, second, _, new = await pushed_over(origin, tmp_path)
    damage(new)
    async with follow(origin, tmp_path) as again:
        with pytest.raises(Unavailable, match="damaged"):
            await again.catalog.refresh()
        await again.sync()
        assert (await again.catalog.snapshot("a")).commit == second
        assert (await again.catalog.snapshot("a", first)).commit == first
        third = origin.push({"a/main.py": "3"})
        assert (await again.sync()).changed == ("a",)
    assert len(packs(tmp_path)) == 3, "it is fetched anew once, and nothing is there twice"
    assert sorted(path.name for path in tmp_path.glob("*.git")) == ["origin.git", "repository.git"]
    async with follow(origin, tmp_path) as restarted:
        await restarted.catalog.refresh()
        assert restarted.catalog.get("a").commit == third


@pytest.mark.parametrize("moved_on", [False, True])
async def test_a_damaged_commit_of_another_branch_is_fetched_anew_by_the_sync_that_meets_it(
    origin: Origin, tmp_path: Path, moved_on: bool
) -> None:
    newest, side, pack = await pushed_aside(origin, tmp_path)
    content = pack.read_bytes()
    replace(pack, content[:12] + bytes(len(content) - 32) + content[-20:])
    if moved_on:
        newest = origin.push({"a/main.py": "2"})
    async with follow(origin, tmp_path) as again:
        await again.sync()
        assert (await again.catalog.snapshot("a")).commit == newest
        assert (await again.catalog.snapshot("a", "side")).commit == side


async def test_a_fetch_anew_that_is_cut_off_begins_again(origin: Origin, tmp_path: Path) -> None:
    origin.push({"a/main.py": "1", "a/data": os.urandom(10_000)})
    async with follow(origin, tmp_path) as followed:
        await followed.sync()
    (pack,) = packs(tmp_path)
    damage(pack)
    half = tmp_path / "anew.git"
    (half / "objects").mkdir(parents=True)
    (half / "HEAD").write_bytes(b"")
    async with follow(origin, tmp_path) as again:
        with pytest.raises(Unavailable, match="damaged"):
            await again.catalog.refresh()
        await again.sync()
        assert again.names() == ["a"]
    assert not half.exists()


@pytest.mark.parametrize("left", [(".pack", ".synced"), (".synced",), (".pack",)], ids="+".join)
async def test_a_join_of_packs_that_was_cut_off_holds_up_no_sync(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    monkeypatch.setattr(joining, "MANY_PACKS", 2)
    copy, remote = tmp_path / "repository.git", Remote("git", parse_address(origin.url))
    for number in range(2):
        origin.push({"a/main.py": f"{number}"})
        fetch(copy, remote, Credentials())
    joined = {
        pack.with_suffix(suffix): pack.with_suffix(suffix).read_bytes() for pack in packs(tmp_path) for suffix in left
    }
    for number in range(2, 6):
        commit = origin.push({"a/main.py": f"{number}"})
        for file, content in joined.items():
            file.write_bytes(content)
        assert fetch(copy, remote, Credentials()) == commit
        assert not any(file.exists() for file in joined)
