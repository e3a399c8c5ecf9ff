"""A Git repository as a source: what its commits hold is listed and pinned, whatever happens to its branches."""

import asyncio
import io
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pygit2
import pytest
from fastflow.pipelines.bundle import unpack
from fastflow.pipelines.discovery import PipelineState
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.sources import model
from fastflow_controlplane.sources import packs as packing
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchFailed, FetchProcess, Workplace
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import IN_USE, Mirror
from fastflow_controlplane.sources.model import Changes
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address
from fastflow_controlplane.sources.repository import SnapshotRepository
from hypothesis import given, settings, strategies
from pygit2.enums import FileMode

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, at_rest, make

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@dataclass
class Followed:
    """A Git source that is fetched from `origin` when a test says so."""

    origin: Origin
    source: GitSource
    catalog: Catalog
    process: FetchProcess

    async def sync(self) -> Changes:
        commit = await self.process.fetch(Credentials())
        return await self.catalog.readers["git"].take(lambda: self.source.advance(commit))

    def names(self) -> list[str]:
        return [view.name for view in self.catalog.list()]

    def problems(self, name: str) -> list[str]:
        return [str(problem) for problem in self.catalog.get(name).problems]


@asynccontextmanager
async def follow(
    origin: Origin, data: Path, *, branch: str = "", folder: str = "", seconds: float = 60.0
) -> AsyncIterator[Followed]:
    mirror = Mirror(data / "repository.git")
    source = GitSource("git", origin.url, folder, mirror, DEFAULTS)
    remote = Remote("git", parse_address(origin.url), branch)
    process = FetchProcess(remote, Workplace(data / "repository.git", data / "home"), seconds)
    catalog = Catalog({"git": source}, data, set, ManualClock())
    try:
        yield Followed(origin, source, catalog, process)
    finally:
        await process.close()
        await catalog.close()


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin.git")


@pytest.fixture
async def followed(origin: Origin, data_dir: Path) -> AsyncIterator[Followed]:
    data_dir.mkdir()
    async with follow(origin, data_dir) as followed:
        yield followed


async def code_of(catalog: Catalog, digest: str, into: Path) -> Path:
    async with await catalog.open_bundle(digest) as file:
        unpack(io.BytesIO(await file.read(0, file.size + 1)), into)
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
        source = GitSource("git", origin.url, "", mirror, DEFAULTS)
        there: dict[str, str] = {}
        for files in pushes:
            known = {path: text for path, text in files.items() if text is not None or path in there}
            there = {**there, **known}
            there = {path: text for path, text in there.items() if text is not None}
            if not there or not known:
                continue
            commit = origin.push(known)
            fresh = GitSource("git", origin.url, "", Mirror(origin.path), DEFAULTS)
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


async def test_a_repository_that_is_gone_is_told_and_forgets_nothing(followed: Followed, tmp_path: Path) -> None:
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    followed.origin.path.rename(tmp_path / "elsewhere")
    with pytest.raises(FetchFailed, match="there is no repository at url"):
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


async def test_what_can_not_travel_is_named(followed: Followed) -> None:
    other = "1" * 40
    followed.origin.push(
        {
            "link/main.py": "",
            "link/out": (FileMode.LINK, "../secret"),
            "inner/main.py": "",
            "inner/real": "x",
            "inner/fine": (FileMode.LINK, "real"),
            "sub/main.py": "",
            "sub/library": (FileMode.COMMIT, other),
            "module": (FileMode.COMMIT, other),
        }
    )
    assert (await followed.sync()).invalid == ("link", "sub")
    assert "symbolic link to '../secret', which leaves the folder" in followed.problems("link")[0]
    assert "library: is a Git submodule, whose files are in another repository" in followed.problems("sub")[0]
    assert followed.catalog.get("inner").state is PipelineState.READY
    assert any(problem.startswith("module: is a Git submodule") for problem in followed.catalog.problems("git"))
    with pytest.raises(InvalidArgument, match="Git submodule"):
        await followed.catalog.snapshot("sub")


async def test_lfs_pointers_are_warned_about_and_refused_where_fastflow_reads_them(followed: Followed) -> None:
    followed.origin.push(
        {
            "data/main.py": "",
            "data/model.bin": LFS_POINTER,
            "meta/main.py": "",
            "meta/pipeline.json": LFS_POINTER,
            "code/main.py": LFS_POINTER,
        }
    )
    assert (await followed.sync()).invalid == ("code", "meta")
    assert followed.catalog.get("data").state is PipelineState.READY
    assert followed.problems("data") == [
        "model.bin: is a Git LFS pointer: the file itself is not in the repository, and a run finds the pointer; store "
        "it without LFS, or let main.py fetch it"
    ]
    assert "git lfs untrack" in followed.problems("meta")[0]
    assert len(followed.problems("meta")) == 1


async def test_many_syncs_leave_few_packs_and_all_objects(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = followed.source.objects / "objects" / "pack"
    mirror = Mirror(followed.source.objects)
    commits = []
    for number in range(6):
        commits.append(followed.origin.push({f"p{number}/main.py": f"{number}", "p/main.py": f"{number}"}))
        await followed.sync()
        await followed.catalog.snapshot("p")
    assert len(list(packs.glob("*.pack"))) == 6
    monkeypatch.setattr(packing, "MANY_PACKS", 3)
    packing.join_packs(mirror.repository, packs)
    mirror.close()
    assert len(list(packs.glob("*.pack"))) == 1
    assert sorted(path.suffix for path in packs.iterdir()) == [".idx", ".pack"]
    for number, commit in enumerate(commits):
        pinned = await followed.catalog.snapshot("p", commit)
        assert pinned.tree == str(followed.origin.repository[commit].tree["p"].id), number
    followed.origin.push({"q/main.py": ""})
    assert await followed.sync() == Changes(added=("q",))
    assert (await followed.catalog.snapshot("p3")).pipeline == "p3"


async def test_a_file_of_300_mib_is_refused_by_name(followed: Followed) -> None:
    followed.origin.push({"large/main.py": "", "large/data/all.bin": bytes(300 * 1024**2), "small/main.py": ""})
    assert (await followed.sync()).invalid == ("large",)
    assert (
        "the code has more than 256 MiB (data/all.bin alone has 300 MiB); move data elsewhere"
        in (followed.problems("large")[0])
    )
    assert (await followed.catalog.snapshot("small")).pipeline == "small"


async def test_a_repository_of_10_000_files_is_read_whole(followed: Followed) -> None:
    files = {f"p{number % 10}/data/{number}.txt": str(number) for number in range(10_000)}
    followed.origin.push({**files, **{f"p{number}/main.py": "" for number in range(10)}})
    assert len((await followed.sync()).added) == 10
    assert (await followed.catalog.snapshot("p3")).bundle_size > 1000


async def test_two_folders_of_one_name_refuse_to_run_until_one_is_renamed(followed: Followed) -> None:
    followed.origin.push({"x/p/main.py": "1", "y/p/main.py": "2"})
    assert (await followed.sync()).invalid == ("p",)
    with pytest.raises(InvalidArgument, match="stands for 2 folders: x/p, y/p"):
        await followed.catalog.snapshot("p")
    followed.origin.push({"y/p/main.py": None, "y/q/main.py": "2"})
    assert await followed.sync() == Changes(added=("q",), changed=("p",))
    assert (await followed.catalog.snapshot("p")).pipeline == "p"


async def test_names_with_spaces_and_other_scripts_are_pipelines(followed: Followed) -> None:
    followed.origin.push({"täglicher Bericht/main.py": "", "報告/main.py": "", "bad\x07/main.py": ""})
    assert (await followed.sync()).invalid == ("bad\\x07",)
    assert (await followed.catalog.snapshot("täglicher Bericht")).pipeline == "täglicher Bericht"
    assert (await followed.catalog.snapshot("報告")).pipeline == "報告"


async def test_a_tree_with_names_that_no_file_can_have_is_refused(followed: Followed) -> None:
    repository = followed.origin.repository
    blob = repository.create_blob(b"")
    entry = b"100644 main.py\x00" + blob.raw
    folder = repository.write(pygit2.enums.ObjectType.TREE, entry)
    evil = b"100644 ../x\x00" + blob.raw + entry
    inner = repository.write(pygit2.enums.ObjectType.TREE, evil)
    root = repository.write(
        pygit2.enums.ObjectType.TREE, b"40000 evil\x00" + inner.raw + b"40000 good\x00" + folder.raw
    )
    signature = pygit2.Signature("x", "x@x")
    commit = repository.create_commit(None, signature, signature, "x", root, [])
    repository.references.create("refs/heads/main", commit)
    await followed.sync()
    assert followed.names() == ["good"]
    assert any("'../x', which no file can have" in problem for problem in followed.catalog.problems("git"))


async def test_a_fetch_that_takes_too_long_is_ended_and_the_next_one_works(origin: Origin, tmp_path: Path) -> None:
    origin.push({"a/main.py": ""})
    async with follow(origin, tmp_path, seconds=0.001) as hasty:
        with pytest.raises(FetchFailed, match=r"longer than 0\.001 s and was ended"):
            await hasty.sync()
    async with follow(origin, tmp_path) as patient:
        assert (await patient.sync()).added == ("a",)


async def test_a_fetch_whose_process_dies_leaves_the_last_good_state(followed: Followed) -> None:
    first = followed.origin.push({"a/main.py": ""})
    await followed.sync()
    followed.origin.push({"a/main.py": bytes(50 * 1024**2)})
    fetching = asyncio.create_task(followed.process.fetch(Credentials()))
    await asyncio.sleep(0.02)
    process = followed.process._process
    assert process is not None
    process.kill()
    with pytest.raises(FetchFailed, match="was ended by SIGKILL"):
        await fetching
    assert (await followed.catalog.snapshot("a")).commit == first
    packs = Path(followed.source.objects) / "objects" / "pack"
    (packs / "pack_git2_leftover").write_bytes(b"half")
    assert (await followed.sync()).changed == ("a",)
    assert not (packs / "pack_git2_leftover").exists()


@pytest.mark.parametrize("cut", [b"", b"PACK"])
async def test_a_copy_that_was_damaged_is_fetched_anew(origin: Origin, tmp_path: Path, cut: bytes) -> None:
    origin.push({"a/main.py": "1", "b/main.py": "1"})
    async with follow(origin, tmp_path) as before:
        await before.sync()
    for file in (tmp_path / "repository.git" / "objects" / "pack").glob("*.pack"):
        file.chmod(0o600)
        file.write_bytes(cut)
    async with follow(origin, tmp_path) as again:
        with pytest.raises(Unavailable, match=r"damaged|was not synced yet"):
            await again.catalog.refresh()
        await again.sync()
        assert again.names() == ["a", "b"]
        assert (await again.catalog.snapshot("b")).pipeline == "b"


async def test_the_commit_in_use_is_read_after_a_restart_without_the_network(
    followed: Followed, data_dir: Path
) -> None:
    commit = followed.origin.push({"a/main.py": ""})
    await followed.sync()
    shutil.rmtree(followed.origin.path)
    async with follow(followed.origin, data_dir) as again:
        await again.catalog.refresh()
        assert again.catalog.get("a").commit == commit
        assert (await again.catalog.snapshot("a")).commit == commit
    assert Mirror(data_dir / "repository.git").repository.references.get(IN_USE) is not None


async def test_a_name_belongs_to_the_first_source_and_the_clash_is_told_at_the_other(
    origin: Origin, root: Path, data_dir: Path
) -> None:
    data_dir.mkdir()
    origin.push({"a/main.py": "git", "b/main.py": "git"})
    make(root / "b", main="folder")
    make(root / "c")
    folder = MountedFolder(root, SnapshotRepository(data_dir / "snapshots.git"), DEFAULTS, at_rest())
    async with follow(origin, data_dir) as followed:
        both = Catalog({"git": followed.source, "local": folder}, data_dir, set, ManualClock())
        commit = await followed.process.fetch(Credentials())
        await both.readers["git"].take(lambda: followed.source.advance(commit))
        await both.refresh()
        assert [view.name for view in both.list()] == ["a", "b", "c"]
        assert both.get("b").source == origin.url
        assert both.problems("git") == ()
        assert both.problems("local") == (
            'the pipeline "b" (b) is not used: the source "git" has one of that name (b); rename one',
        )
        (root / "b" / "main.py").unlink()
        await both.refresh()
        assert both.problems("local")[:1] != both.problems("git")[:1]
        assert not any("is not used" in problem for problem in both.problems("local"))
        root.rename(root.parent / "away")
        await both.refresh()
        assert both.condition != ""
        assert (await both.snapshot("a")).pipeline == "a", "another source's fault harms no run of this one"
        await both.close()
