"""Code that is changed on the disk of the agent's host is never used."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow.deletion import delete_trees
from fastflow_agent.bundle_store import BundleStore

from tests.integration.bundles.world import SLOT, World


def rewritten(file: Path) -> None:
    file.chmod(0o644)
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"hello", b"other"))
    # As thorough as an intruder may be: what `ls` shows is as it was.
    file.chmod(0o444)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(file: Path) -> None:
    file.parent.chmod(0o755)
    file.unlink()


def joined(file: Path) -> None:
    file.parent.chmod(0o755)
    (file.parent / "extra.py").write_text("new")


def cut(file: Path) -> None:
    file.chmod(0o644)
    os.truncate(file, 10)


@pytest.mark.parametrize("change", [rewritten, removed, joined, cut])
@pytest.mark.parametrize("restarted", [False, True])
async def test_code_changed_on_the_disk_is_noticed_and_fetched_again(
    world: World, code: Path, change: Callable[[Path], None], restarted: bool
) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    change(path / "main.py")
    if restarted:
        world.restart()
    assert await world.use(bundle) == path
    assert (path / "main.py").read_bytes() == (code / "main.py").read_bytes()
    assert not (path / "extra.py").exists()
    assert world.source.fetches == 2
    await world.bundles.prune()
    assert world.names() == {path.name}
    assert not list(world.folder.glob(".*"))


async def test_code_that_somebody_removes_while_it_is_looked_at_is_fetched_again(
    world: World, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    look = BundleStore.broken

    def look_at_what_goes(store: BundleStore, name: str) -> str:
        delete_trees(store.path(name))
        return look(store, name)

    monkeypatch.setattr(BundleStore, "broken", look_at_what_goes)
    assert await world.use(bundle) == path
    assert (path / "main.py").read_bytes() == (code / "main.py").read_bytes()
    assert world.source.fetches == 2


async def test_damaged_code_is_not_taken_from_the_slot_that_uses_it(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    path = await world.bundles.ensure(bundle.digest, bundle.size)
    world.bundles.pin(bundle.digest, SLOT)
    mounted = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    inside = Path(f"/proc/self/fd/{mounted}")
    try:
        removed(path / "main.py")
        await world.use(bundle)
        await world.bundles.prune()
        assert [entry.name for entry in inside.iterdir()] == ["package"]
        world.bundles.unpin(SLOT)
        await world.bundles.prune()
        assert list(inside.iterdir()) == []
    finally:
        os.close(mounted)
    assert (path / "main.py").exists()


async def test_whole_code_is_not_fetched_again_by_the_next_agent(world: World, code: Path) -> None:
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    (code / "link").symlink_to("package/data.bin")
    bundle = world.source.add(code)
    await world.bundles.ensure(bundle.digest, bundle.size)
    world.restart()
    await world.bundles.ensure(bundle.digest, bundle.size)
    assert world.source.fetches == 1
