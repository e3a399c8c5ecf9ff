"""Sources that follow another repository, branch or folder than before: what is served is what the settings name."""

import shutil
from pathlib import Path

import pytest
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.sources.fetch_process import FetchFailed
from fastflow_controlplane.sources.mirror import UPSTREAM
from fastflow_controlplane.sources.remote import Credentials

from tests.origins import Origin
from tests.unit.sources.conftest import Followed, follow, on_disk


@pytest.fixture
def other(tmp_path: Path) -> Origin:
    """Another repository, with a branch and a pipeline of the same names."""
    other = Origin(tmp_path / "other.git")
    other.push({"a/main.py": "print('other')\n", "b/main.py": ""})
    return other


async def synced(origin: Origin, data: Path, *, branch: str = "") -> str:
    """Follows `origin` once, which gets a pipeline; returns its commit."""
    commit = origin.push({"a/main.py": "print('first')\n"})
    async with follow(origin, data, branch=branch) as followed:
        await followed.sync()
    return commit


async def assert_nothing_is_served(followed: Followed, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        await followed.catalog.refresh()
    assert followed.names() == []
    with pytest.raises(Unavailable, match=why):
        await followed.catalog.snapshot("a")
    with pytest.raises(Unavailable, match=why):
        await followed.catalog.snapshot("a", "main")


async def test_what_was_fetched_from_another_url_is_not_served_as_if_it_were_from_this_one(
    origin: Origin, other: Origin, tmp_path: Path
) -> None:
    commit = await synced(origin, tmp_path)
    shutil.move(other.path, tmp_path / "away")
    async with follow(other, tmp_path) as moved:
        why = f"its url was changed from {origin.url} to {other.url}, and it was not synced since"
        await assert_nothing_is_served(moved, why)
        with pytest.raises(FetchFailed):
            await moved.sync()
        await assert_nothing_is_served(moved, why)
    async with follow(origin, tmp_path) as back:
        await back.catalog.refresh()
        assert (await back.catalog.snapshot("a", "main")).commit == commit, "no other was fetched, so it is as it was"
    shutil.move(tmp_path / "away", other.path)
    async with follow(other, tmp_path) as moved:
        assert (await moved.sync()).added == ("a", "b")
        newest = str(other.repository.references["refs/heads/main"].target)
        assert moved.catalog.get("a").commit == newest
        assert (await moved.catalog.snapshot("a", "main")).commit == newest


async def test_runs_that_are_pinned_to_the_former_repository_get_their_code_also_if_it_has_to_be_written_anew(
    origin: Origin, other: Origin, tmp_path: Path
) -> None:
    await synced(origin, tmp_path)
    async with follow(origin, tmp_path) as followed:
        pinned = await followed.catalog.snapshot("a")
    async with follow(other, tmp_path) as moved:
        moved.runs.add(pinned)
        for sync in (False, True):
            if sync:
                await moved.sync()
            async with await moved.catalog.open_bundle(pinned.bundle_digest) as bundle:
                assert bundle.size == pinned.bundle_size
            on_disk(tmp_path, pinned).unlink()
            async with await moved.catalog.open_bundle(pinned.bundle_digest) as bundle:
                assert bundle.size == pinned.bundle_size


async def test_a_fetch_from_another_url_that_was_not_taken_into_use_mixes_neither(
    origin: Origin, other: Origin, tmp_path: Path
) -> None:
    await synced(origin, tmp_path)
    async with follow(other, tmp_path) as dying:
        await dying.process.fetch(Credentials())
    async with follow(other, tmp_path) as moved:
        await assert_nothing_is_served(moved, f"its url was changed from {origin.url} to {other.url}")
    async with follow(origin, tmp_path) as back:
        await assert_nothing_is_served(back, "its url or branch was changed and changed back, and it was not synced")
        await back.sync()
        assert back.names() == ["a"]


async def test_what_is_in_use_of_another_branch_is_not_served(origin: Origin, tmp_path: Path) -> None:
    commit = await synced(origin, tmp_path, branch="main")
    side = origin.push({"side/main.py": ""}, branch="side")
    async with follow(origin, tmp_path, branch="side") as moved:
        await assert_nothing_is_served(moved, 'its branch was changed from "main" to "side", and it was not synced')
        await moved.sync()
        assert moved.catalog.get("side").commit == side
    async with follow(origin, tmp_path, branch="typo") as wrong:
        with pytest.raises(FetchFailed, match='no branch "typo"'):
            await wrong.sync()
        await assert_nothing_is_served(wrong, 'its branch was changed from "side" to "typo"')
    async with follow(origin, tmp_path) as by_default:
        await assert_nothing_is_served(by_default, 'its branch was changed from "side" to the default one')
        await by_default.sync()
        assert by_default.catalog.get("a").commit == commit


async def test_another_folder_of_the_same_commit_is_served_at_once(origin: Origin, tmp_path: Path) -> None:
    commit = origin.push({"one/a/main.py": "", "two/b/main.py": ""})
    async with follow(origin, tmp_path, folder="one") as followed:
        await followed.sync()
    async with follow(origin, tmp_path, folder="two") as moved:
        await moved.catalog.refresh()
        assert (moved.names(), moved.catalog.get("b").commit) == (["b"], commit)


async def test_a_copy_from_before_urls_were_kept_stays_in_use_and_is_known_from_then_on(
    origin: Origin, other: Origin, tmp_path: Path
) -> None:
    commit = await synced(origin, tmp_path)
    (tmp_path / "repository.git" / UPSTREAM).unlink()
    async with follow(origin, tmp_path) as followed:
        await followed.catalog.refresh()
        assert followed.catalog.get("a").commit == commit
        assert not await followed.sync()
    async with follow(other, tmp_path) as moved:
        await assert_nothing_is_served(moved, "its url was changed")


@pytest.mark.parametrize("content", [b"", b"\0" * 41, b"[]"])
async def test_a_note_of_the_url_that_can_not_be_read_is_none_of_the_url(
    origin: Origin, tmp_path: Path, content: bytes
) -> None:
    commit = await synced(origin, tmp_path)
    (tmp_path / "repository.git" / UPSTREAM).write_bytes(content)
    async with follow(origin, tmp_path) as followed:
        await assert_nothing_is_served(followed, "where its copy is from can not be read, and it was not synced since")
        await followed.sync()
        assert followed.catalog.get("a").commit == commit
