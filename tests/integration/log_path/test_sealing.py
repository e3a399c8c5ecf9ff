"""Which logs are taken, and when one counts as sealed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_agent.model import AttemptKey
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.uploads import Rejection
from fastflow_controlplane.runs.model import AttemptKey as StoredKey

from tests.integration.log_path.world import World, write


async def test_a_log_nobody_knows_is_refused_and_no_byte_of_it_stored(world: World, tmp_path: Path) -> None:
    known, stranger = world.key(), AttemptKey(new_id(), 1, "token")
    imposter = replace(known, claim_token="guessed")
    for key in (stranger, imposter):
        world.agent.ship(key)
        write(world.agent.file(key), b"let me in")
        assert await world.agent.seal(key) == 0
    assert not list((tmp_path / "controlplane").rglob("*.log"))


async def test_a_log_that_is_removed_while_its_stream_asks_for_it_does_not_begin_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.key()
    answers = [Rejection.NONE]

    async def admit(_: StoredKey) -> Rejection:
        return answers.pop() if answers else Rejection.UNKNOWN_ATTEMPT

    monkeypatch.setattr(world.attempts, "admit", admit)
    world.agent.ship(key)
    world.agent.file(key).write_bytes(b"once more")
    assert await world.agent.seal(key) == 0
    assert not list((tmp_path / "controlplane").rglob("*.log"))


@pytest.mark.parametrize("dies", [True, False], ids=["control plane killed", "connection lost"])
async def test_a_log_counts_as_sealed_only_once_that_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    key, recording = world.key(), asyncio.Event()
    record = world.attempts.sealed

    async def never(key: StoredKey, end: int) -> None:
        recording.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.attempts, "sealed", never)
    world.agent.ship(key)
    write(world.agent.file(key), b"all of it")
    sealing = asyncio.create_task(world.agent.seal(key))
    await recording.wait()
    # The file says that the log is sealed, the rows do not yet: nobody may be told what only the file says.
    if dies:
        await world.controlplane.stop()
        monkeypatch.setattr(world.attempts, "sealed", record)
        await world.controlplane.start()
    else:
        await world.agent.kill()
        monkeypatch.setattr(world.attempts, "sealed", record)
        await world.agent.start()
        world.agent.ship(key)
        sealing = asyncio.create_task(world.agent.seal(key))
    assert await sealing == len(b"all of it")
    assert world.attempts.ends == {(key.run_id, 1): len(b"all of it")}


async def test_output_after_the_seal_is_refused(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    assert await world.agent.seal(key) == 3
    await world.agent.shipper.remove(key)
    write(world.agent.file(key), b" and more")
    world.agent.ship(key, 3)
    assert await world.agent.seal(key) == 3
    assert await world.controlplane.log(key) == b"all"


async def test_while_the_database_is_away_no_log_is_told_sealed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key, taken = world.key(), world.attempts.sealed
    calls = 0

    async def sealed(key: StoredKey, end: int) -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise Unavailable("the database is away")
        await taken(key, end)

    monkeypatch.setattr(world.attempts, "sealed", sealed)
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    assert await world.agent.seal(key) == 3
    assert world.attempts.ends == {(key.run_id, 1): 3}


async def test_a_log_that_a_dead_control_plane_sealed_is_recorded_before_the_agent_is_told(world: World) -> None:
    key = world.key()
    world.agent.ship(key)
    write(world.agent.file(key), b"all")
    await world.agent.seal(key)
    await world.agent.shipper.remove(key)
    world.attempts.ends.clear()  # as a kill between the two leaves it
    world.agent.ship(key)
    assert await world.agent.seal(key) == 3
    assert world.attempts.ends == {(key.run_id, 1): 3}
