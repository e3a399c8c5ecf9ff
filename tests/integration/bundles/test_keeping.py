"""How long code stays on the disk, and what goes first."""

import asyncio
from pathlib import Path

from fastflow.pipelines.bundle import Bundle, digest_hex
from fastflow_agent.bundles import LEASE_SECONDS
from fastflow_agent.model import SlotId

from tests.integration.bundles.world import OTHER_SLOT, SLOT, World

ROOM_FOR_TWO = 250_000


def packed(world: World, folder: Path, number: int) -> Bundle:
    """Code of about 100 kB, different for each number."""
    code = folder / f"code-{number}"
    code.mkdir()
    (code / "main.py").write_text(f"print({number})\n")
    (code / "data").write_bytes(bytes([number]) * 100_000)
    return world.source.add(code)


def name_of(bundle: Bundle) -> str:
    return digest_hex(bundle.digest)


async def test_code_used_longest_ago_goes_when_there_is_too_much(world: World, tmp_path: Path) -> None:
    first, second, third = (packed(world, tmp_path, number) for number in range(3))
    world.restart(ROOM_FOR_TWO)
    for bundle in (first, second, first, third):
        await world.use(bundle)
    await world.bundles.prune()
    assert world.names() == {name_of(first), name_of(third)}
    assert {path.name for path in world.folder.glob("*.used")} == {f"{name}.used" for name in world.names()}


async def test_the_last_use_is_remembered_by_the_next_agent(world: World, tmp_path: Path) -> None:
    first, second, third = (packed(world, tmp_path, number) for number in range(3))
    for bundle in (first, second, first):
        await world.use(bundle)
    world.restart(ROOM_FOR_TWO)
    await world.use(third)
    await world.bundles.prune()
    assert world.names() == {name_of(first), name_of(third)}


async def test_code_a_slot_uses_stays_however_little_room_there_is(world: World, tmp_path: Path) -> None:
    first, second = (packed(world, tmp_path, number) for number in range(2))
    await world.use(first)
    world.restart(size_limit=0)
    world.bundles.pin(first.digest, SLOT)
    world.bundles.pin(first.digest, OTHER_SLOT)
    world.bundles.unpin(SLOT)
    await world.use(second)
    await world.bundles.prune()
    assert world.names() == {name_of(first)}
    world.bundles.unpin(OTHER_SLOT)
    await world.bundles.prune()
    assert world.names() == set()


async def test_code_just_handed_out_stays_until_it_can_be_pinned(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.restart(size_limit=0)
    await world.bundles.ensure(bundle.digest, bundle.size)
    world.clock.passed += LEASE_SECONDS - 1
    await world.bundles.prune()
    assert world.names() == {name_of(bundle)}
    world.clock.passed += 1
    await world.bundles.prune()
    assert world.names() == set()


async def test_nothing_goes_while_containers_live_whose_code_is_not_known(world: World, code: Path) -> None:
    bundle = world.source.add(code)
    world.restart(size_limit=0)
    world.bundles.removal_allowed = False
    await world.use(bundle)
    await world.bundles.prune()
    assert world.names() == {name_of(bundle)}
    world.bundles.removal_allowed = True
    await world.bundles.prune()
    assert world.names() == set()


async def test_code_of_a_thousand_runs_is_on_the_disk_once(world: World, tmp_path: Path) -> None:
    bundle = packed(world, tmp_path, 1)
    slots = [SlotId(f"{number:016x}") for number in range(1000)]
    for slot in slots:
        world.bundles.pin(bundle.digest, slot)
    paths = await asyncio.gather(*(world.bundles.ensure(bundle.digest, bundle.size) for _ in slots))
    assert set(paths) == {world.folder / name_of(bundle)}
    assert world.source.fetches == 1
    used = sum(path.stat().st_size for path in world.folder.rglob("*") if path.is_file())
    assert used < 1.1 * bundle.size
