"""A Git repository as a source: what its commits hold is listed and pinned, whatever happens to its branches."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from fastflow.pipelines.bundle import unpack
from fastflow_controlplane.errors import InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.sources import model
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchFailed
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.model import Changes
from hypothesis import given, settings, strategies
from pygit2.enums import FileMode

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, Followed, follow


async def code_of(catalog: Catalog, digest: str, into: Path) -> Path:
    async with await catalog.open_bundle(digest) as file:
        unpack(io.BytesIO(await file.read(file.size + 1)), into)
    return into


async def test_what_is_pushed_is_listed_and_pinned_with_its_commit(followed: Followed, tmp_path: Path) -> None:
    commit = followed.origin.push(
        {"a/main.py": "print('a')\n", "a/tool": (FileMode.BLOB_EXECUTABLE, "#!"), "group/b/main.py": ""},
        "Begin\n\nMore of it.",
    )
    assert await followed.sync() == Changes(added=("a", "b"))
    pinned = await followed.catalog.snapshot("a")
    assert pinned.commit == commit == followed.catalog.get("b").commit
    assert (pinned.commit_author, pinned.commit_subject) == ("Ada Lovelace <ada@example.org>", "Begin")
    assert pinned.tree == str(followed.origin.repository[commit].tree["a"].id)
    code = await code_of(followed.catalog, pinned.bundle_digest, tmp_path / "code")
    assert (code / "main.py").read_text() == "print('a')\n"
    assert os.access(code / "tool", os.X_OK)


async def test_a_push_changes_nothing_of_what_was_pinned(followed: Followed, tmp_path: Path) -> None:
    followed.origin.push({"a/main.py": "old", "b/main.py": ""})
    await followed.sync()
    before = await followed.catalog.snapshot("a")
    followed.origin.push({"a/main.py": "new", "c/main.py": "", "b/main.py": None})
    assert await followed.sync() == Changes(added=("c",), changed=("a",), removed=("b",))
    after = await followed.catalog.snapshot("a")
    assert (await code_of(followed.catalog, before.bundle_digest, tmp_path / "1") / "main.py").read_text() == "old"
    assert (await code_of(followed.catalog, after.bundle_digest, tmp_path / "2") / "main.py").read_text() == "new"
    assert "-old" in await followed.catalog.diff(before.tree, after.tree)


async def test_pipelines_that_did_not_change_are_not_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.origin.push({f"group/p{number}/main.py": f"{number}" for number in range(50)})
    await followed.sync()
    read: list[str] = []
    inspect = model.inspect
    monkeypatch.setattr(model, "inspect", lambda name, *rest: read.append(name) or inspect(name, *rest))
    followed.origin.push({"group/p7/main.py": "changed", "README": "x"})
    assert await followed.sync() == Changes(changed=("p7",))
    assert read == ["p7"]


@settings(max_examples=25)
@given(
    pushes=strategies.lists(
        strategies.dictionaries(
            strategies.sampled_from(
                [
                    "README",
                    "main.py",
                    "a/main.py",
                    "a/x",
                    "a/b/main.py",
                    "g/a/main.py",
                    "g/b/main.py",
                    "g/b/deep/x",
                    "g/c",
                ]
            ),
            strategies.sampled_from(["1", "2", None]),
            min_size=1,
        ),
        min_size=1,
        max_size=6,
    )
)
async def test_reading_what_changed_finds_what_reading_all_finds(pushes: list[dict[str, str | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin(Path(folder) / "origin.git")
        mirror = Mirror(origin.path)
        source = GitSource("git", Upstream(origin.url), "", mirror, DEFAULTS)
        there: dict[str, str] = {}
        for files in pushes:
            known = {path: text for path, text in files.items() if text is not None or path in there}
            there = {**there, **known}
            there = {path: text for path, text in there.items() if text is not None}
            if not there or not known:
                continue
            commit = origin.push(known)
            fresh = GitSource("git", Upstream(origin.url), "", Mirror(origin.path), DEFAULTS)
            assert source.advance(commit) == fresh.advance(commit)
            fresh.close()
        source.close()


async def test_only_the_folder_of_the_settings_is_searched(origin: Origin, tmp_path: Path) -> None:
    origin.push({"pipelines/team/a/main.py": "", "other/b/main.py": ""})
    async with follow(origin, tmp_path, folder="pipelines/team") as followed:
        await followed.sync()
        assert followed.names() == ["a"]
        assert followed.catalog.get("a").source == f"{origin.url}/pipelines/team"
        origin.push({"pipelines/team/a/main.py": None})
        with pytest.raises(Unavailable, match='no folder "pipelines/team" in the repository at commit'):
            await followed.sync()
        assert followed.names() == ["a"]
        await followed.catalog.refresh()
        assert followed.names() == ["a"], "what was in use stays in use"


async def test_a_forced_push_is_followed(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    await followed.sync()
    first = await followed.catalog.snapshot("a")
    second = followed.origin.push({"b/main.py": "2"}, force=True)
    assert await followed.sync() == Changes(added=("b",), removed=("a",))
    assert followed.catalog.get("b").commit == second
    async with await followed.catalog.open_bundle(first.bundle_digest):
        pass


async def test_the_default_branch_is_followed_when_it_is_renamed(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "1"})
    await followed.sync()
    followed.origin.rename_default("trunk")
    commit = followed.origin.push({"a/main.py": "2"}, branch="trunk")
    await followed.sync()
    assert followed.catalog.get("a").commit == commit


async def test_a_branch_that_was_deleted_is_told_and_what_was_in_use_stays(origin: Origin, tmp_path: Path) -> None:
    origin.push({"x/main.py": ""})
    commit = origin.push({"a/main.py": ""}, branch="live")
    async with follow(origin, tmp_path, branch="live") as followed:
        await followed.sync()
        origin.delete("live")
        with pytest.raises(FetchFailed, match='there is no branch "live" in the repository; there are: main'):
            await followed.sync()
        assert (await followed.catalog.snapshot("a")).commit == commit
    async with follow(origin, tmp_path, branch="live") as again:
        await again.catalog.refresh()
        assert again.catalog.get("a").commit == commit, "also after a restart"


async def test_an_empty_repository_is_told(followed: Followed) -> None:
    with pytest.raises(FetchFailed, match="the repository is empty: push a first commit"):
        await followed.sync()
    with pytest.raises(Unavailable, match="was not synced yet"):
        await followed.catalog.refresh()
    followed.origin.push({"a/main.py": ""})
    assert (await followed.sync()).added == ("a",)


async def test_what_was_not_synced_yet_is_not_taken_for_empty_while_its_copy_is_cleared_up(followed: Followed) -> None:
    with pytest.raises(Unavailable, match="was not synced yet"):
        await followed.catalog.refresh()
    await followed.catalog.readers["git"].prune((), 0.0)
    assert "was not synced yet" in followed.catalog.condition
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    assert followed.catalog.condition == ""


async def test_a_repository_that_is_gone_is_told_and_forgets_nothing(followed: Followed, tmp_path: Path) -> None:
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    followed.origin.path.rename(tmp_path / "elsewhere")
    with pytest.raises(FetchFailed, match="can not be fetched: there is no repository at url; check the path, and "):
        await followed.sync()
    assert (await followed.catalog.snapshot("a")).pipeline == "a"


async def test_a_run_can_have_another_commit_branch_or_the_beginning_of_one(followed: Followed) -> None:
    first = followed.origin.push({"a/main.py": "1", "gone/main.py": ""})
    followed.origin.push({"a/main.py": "2", "gone/main.py": None})
    side = followed.origin.push({"group/a/main.py": "3"}, branch="feature/x", message="Try")
    await followed.sync()
    for ref, commit in ((first, first), (first[:8], first), ("feature/x", side)):
        pinned = await followed.catalog.snapshot("a", ref)
        assert pinned.commit == commit
    assert (await followed.catalog.snapshot("a", "feature/x")).commit_subject == "Try"
    assert (await followed.catalog.snapshot("gone", first)).commit == first
    with pytest.raises(NotFound, match='there is no pipeline "gone"'):
        await followed.catalog.snapshot("gone")
    followed.origin.push({"z/main.py": ""}, branch="lone")
    await followed.sync()
    with pytest.raises(NotFound, match='there is no pipeline "a" at "lone"'):
        await followed.catalog.snapshot("a", "lone")


@pytest.mark.parametrize("ref", ["nope", "0" * 40, "abc", "..", "refs/fastflow/in-use", "a b", "-x", "\x00"])
async def test_an_unknown_ref_is_refused_with_what_there_is(followed: Followed, ref: str) -> None:
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    with pytest.raises(InvalidArgument, match="the branches are: main") as caught:
        await followed.catalog.snapshot("a", ref)
    assert [violation.field for violation in caught.value.violations] == ["ref"]
