"""The catalog: what is in the folder is listed, and runs are pinned to exactly that."""

import asyncio
import io
import os
import threading
from pathlib import Path

import pytest
from fastflow.pipelines.bundle import digest_of, unpack
from fastflow.pipelines.discovery import PipelineState
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.model import PinnedCode
from fastflow_controlplane.sources.mounted import MountedFolder

from tests.unit.sources.conftest import DEFAULTS, catalog_of, make, on_disk


def names(catalog: Catalog) -> list[str]:
    return [view.name for view in catalog.list()]


async def code_of(catalog: Catalog, pinned: PinnedCode, into: Path) -> Path:
    async with await catalog.open_bundle(pinned.bundle_digest) as file:
        archive = await file.read(file.size + 1)
    assert len(archive) == file.size == pinned.bundle_size
    assert digest_of(io.BytesIO(archive)) == pinned.bundle_digest
    unpack(io.BytesIO(archive), into)
    return into


async def test_pipelines_are_listed_by_name_without_registration(catalog: Catalog, root: Path) -> None:
    make(root / "b", cpu_hard_limit=0.25, description="The second", tags=["x"], timeout=5)
    make(root / "group" / "a", enabled=False)
    await catalog.refresh()
    first, second = catalog.list()
    assert (first.name, first.path, first.state) == ("a", "group/a", PipelineState.DISABLED)
    assert (second.name, second.source, second.metadata_file) == ("b", str(root), "pipeline.json")
    assert second.metadata is not None
    assert second.metadata.limits.cpu_hard_milli_cores == 250
    assert second.metadata.limits.memory_hard_bytes == DEFAULTS.memory_hard_bytes
    assert second.bundle_digest.startswith("sha256:")
    assert len(second.tree) == 40


async def test_a_pinned_pipeline_s_bundle_is_its_code(catalog: Catalog, root: Path, tmp_path: Path) -> None:
    folder = make(root / "p", main="print('ü')\n", mem_hard_limit="64m")
    (folder / "package").mkdir()
    (folder / "package" / "tool").write_bytes(os.urandom(2_000_000))
    (folder / "package" / "tool").chmod(0o755)
    pinned = await catalog.snapshot("p")
    assert pinned.metadata.limits.memory_hard_bytes == 64 * 1024**2
    code = await code_of(catalog, pinned, tmp_path / "code")
    for path in ("main.py", "pipeline.json", "package/tool"):
        assert (code / path).read_bytes() == (folder / path).read_bytes()
    assert (code / "package" / "tool").stat().st_mode & 0o100


async def test_a_run_gets_the_code_as_it_is_at_its_creation(catalog: Catalog, root: Path, tmp_path: Path) -> None:
    folder = make(root / "p", main="old")
    before = await catalog.snapshot("p")
    (folder / "main.py").write_text("new")
    after = await catalog.snapshot("p")
    assert before.tree != after.tree
    assert catalog.get("p").tree == after.tree
    assert (await code_of(catalog, before, tmp_path / "before") / "main.py").read_text() == "old"
    assert (await code_of(catalog, after, tmp_path / "after") / "main.py").read_text() == "new"


async def test_a_pipeline_that_came_since_the_last_look_can_be_run(catalog: Catalog, root: Path) -> None:
    await catalog.refresh()
    make(root / "new")
    assert (await catalog.snapshot("new")).pipeline == "new"
    assert names(catalog) == ["new"]


async def test_the_same_code_in_two_places_is_one_bundle(catalog: Catalog, root: Path, data_dir: Path) -> None:
    make(root / "a")
    make(root / "b")
    pinned = [await catalog.snapshot(name) for name in ("a", "b", "a")]
    assert len({pin.bundle_digest for pin in pinned}) == 1
    assert len(list((data_dir / "bundles" / "sha256").iterdir())) == 1


async def test_looking_at_pipelines_writes_no_bundle(catalog: Catalog, root: Path, data_dir: Path) -> None:
    make(root / "a")
    await catalog.refresh()
    assert list((data_dir / "bundles" / "sha256").iterdir()) == []


async def test_the_bundle_of_the_code_as_it_is_now_is_written_when_an_agent_asks_for_it(
    catalog: Catalog, root: Path
) -> None:
    make(root / "a")
    await catalog.refresh()
    view = catalog.get("a")
    async with await catalog.open_bundle(view.bundle_digest) as file:
        assert file.size == view.bundle_size
    with pytest.raises(NotFound):
        await catalog.open_bundle(f"sha256:{'0' * 64}")


async def test_a_change_of_the_pipelines_is_told_once(catalog: Catalog, root: Path) -> None:
    told: list[list[str]] = []
    catalog.on_change = lambda changes: told.append(names(catalog))
    folder = make(root / "a", main='# /// script\n# dependencies = ["x"]\n# ///\n')
    await catalog.refresh()
    await catalog.refresh()
    assert told == [["a"]]
    assert catalog.get("a").has_header
    (folder / "main.py").write_text("print('changed')\n")
    await catalog.refresh()
    assert told == [["a"], ["a"]]
    assert not catalog.get("a").has_header
    (folder / "main.py").unlink()
    await catalog.refresh()
    assert told[2:] == [[]]


async def test_a_bundle_outlives_the_catalog(catalog: Catalog, root: Path, data_dir: Path, tmp_path: Path) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    again = catalog_of(tmp_path / "elsewhere", data_dir)
    await code_of(again, pinned, tmp_path / "code")
    await again.close()


async def test_an_unknown_pipeline_is_not_found_with_the_nearest(catalog: Catalog, root: Path) -> None:
    make(root / "invoices")
    for attempt in (catalog.snapshot("invoice"), None):
        with pytest.raises(NotFound, match='there is no pipeline "invoice"; did you mean "invoices"'):
            await attempt if attempt else catalog.get("invoice")


async def test_a_pipeline_that_is_gone_is_not_found(catalog: Catalog, root: Path) -> None:
    folder = make(root / "p")
    await catalog.snapshot("p")
    (folder / "main.py").unlink()
    with pytest.raises(NotFound):
        await catalog.snapshot("p")
    assert names(catalog) == []


async def test_an_invalid_pipeline_is_listed_and_refuses_to_run(catalog: Catalog, root: Path, data_dir: Path) -> None:
    make(root / "p", mem_hard_limit="1x", timeouts=3)
    await catalog.refresh()
    view = catalog.get("p")
    assert (view.state, view.metadata) == (PipelineState.INVALID, None)
    with pytest.raises(
        InvalidArgument, match=r'pipeline "p" is invalid: pipeline\.json: timeouts: .* \(and 1 more\)'
    ) as caught:
        await catalog.snapshot("p")
    assert caught.value.reason == "PIPELINE_INVALID"
    assert len(caught.value.violations) == 2
    assert {violation.field for violation in caught.value.violations} == {"pipeline"}


async def test_a_disabled_pipeline_can_be_run_by_hand(catalog: Catalog, root: Path) -> None:
    make(root / "p", enabled=False)
    assert not (await catalog.snapshot("p")).metadata.enabled


async def test_two_folders_of_one_name_refuse_to_run(catalog: Catalog, root: Path) -> None:
    make(root / "a" / "p")
    make(root / "b" / "p")
    await catalog.refresh()
    assert names(catalog) == ["p"]
    with pytest.raises(InvalidArgument, match="stands for 2 folders: a/p, b/p"):
        await catalog.snapshot("p")
    (root / "b" / "p" / "main.py").unlink()
    assert (await catalog.snapshot("p")).pipeline == "p"


@pytest.mark.parametrize(
    ("wanted", "versions", "state"),
    [
        ("3.11", {"3.11.4", "3.9.2"}, PipelineState.READY),
        ("3.13", {"3.11.4", "3.9.2"}, PipelineState.INVALID),
        ("3.13", set(), PipelineState.READY),
    ],
)
async def test_a_python_that_no_agent_has_makes_the_pipeline_invalid(
    catalog: Catalog, root: Path, python_versions: set[str], wanted: str, versions: set[str], state: PipelineState
) -> None:
    make(root / "p", python_version=wanted)
    await catalog.refresh()
    assert catalog.get("p").state is PipelineState.READY, "no agent is known yet"
    python_versions |= versions
    assert catalog.get("p").state is state
    # An agent that has it may come, and is to prepare its packages then.
    written = catalog.as_written("p")
    assert written is not None
    assert written.state is PipelineState.READY
    if state is PipelineState.INVALID:
        with pytest.raises(
            InvalidArgument, match=r'"3\.13" is in the runner image of no agent; there are: 3\.9\.2, 3\.11\.4'
        ):
            await catalog.snapshot("p")


async def test_a_folder_that_can_not_be_read_is_said_and_forgets_nothing(catalog: Catalog, root: Path) -> None:
    make(root / "p")
    await catalog.refresh()
    root.rename(root.parent / "unmounted")
    for attempt in (catalog.refresh(), catalog.snapshot("p")):
        with pytest.raises(Unavailable, match=f"pipelines folder {root}: .*No such file"):
            await attempt
    assert names(catalog) == ["p"]
    assert "No such file" in catalog.condition
    (root.parent / "unmounted").rename(root)
    await catalog.refresh()
    assert catalog.condition == ""


async def test_a_full_disk_is_said_and_leaves_no_half_bundle(
    catalog: Catalog, root: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    await catalog.refresh()

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match=f"the disk that holds {data_dir} is full: the code of runs") as caught:
            await catalog.snapshot("p")
    assert caught.value.reason == "DISK_FULL"
    assert list((data_dir / "bundles" / "sha256").iterdir()) == []
    await catalog.snapshot("p")


async def test_damage_of_the_object_database_heals_by_itself(catalog: Catalog, root: Path, data_dir: Path) -> None:
    make(root / "p", main="one")
    make(root / "q", main="two")
    await catalog.refresh()
    for item in (data_dir / "snapshots.git" / "objects").glob("??/*"):
        item.chmod(0o600)
        item.write_bytes(b"")
    before = catalog.get("p").tree
    assert (await catalog.snapshot("p")).tree == before
    assert (await catalog.snapshot("q")).pipeline == "q"


async def test_an_object_database_that_can_not_be_opened_is_made_anew(
    catalog: Catalog, root: Path, data_dir: Path
) -> None:
    (data_dir / "snapshots.git" / "HEAD").unlink()
    again = catalog_of(root, data_dir)
    make(root / "p")
    assert await again.snapshot("p")
    await again.close()


async def test_leftovers_of_a_crash_are_removed(catalog: Catalog, root: Path, data_dir: Path) -> None:
    leftover = data_dir / "bundles" / "sha256" / ".partial-x"
    leftover.touch()
    await catalog_of(root, data_dir).close()
    assert not leftover.exists()


async def test_a_bundle_cut_short_on_disk_is_written_again(
    catalog: Catalog, root: Path, data_dir: Path, tmp_path: Path
) -> None:
    make(root / "p")
    pinned = await catalog.snapshot("p")
    on_disk(data_dir, pinned).write_bytes(b"")
    await code_of(catalog, await catalog.snapshot("p"), tmp_path / "code")


@pytest.mark.parametrize(("digest", "error"), [("sha256:" + "0" * 64, NotFound), ("../../etc/passwd", InvalidArgument)])
async def test_only_bundles_can_be_opened(catalog: Catalog, digest: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await catalog.open_bundle(digest)


class Gate:
    """Holds up the looks at a folder, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.looks = 0
        look = MountedFolder.scan

        def held(source: MountedFolder) -> object:
            self.looks += 1
            self.begun.set()
            assert self.opened.wait(60)
            return look(source)

        monkeypatch.setattr(MountedFolder, "scan", held)


async def test_callers_at_the_same_time_share_a_look_that_begins_after_they_called(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    first = asyncio.create_task(catalog.refresh())
    await asyncio.to_thread(gate.begun.wait)
    make(root / "p")
    others = [asyncio.create_task(catalog.refresh()) for _ in range(5)]
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(first, *others)
    assert gate.looks == 2
    assert names(catalog) == ["p"]


async def test_a_recent_look_is_enough_for_who_says_so(root: Path, data_dir: Path) -> None:
    clock = ManualClock()
    catalog = catalog_of(root, data_dir, clock=clock)
    await catalog.refresh()
    make(root / "p")
    await clock.advance(0.5)
    await catalog.refresh(max_age=1.0)
    assert names(catalog) == []
    await clock.advance(1.0)
    await catalog.refresh(max_age=1.0)
    assert names(catalog) == ["p"]
    await catalog.close()


async def test_a_caller_that_gives_up_harms_no_other(
    catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "p")
    gate = Gate(monkeypatch)
    impatient = asyncio.create_task(catalog.snapshot("p"))
    await asyncio.to_thread(gate.begun.wait)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    patient = asyncio.create_task(catalog.snapshot("p"))
    await asyncio.sleep(0)
    gate.opened.set()
    assert (await patient).pipeline == "p"


async def test_a_mount_that_hangs_is_said_and_takes_one_thread_only(
    root: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    catalog = catalog_of(root, data_dir, answer_seconds=0.05)
    for _ in range(3):
        with pytest.raises(Unavailable, match="is it a mount that hangs"):
            await catalog.refresh()
    assert gate.looks == 1
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "pipelines-read"]
    gate.opened.set()
    await asyncio.to_thread(thread.join)
    await catalog.refresh()
    assert catalog.condition == ""
    await catalog.close()


async def test_a_fault_of_its_own_does_not_end_the_watch(
    root: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = MountedFolder.scan
    looks = iter([RecursionError("deep"), RecursionError("deep")])

    def faulty(source: MountedFolder) -> object:
        if fault := next(looks, None):
            raise fault
        return look(source)

    monkeypatch.setattr(MountedFolder, "scan", faulty)
    make(root / "p")
    clock = ManualClock()
    catalog = catalog_of(root, data_dir, clock=clock)
    watching = asyncio.create_task(catalog.watch(2.0))
    while names(catalog) != ["p"]:
        assert not watching.done()
        await clock.advance(2.0)
        await asyncio.sleep(0.001)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await catalog.close()


async def test_the_catalog_follows_the_folder(root: Path, data_dir: Path) -> None:
    clock = ManualClock()
    catalog = catalog_of(root, data_dir, clock=clock)
    watching = asyncio.create_task(catalog.watch(2.0))
    make(root / "p")
    async with asyncio.timeout(60):
        while names(catalog) != ["p"]:
            await clock.advance(2.0)
            await asyncio.sleep(0.001)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await catalog.close()
