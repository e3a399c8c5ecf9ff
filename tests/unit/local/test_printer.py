"""The output of a local run: from the spool to a pipe, byte for byte, whatever the reader does."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastflow_agent.local.printer import Printer
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import Spool
from fastflow_agent.model import AttemptKey

KEY = AttemptKey("run", 1, "token")


@dataclass
class Bench:
    """A printer that writes to a pipe, and what it told."""

    printer: Printer
    reader: int
    log: Path
    sealed: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    written: list[bytes] = field(default_factory=list)
    losses: list[LogLoss] = field(default_factory=list)

    def add(self, **settings: object) -> None:
        values = {"spool_quota": 1 << 30, **settings}
        self.printer.add(KEY, Spool.open(self.log, **values), 0, self.losses.append)

    def program_writes(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)

    async def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (piece := await asyncio.to_thread(os.read, self.reader, count - len(data))):
            data += piece
        return data


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    reader, writer = os.pipe()
    made = Bench(
        Printer(
            writer,
            on_written=lambda data: made.written.append(data),
            on_sealed=lambda: made.sealed.set(),
            on_reader_left=lambda why: made.left.set(),
        ),
        reader,
        tmp_path / "log",
    )
    made.log.touch()
    yield made
    await made.printer.remove(KEY)
    made.printer.close()
    os.close(writer)
    if not made.left.is_set():
        os.close(reader)


async def test_output_comes_while_it_is_written_and_to_its_last_byte(bench: Bench) -> None:
    bench.add()
    bench.program_writes(b"first\n")
    assert await bench.read(6) == b"first\n"
    rest = bytes(range(256)) * 2048
    bench.program_writes(rest)
    sealing = asyncio.create_task(bench.printer.seal(KEY))
    assert await bench.read(len(rest)) == rest
    assert await sealing == len(rest) + 6
    assert bench.sealed.is_set()
    assert b"".join(bench.written) == b"first\n" + rest


async def test_secrets_are_masked_across_pieces(bench: Bench) -> None:
    bench.add(masks=[b"hunter2hunter2"])
    bench.program_writes(b"key: hunter2")
    assert await bench.read(5) == b"key: "
    bench.program_writes(b"hunter2\n")
    await bench.printer.seal(KEY)
    assert await bench.read(15) == b"*" * 14 + b"\n"


async def test_what_exceeds_the_limit_is_told_as_a_loss(bench: Bench) -> None:
    bench.add(log_limit=4)
    bench.program_writes(b"0123456789")
    assert await bench.printer.seal(KEY) == 4
    assert await bench.read(4) == b"0123"
    assert [loss.kind for loss in bench.losses] == ["TRUNCATED"]


async def test_a_reader_that_leaves_is_told_and_the_log_still_ends(bench: Bench) -> None:
    bench.add()
    os.close(bench.reader)
    bench.program_writes(b"nobody reads this")
    await bench.left.wait()
    bench.program_writes(b" nor this")
    assert await bench.printer.seal(KEY) == 26


async def test_a_reader_that_does_not_read_holds_up_nothing_once_it_is_given_up(bench: Bench) -> None:
    bench.add()
    bench.program_writes(b"x" * (1 << 20))
    sealing = asyncio.create_task(bench.printer.seal(KEY))
    assert await bench.read(1) == b"x"
    bench.printer.give_up()
    assert await sealing == 1 << 20


def closed_terminal() -> int:
    side, terminal = os.openpty()
    os.close(side)
    return terminal


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    ("place", "reason"),
    [(closed_terminal, ""), (full_disk, "the output can not be written: No space left on device")],
)
async def test_a_place_that_takes_no_output_is_told_and_the_log_still_ends(
    tmp_path: Path, place: Callable[[], int], reason: str
) -> None:
    told: list[str] = []
    descriptor = place()
    printer = Printer(descriptor, on_written=print, on_sealed=lambda: None, on_reader_left=told.append)
    (tmp_path / "log").write_bytes(b"nobody sees this")
    printer.add(KEY, Spool.open(tmp_path / "log", spool_quota=1 << 30), 0, print)
    try:
        assert await printer.seal(KEY) == 16
    finally:
        await printer.remove(KEY)
        printer.close()
        os.close(descriptor)
    assert told == [reason]
