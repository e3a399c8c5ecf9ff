"""Fetches that hang or die, copies that are damaged, and restarts: the last good state stays."""

import asyncio
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.sources import packs as packing
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchFailed
from fastflow_controlplane.sources.mirror import IN_USE, Mirror
from fastflow_controlplane.sources.model import Changes
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.remote import Credentials
from fastflow_controlplane.sources.repository import SnapshotRepository

from tests.origins import Origin
from tests.unit.sources.conftest import DEFAULTS, PATIENCE_SECONDS, Followed, Runs, at_rest, follow, make


async def test_a_fetch_that_takes_too_long_is_ended_and_the_next_one_works(followed: Followed) -> None:
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    stuck, patience = followed.process._process, followed.process._seconds
    assert stuck is not None
    stuck.send_signal(signal.SIGSTOP)
    followed.process._seconds = 0.05
    with pytest.raises(FetchFailed, match=r"longer than 0\.05 s and was ended"):
        await followed.sync()
    assert stuck.returncode == -signal.SIGKILL
    followed.process._seconds = patience
    followed.origin.push({"b/main.py": ""})
    assert (await followed.sync()).added == ("b",)


async def test_a_fetch_whose_process_dies_leaves_the_last_good_state(followed: Followed) -> None:
    first = followed.origin.push({"a/main.py": ""})
    await followed.sync()
    packs = Path(followed.source.objects) / "objects" / "pack"
    # On a busy machine a fetch may be over before anybody sees that it has begun: then with other content again.
    for _ in range(10):
        followed.origin.push({"a/main.py": os.urandom(50 * 1024**2)})
        fetching = asyncio.create_task(followed.process.fetch(Credentials()))
        while not list(packs.glob("pack_git2_*")) and not fetching.done():  # noqa: ASYNC110 - nobody tells that a pack has begun
            await asyncio.sleep(0.001)
        if not fetching.done():
            process = followed.process._process
            assert process is not None
            process.kill()
        (ended,) = await asyncio.gather(fetching, return_exceptions=True)
        if not isinstance(ended, str):
            break
    assert isinstance(ended, FetchFailed)
    assert "was ended by SIGKILL" in str(ended)
    assert (await followed.catalog.snapshot("a")).commit == first
    (packs / "pack_git2_leftover").write_bytes(b"half")
    assert (await followed.sync()).changed == ("a",)
    assert not (packs / "pack_git2_leftover").exists()


async def test_the_process_that_fetches_knows_nothing_of_the_control_plane_but_the_way_out(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FASTFLOW_TOKEN", "PGPASSWORD", "CLOUD_KEY"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("no_proxy", "localhost")
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    process = followed.process._process
    assert process is not None
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"s3cret" not in environment
    assert b"no_proxy=localhost\0" in environment


async def test_the_process_that_fetches_leaves_no_core_and_hears_no_ctrl_c(followed: Followed) -> None:
    followed.origin.push({"a/main.py": ""})
    await followed.sync()
    process = followed.process._process
    assert process is not None
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
    assert os.getsid(process.pid) == process.pid != os.getsid(0)


async def test_a_fault_that_nobody_foresaw_ends_the_process_and_says_where_it_is_told(
    followed: Followed, capfd: pytest.CaptureFixture[str]
) -> None:
    process = await followed.process._running()
    assert process.stdin is not None
    process.stdin.write(b"[]\n")
    with pytest.raises(FetchFailed, match=r"its process ended with exit code 1; .* The control plane's log tells more"):
        await followed.sync()
    assert "Traceback" in capfd.readouterr().err
    followed.origin.push({"a/main.py": ""})
    assert (await followed.sync()).added == ("a",)


async def test_a_process_that_can_not_be_started_is_told(
    followed: Followed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "none"))
    with pytest.raises(FetchFailed, match="the process that fetches can not be started: No such file"):
        await followed.sync()


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
        both = Catalog({"git": followed.source, "local": folder}, data_dir, set, Runs().code, ManualClock())
        commit = await followed.process.fetch(Credentials())
        await both.readers["git"].take(lambda: followed.source.advance(commit), PATIENCE_SECONDS)
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
