"""Output that was lost is a fact that the control plane gets before the attempt is forgotten, whatever comes first."""

import asyncio
import errno
import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastflow_agent.attempts.dossier import Dossier
from fastflow_agent.attempts.output import Output
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import LogLossFound
from fastflow_agent.journal import Journal
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.lost import LostBytes
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey
from fastflow_agent.reconcile import number
from fastflow_agent.records import Created

from tests.unit.agent.world import INTENT, NOW, SPEC, World

LOSS = LogLossFound("DROPPED", 5, NOW, 7, "too fast")


def _forget(world: World, key: AttemptKey) -> None:
    """The control plane has all it wants: it sealed the log, and died before the agent heard of it."""
    world.known[key].word = Desired(key, Action.FORGET)
    world.say(key)


def _told(world: World, key: AttemptKey) -> list[tuple[str, int, int | None]]:
    facts = world.known[key].facts
    return [(fact.kind, fact.offset, fact.bytes) for fact in facts if isinstance(fact, LogLossFound)]


async def _dropped(world: World) -> tuple[AttemptKey, LostBytes]:
    """An attempt whose program has ended, and what of its output was dropped; its log is not sealed yet."""
    key = world.assign()
    await world.running(key)
    world.shipper.blocked.clear()
    spool = world.shipper.spools[key]
    spool.share(4096)
    world.write(key, b"x" * 100_000)
    spool.care()
    assert spool.take_losses() == []
    world.runtime.end(world.slot(key), 0)
    await world.until(lambda: world.known[key].gone)
    (dropped,) = spool._lost.ranges
    return key, dropped


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_loss_is_told_though_all_is_to_be_forgotten_before_the_log_is_known_to_be_sealed(
    world: World, restarted: bool
) -> None:
    await world.start()
    key, dropped = await _dropped(world)
    if restarted:
        await world.kill()
    _forget(world, key)
    if restarted:
        await world.start()
    await world.forgotten(key)
    assert _told(world, key) == [("DROPPED", dropped.offset, dropped.end - dropped.offset)]


async def _past_the_limit(world: World) -> AttemptKey:
    """An attempt that ended with more output than its log may have, none of which has been read."""
    await world.start()
    key = world.assign(log_limit=10)
    await world.running(key)
    world.shipper.blocked.clear()
    world.write(key, b"more than ten bytes")
    world.runtime.end(world.slot(key), 0)
    await world.until(lambda: world.known[key].gone)
    return key


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_log_is_sealed_once_the_control_plane_has_what_it_lacks(world: World, restarted: bool) -> None:
    key = await _past_the_limit(world)
    world.connected = False
    world.shipper.blocked.set()
    await world.until(lambda: any(isinstance(event.fact, LogLossFound) for event in world.attempt(key).unacknowledged))
    await world.clock.settle()
    if restarted:
        await world.restart()
        await world.clock.settle()
    assert key not in world.shipper.sealed
    world.connected = True
    await world.until(lambda: key in world.shipper.sealed)
    assert _told(world, key) == [("TRUNCATED", 10, None)]
    await world.forgotten(key)


async def test_output_past_the_limit_is_told_though_the_agent_died_before_it_said_so(world: World) -> None:
    key = await _past_the_limit(world)
    await world.kill()
    _forget(world, key)
    await world.start()
    await world.forgotten(key)
    assert _told(world, key) == [("TRUNCATED", 10, None)]


async def test_a_loss_that_was_told_with_the_seal_is_not_told_again(world: World) -> None:
    await world.start()
    key, dropped = await _dropped(world)
    spool = world.shipper.spools[key]
    spool.read(dropped.offset, 1)
    spool.acknowledged(dropped.end)
    world.shipper.blocked.set()
    await world.forgotten(key)
    assert _told(world, key) == [("DROPPED", dropped.offset, dropped.end - dropped.offset)]


async def test_what_is_found_twice_before_it_is_written_is_one_loss(world: World) -> None:
    await world.start()
    key = world.assign()
    await world.running(key)
    for _ in range(2):
        world.shipper.on_loss[key](LogLoss("DROPPED", 5, 7, "too fast"))
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert _told(world, key) == [("DROPPED", 5, 7)]


async def test_what_is_wanted_again_while_a_loss_of_it_is_told_is_delivered_and_not_deleted(world: World) -> None:
    await world.start()
    key, dropped = await _dropped(world)
    wanted = world.known[key].word
    _forget(world, key)
    await world.clock.settle()
    assert world.worker.unacknowledged(number(key))
    # Its database is an older one.
    world.known[key].word = wanted
    world.connect()
    world.shipper.blocked.set()
    await world.forgotten(key)
    assert world.shipper.sealed == {key: 100_000}
    assert _told(world, key) == [("DROPPED", dropped.offset, dropped.end - dropped.offset)]


async def test_a_stream_may_begin_while_the_log_of_a_forgotten_attempt_is_let_go(world: World) -> None:
    await world.start()
    key, _ = await _dropped(world)
    world.shipper.slow_removal.clear()
    _forget(world, key)
    await world.until(lambda: key not in world.shipper.spools)
    (report,) = world.worker.reports
    assert (report.key, report.log_offset) == (key, 0)
    world.shipper.slow_removal.set()
    await world.forgotten(key)


# Between memory and disk.


async def test_a_fact_that_is_being_written_is_waited_for(world: World, tmp_path: Path) -> None:
    await world.start()
    with ThreadPoolExecutor(1) as disk:
        journal = await Journal.create(tmp_path / "slots" / "s" / "journal", INTENT, disk, world.clock)
        dossier = Dossier(journal, world.services)
        busy = threading.Event()
        disk.submit(busy.wait)
        keeping = asyncio.create_task(dossier.keep_notes())
        dossier.note(LOSS)
        await world.clock.settle()
        telling = asyncio.create_task(dossier.until_told())
        await world.clock.settle()
        told = telling.done()
        busy.set()
        assert not told
        async with asyncio.timeout(60):
            while not dossier.history.unacked:  # noqa: ASYNC110  # a thread of its own writes it
                await asyncio.sleep(0.001)
        await world.clock.settle()
        assert not telling.done()
        dossier.acknowledge(1)
        await telling
        keeping.cancel()
        await journal.close()


async def test_a_fact_the_disk_refuses_is_not_forgotten_when_whoever_writes_it_is_ended(
    world: World, disk: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    journal = await Journal.create(tmp_path / "slots" / "s" / "journal", INTENT, disk, world.clock)
    dossier = Dossier(journal, world.services)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    keeping = asyncio.create_task(dossier.keep_notes())
    dossier.note(LOSS)
    await world.until(lambda: world.conditions.all())
    keeping.cancel()
    await asyncio.wait([keeping])
    monkeypatch.undo()
    await dossier.record(Created(9))
    assert [event.fact for event in dossier.history.unacked.values()] == [LOSS]
    await journal.close()


async def test_a_log_that_is_being_opened_when_it_is_not_wanted_any_more_is_closed(
    world: World, disk: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = Spool.open

    def slowly(path: Path, **settings: Any) -> Spool:
        began.set()
        go_on.wait()
        return real(path, **settings)

    await world.start()
    paths = world.paths(INTENT.slot)
    dossier = Dossier(await Journal.create(paths.journal, INTENT, disk, world.clock), world.services)
    dossier.wishes.tell(Desired(INTENT.key, Action.RUN, spec=SPEC))
    monkeypatch.setattr(Spool, "open", slowly)
    opening = asyncio.create_task(Output(dossier).open())
    await asyncio.to_thread(began.wait)
    opening.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await world.clock.settle()
    assert paths.log.exists()
    assert str(paths.log) not in _open_files()
    await dossier.journal.close()


def _open_files() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found
