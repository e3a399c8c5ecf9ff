"""Branches and tags of a remote, whatever their names and whatever they point to."""

from pathlib import Path

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchFailed
from fastflow_controlplane.sources.mirror import BRANCHES, IN_USE, TAGS, Mirror
from fastflow_controlplane.sources.remote import Credentials
from pygit2.enums import ObjectType

from tests.origins import Origin
from tests.unit.sources.conftest import Followed, Runs, follow


@pytest.mark.parametrize(("before", "after"), [("feature", "feature/one"), ("feature/one", "feature")])
async def test_a_branch_is_renamed_to_one_whose_name_goes_on(followed: Followed, before: str, after: str) -> None:
    followed.origin.push({"a/main.py": "1"})
    followed.origin.push({"a/main.py": "side"}, branch=before)
    await followed.sync()
    followed.origin.delete(before)
    side = followed.origin.push({"a/main.py": "moved"}, branch=after)
    newest = followed.origin.push({"a/main.py": "2"})
    assert (await followed.sync()).changed == ("a",)
    assert (await followed.catalog.snapshot("a")).commit == newest
    assert (await followed.catalog.snapshot("a", after)).commit == side
    with pytest.raises(InvalidArgument, match="there is no commit or branch"):
        await followed.catalog.snapshot("a", before)


def tag_what_is_no_commit(origin: Origin) -> dict[str, str]:
    """Tags a file and a folder, as the repositories of git and of Linux do; returns what is tagged by name."""
    repository = origin.repository
    tree = repository.references["refs/heads/main"].peel().tree
    tagged = {"a-file": str(repository.create_blob(b"a key")), "a-folder": str(tree.id)}
    for name, target in tagged.items():
        repository.references.create(f"refs/tags/{name}", target)
    signature = repository.references["refs/heads/main"].peel().author
    noted = repository.create_tag("noted", tree.id, ObjectType.TREE, signature, "A folder, with a note")
    return {**tagged, "noted": str(noted)}


async def test_tags_of_what_is_no_commit_hold_up_no_sync(followed: Followed) -> None:
    first = followed.origin.push({"a/main.py": "1"})
    tag_what_is_no_commit(followed.origin)
    followed.origin.repository.references.create("refs/tags/v1", first)
    await followed.sync()
    for content in ("2", "3"):
        followed.origin.push({"a/main.py": content})
        assert (await followed.sync()).changed == ("a",)
    assert (await followed.catalog.snapshot("a", "v1")).commit == first


async def test_a_copy_that_names_what_is_no_commit_heals_at_the_next_sync(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    await followed.sync()
    tagged = tag_what_is_no_commit(followed.origin)
    mirror = Mirror(followed.source.objects)
    tree = mirror.repository.references[f"{BRANCHES}main"].peel().tree
    mirror.repository.references.create(f"{TAGS}a-folder", tree.id)
    with pytest.raises(InvalidArgument, match='there is no commit or branch "a-folder"'):
        await followed.catalog.snapshot("a", "a-folder")
    followed.origin.push({"a/main.py": "2"})
    assert (await followed.sync()).changed == ("a",)
    assert not tagged.keys() & {name.removeprefix(TAGS) for name in mirror.references()}
    mirror.close()


async def test_a_ref_that_is_no_commit_is_refused(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    tagged = tag_what_is_no_commit(followed.origin)
    await followed.sync()
    for ref in (*tagged, *tagged.values()):
        with pytest.raises(InvalidArgument, match=f'there is no commit or branch "{ref}"'):
            await followed.catalog.snapshot("a", ref)


@pytest.mark.parametrize("lock", [f"{BRANCHES}main.lock", f"{TAGS}v1.lock", f"{IN_USE}.lock", "FETCH_HEAD.lock"])
async def test_a_lock_that_a_killed_process_left_holds_up_no_sync(followed: Followed, lock: str) -> None:
    followed.origin.push({"a/main.py": "1"})
    await followed.sync()
    second = followed.origin.push({"a/main.py": "2"})
    followed.origin.repository.references.create("refs/tags/v1", second)
    leftover = Path(followed.source.objects) / lock
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.touch()
    assert (await followed.sync()).changed == ("a",)
    assert not leftover.exists()


async def test_an_unchanged_remote_is_not_fetched_again_for_its_odd_tags(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    tag_what_is_no_commit(followed.origin)
    await followed.sync()
    fetched = Path(followed.source.objects) / "FETCH_HEAD"
    fetched.unlink()
    await followed.sync()
    assert not fetched.exists()


async def test_branches_of_a_remote_that_can_not_be_followed_stay_as_they_were(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    followed.origin.push({"a/main.py": "1"}, branch="side")
    await followed.sync()
    followed.origin.delete("main")
    with pytest.raises(FetchFailed, match="no default branch: set `branch` of the source to one of: side"):
        await followed.sync()
    mirror = Mirror(followed.source.objects)
    assert sorted(mirror.branches()) == ["main", "side"]
    mirror.close()


async def test_a_ref_without_the_folder_of_the_settings_is_refused_and_troubles_nobody_else(
    origin: Origin, tmp_path: Path
) -> None:
    origin.push({"pipelines/a/main.py": "1"})
    origin.push({"README": "no pipelines here"}, branch="pages")
    async with follow(origin, tmp_path, folder="pipelines") as followed:
        await followed.sync()
        told = r'"pages" can not be used: there is no folder "pipelines" .*: check `path`'
        with pytest.raises(InvalidArgument, match=told):
            await followed.catalog.snapshot("a", "pages")
        assert followed.catalog.condition == ""


async def test_a_pipeline_that_no_source_has_at_a_ref_is_told_so(followed: Followed, tmp_path: Path) -> None:
    followed.origin.push({"a/main.py": "1"})
    await followed.sync()
    other = Origin(tmp_path / "other.git")
    other.push({"b/main.py": "1"}, branch="trunk")
    (tmp_path / "second").mkdir()
    async with (
        follow(other, tmp_path / "second", branch="trunk") as second,
        follow(Origin(tmp_path / "never"), tmp_path / "second") as unsynced,
    ):
        await second.sync()
        sources = {"git": followed.source, "unsynced": unsynced.source, "second": second.source}
        both = Catalog(sources, tmp_path, set, Runs().code, ManualClock())
        await both.refresh()
        with pytest.raises(NotFound, match='there is no pipeline "nope" at "main"'):
            await both.snapshot("nope", "main")
        with pytest.raises(InvalidArgument, match='there is no commit or branch "nope"; the branches are: main'):
            await both.snapshot("nope", "nope")
        second.origin.push({"c/main.py": "1"}, branch="c")
        await second.process.fetch(Credentials())
        assert (await both.snapshot("c", "c")).pipeline == "c", "the one before it has nothing that could be meant"
        await both.close()


async def test_a_ref_that_can_not_be_looked_up_for_now_is_told_as_what_passes(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    with pytest.raises(Unavailable, match='the source "git": was not synced yet: `ffctl sources show git`'):
        await followed.catalog.snapshot("a", "main")
    await followed.sync()
    assert (await followed.catalog.snapshot("a", "main")).pipeline == "a"
