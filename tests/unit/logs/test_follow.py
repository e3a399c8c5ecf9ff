"""Following logs: resumed by offset, over attempts, to the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastflow_controlplane.errors import DataLoss, NotFound
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.follow import FollowSettings, LogFollower, Piece, tail_offset
from fastflow_controlplane.logs.store import Log, LogKey
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptView, LogLoss, RunView
from fastflow_controlplane.runs.states import RunState

RUN = "01939f3e-7c1a-7b5e-9d2f-0123456789ab"
LOSS = LogLoss("DROPPED", 4, 96, 0, "too fast")


def attempt(number: int, state: RunState = RunState.RUNNING, losses: tuple[LogLoss, ...] = ()) -> AttemptView:
    rest = dict.fromkeys(AttemptView.__dataclass_fields__)
    return AttemptView(**cast(Any, rest | {"number": number, "state": state, "log_losses": losses}))


def run(state: RunState = RunState.RUNNING, *attempts: AttemptView) -> RunView:
    rest = dict.fromkeys(RunView.__dataclass_fields__)
    return RunView(**cast(Any, rest | {"id": RUN, "state": state, "attempts": attempts, "attempt": len(attempts)}))


class World:
    """A run that changes, and a follower of it."""

    def __init__(self, store: FileLogStore, view: RunView) -> None:
        self.store = store
        self.changes = Changes()
        self.view = view
        self.looks = 0
        settings = FollowSettings(piece_bytes=1000, recheck=60.0, patience=0.05)
        self.follower = LogFollower(store, self._look, self.changes, settings)

    async def _look(self, run_id: str) -> RunView:
        assert run_id == RUN
        self.looks += 1
        return self.view

    def change(self, view: RunView) -> None:
        self.view = view
        self.changes.notify(RUN)

    @asynccontextmanager
    async def log(self, number: int = 1) -> AsyncIterator[Log]:
        async with self.store.open(LogKey(RUN, number)) as log:
            yield log

    async def all(self, **arguments: Any) -> list[Piece]:
        async with asyncio.timeout(60):
            return [piece async for piece in self.follower.read(RUN, **arguments)]

    async def text(self, **arguments: Any) -> bytes:
        return b"".join(piece.data for piece in await self.all(**arguments))

    async def until_looks(self, count: int) -> None:
        """Returns once the run was looked at so often."""
        async with asyncio.timeout(60):
            while self.looks < count:  # noqa: ASYNC110 - looks tell nobody
                await asyncio.sleep(0.001)


class Following:
    """One that follows the log, and what it was sent so far."""

    def __init__(self, world: World) -> None:
        self.pieces: list[Piece] = []
        self.task = asyncio.create_task(self._read(world))

    async def until(self, count: int) -> None:
        """Returns once so many pieces have come."""
        async with asyncio.timeout(60):
            while len(self.pieces) < count and not self.task.done():  # noqa: ASYNC110 - its end would tell nobody
                await asyncio.sleep(0.001)

    async def _read(self, world: World) -> list[Piece]:
        async with asyncio.timeout(60):
            async for piece in world.follower.read(RUN, follow=True):
                self.pieces.append(piece)
        return self.pieces


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = FileLogStore(tmp_path)
    yield World(store, run(RunState.RUNNING, attempt(1)))
    await store.aclose()


async def test_a_log_that_is_removed_while_it_is_opened_is_never_taken_for_an_empty_one(world: World) -> None:
    removed = replace(attempt(1, RunState.SUCCEEDED), log_remove_time=0, log_removed_by="log_max_total", log_bytes=7)
    views = [run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED)), run(RunState.SUCCEEDED, removed)]

    async def look(run_id: str) -> RunView:
        return views.pop(0)

    follower = LogFollower(world.store, look, world.changes)
    with pytest.raises(NotFound, match=r"removed by retention on 1970-01-01 00:00:00 UTC \(setting log_max_total\)"):
        [piece async for piece in follower.read(RUN)]


async def test_a_log_that_is_missing_though_it_was_stored_is_never_taken_for_an_empty_one(world: World) -> None:
    stored = replace(attempt(1, RunState.SUCCEEDED), log_sealed=True, log_bytes=2048)
    world.change(run(RunState.SUCCEEDED, stored))
    with pytest.raises(DataLoss, match="is not in the data folder, though it was stored with 2 KiB"):
        await world.all()
    world.change(run(RunState.SUCCEEDED, replace(stored, log_bytes=0)))
    assert await world.text() == b""


async def settle() -> None:
    """Gives followers time for what they are not to do."""
    for _ in range(50):
        await asyncio.sleep(0.001)


async def test_what_is_there_is_sent_in_pieces_that_say_where_to_resume(world: World) -> None:
    output = bytes(range(256)) * 10
    async with world.log() as log:
        await log.append(0, [output])
        pieces = await world.all()
    assert b"".join(piece.data for piece in pieces) == output
    assert [piece.offset for piece in pieces] == [0, 1000, 2000, 2560]
    assert [piece.next_offset for piece in pieces] == [1000, 2000, 2560, 2560]
    assert pieces[-1].data == b""
    assert not any(piece.sealed for piece in pieces)


@pytest.mark.parametrize("offset", [0, 1, 999, 2559, 2560])
async def test_a_log_is_resumed_at_any_byte(world: World, offset: int) -> None:
    output = bytes(range(256)) * 10
    async with world.log() as log:
        await log.append(0, [output])
        assert await world.text(offset=offset) == output[offset:]


async def test_a_follower_gets_what_comes_and_ends_with_the_seal(world: World) -> None:
    async with world.log() as log:
        following = asyncio.create_task(world.all(follow=True))
        for index in range(20):
            await log.append(log.end, [b"line %d\n" % index])
            await asyncio.sleep(0)
        await settle()
        assert not following.done()
        await log.seal(log.end)
        world.change(run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED)))
        pieces = await following
    assert b"".join(piece.data for piece in pieces) == b"".join(b"line %d\n" % index for index in range(20))
    assert pieces[-1].sealed
    assert pieces[-1].next_offset == pieces[-2].next_offset


async def test_a_quiet_log_is_not_looked_at_again_and_again(world: World) -> None:
    async with world.log() as log:
        following = Following(world)
        for count in range(1, 11):
            await log.append(log.end, [b"x"])
            await following.until(count)
        await settle()
        assert world.looks == 2  # before the log was opened, and since
        following.task.cancel()
        await asyncio.wait([following.task])


async def test_a_follower_that_came_before_the_first_attempt_waits_for_it(world: World) -> None:
    world.view = run(RunState.QUEUED)
    following = asyncio.create_task(world.text(follow=True))
    await world.until_looks(1)
    async with world.log() as log:
        world.change(run(RunState.RUNNING, attempt(1)))
        await log.append(0, [b"began"])
        await log.seal(5)
        world.change(run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED)))
        assert await following == b"began"


async def test_a_run_that_ends_in_the_queue_has_an_empty_complete_log(world: World) -> None:
    world.view = run(RunState.QUEUED)
    following = asyncio.create_task(world.all(follow=True))
    await world.until_looks(1)
    world.change(run(RunState.CANCELLED))
    assert await following == [Piece(0, 0, b"", 0, True, ())]


async def test_a_follower_goes_on_with_the_next_attempt(world: World) -> None:
    async with world.log(1) as first, world.log(2) as second:
        await first.append(0, [b"first"])
        following = Following(world)
        await following.until(1)
        await first.seal(5)
        world.change(run(RunState.QUEUED, attempt(1, RunState.FAILED)))
        await settle()
        assert not following.task.done()
        world.change(run(RunState.RUNNING, attempt(1, RunState.FAILED), attempt(2)))
        await second.append(0, [b"second"])
        await second.seal(6)
        world.change(run(RunState.SUCCEEDED, attempt(1, RunState.FAILED), attempt(2, RunState.SUCCEEDED)))
        pieces = await following.task
    assert [(piece.attempt, piece.offset, piece.data) for piece in pieces] == [
        (1, 0, b"first"),
        (2, 0, b"second"),
        (2, 6, b""),
    ]
    assert [piece.sealed for piece in pieces] == [False, False, True]


async def test_one_attempt_can_be_asked_for(world: World) -> None:
    world.view = run(RunState.RUNNING, attempt(1, RunState.FAILED), attempt(2))
    async with world.log(1) as first, world.log(2) as second:
        await first.append(0, [b"first"])
        await first.seal(5)
        await second.append(0, [b"second"])
        assert await world.text(attempt=1, follow=True) == b"first"
        assert await world.text(attempt=2) == b"second"
        assert await world.text() == b"second"
        with pytest.raises(NotFound, match="no attempt 3"):
            await world.all(attempt=3)


async def test_a_lost_attempt_keeps_no_follower_waiting(world: World) -> None:
    async with world.log() as log:
        await log.append(0, [b"until the agent went away"])
        following = Following(world)
        await following.until(1)
        world.change(run(RunState.LOST, attempt(1, RunState.LOST)))
        pieces = await following.task
    assert not pieces[-1].sealed
    assert b"".join(piece.data for piece in pieces) == b"until the agent went away"


async def test_a_log_that_is_never_sealed_after_the_end_keeps_no_follower_for_ever(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path)
    world = World(store, run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED)))
    settings = FollowSettings(recheck=0.02, patience=0.1)
    world.follower = LogFollower(store, world._look, world.changes, settings)
    async with world.log() as log:
        await log.append(0, [b"nearly all"])
        pieces = await world.all(follow=True)
    assert [(piece.data, piece.sealed) for piece in pieces] == [(b"nearly all", False), (b"", False)]
    await store.aclose()


async def test_lost_bytes_are_told_and_never_sent(world: World) -> None:
    async with world.log() as log:
        await log.append(0, [b"head"])
        following = Following(world)
        await following.until(1)
        await log.skip(4, 100)
        await log.append(100, [b"tail"])
        await following.until(2)
        world.change(run(RunState.RUNNING, attempt(1, losses=(LOSS,))))
        await following.until(3)
        await log.seal(104)
        world.change(run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED, losses=(LOSS,))))
        pieces = await following.task
    assert [(piece.offset, piece.data, piece.losses) for piece in pieces] == [
        (0, b"head", ()),
        (100, b"tail", ()),
        (104, b"", (LOSS,)),
        (104, b"", (LOSS,)),
    ]
    world.view = replace(world.view, state=RunState.SUCCEEDED)
    assert (await world.all())[0].losses == (LOSS,)


async def test_who_is_told_that_a_log_is_complete_was_told_what_it_lacks(world: World) -> None:
    async with world.log() as log:
        await log.append(0, [b"head"])
        following = Following(world)
        await following.until(1)
        # The loss is recorded, and the log sealed, before the follower has heard of either.
        world.view = run(RunState.SUCCEEDED, attempt(1, RunState.SUCCEEDED, losses=(LOSS,)))
        await log.skip(4, 100)
        await log.seal(100)
        pieces = await following.task
    assert [(piece.offset, piece.data, piece.sealed, piece.losses) for piece in pieces] == [
        (0, b"head", False, ()),
        (100, b"", False, (LOSS,)),
        (100, b"", True, (LOSS,)),
    ]


async def test_what_an_attempt_lacks_is_told_before_the_next_one_begins(world: World) -> None:
    async with world.log(1) as first, world.log(2) as second:
        await first.append(0, [b"head"])
        following = Following(world)
        await following.until(1)
        world.view = run(
            RunState.SUCCEEDED, attempt(1, RunState.FAILED, losses=(LOSS,)), attempt(2, RunState.SUCCEEDED)
        )
        await second.seal(0)
        await first.seal(4)
        pieces = await following.task
    assert [(piece.attempt, piece.data, piece.losses) for piece in pieces] == [
        (1, b"head", ()),
        (1, b"", (LOSS,)),
        (2, b"", ()),
    ]


async def test_a_follower_that_stops_reading_holds_up_nobody(world: World) -> None:
    async with world.log() as log:
        slow = world.follower.read(RUN, follow=True)
        await log.append(0, [b"x" * 100])
        assert (await anext(slow)).data == b"x" * 100
        for _ in range(50):
            await log.append(log.end, [b"y" * 10_000])
        assert (await anext(slow)).data == b"y" * 1000
        await slow.aclose()
        assert await world.text() == b"x" * 100 + b"y" * 500_000


@pytest.mark.parametrize(
    ("output", "lines", "expected"),
    [
        (b"1\n2\n3\n", 2, b"2\n3\n"),
        (b"1\n2\n3", 2, b"2\n3"),
        (b"1\n2\n\n", 1, b"\n"),
        (b"1\n2\n3\n", 3, b"1\n2\n3\n"),
        (b"1\n2\n3\n", 10, b"1\n2\n3\n"),
        (b"", 5, b""),
        (b"\n", 1, b"\n"),
        (b"x" * 5000 + b"\nlast", 2, b"x" * 5000 + b"\nlast"),
        (b"\xff\xfe\n\x00\n", 1, b"\x00\n"),
    ],
)
async def test_the_last_lines_can_be_asked_for(world: World, output: bytes, lines: int, expected: bytes) -> None:
    async with world.log() as log:
        await log.append(0, [output])
        assert await world.text(tail_lines=lines) == expected
        start = await tail_offset(log, lines, block=3)
        assert output[start:] == expected


async def test_the_last_lines_are_counted_over_lost_bytes(world: World) -> None:
    async with world.log() as log:
        await log.append(0, [b"1\n2\nhalf"])
        await log.skip(8, 1_000_000_000)
        await log.append(1_000_000_000, [b" line\n4\n"])
        assert await world.text(tail_lines=1) == b"4\n"
        assert await world.text(tail_lines=2) == b"half line\n4\n"
        assert await world.text(tail_lines=3) == b"2\nhalf line\n4\n"
