"""The recorder of the ledger: a run begins only once what is needed to judge it has been kept."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos.ledger import Recorder, read_ledger

PIPELINE = Path(__file__).parents[2] / "chaos" / "pipeline"
SLOT = "0123456789abcdef"
PATIENCE = 60.0


@dataclass
class Stage:
    """Where runs' programs are played with a ledger."""

    folder: Path
    """Where the ledger is."""
    log: Path
    """In a slot's folder."""
    begun: list[tuple[str, bool]] = field(default_factory=list)
    """Slots that were told to begin, and whether the ledger knew of a start by then."""
    playing: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.log.parent.mkdir()
        self.recorder = Recorder(self.folder, "127.0.0.1", self._begins)

    def _begins(self, slot: str) -> None:
        self.begun.append((slot, any(path.suffix != ".lock" for path in self.folder.iterdir())))

    def play(self, kind: str) -> subprocess.Popen[bytes]:
        """Starts a run's program."""
        environment = {**os.environ, "LEDGER_ADDRESS": self.recorder.address, "KEY": "one", "KIND": kind}
        with self.log.open("ab") as log:
            program = subprocess.Popen([sys.executable, "main.py"], cwd=PIPELINE, env=environment, stdout=log)
        self.playing.append(program)
        return program


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """No program outlives it."""
    stage = Stage(tmp_path / "ledger", tmp_path / SLOT / "log")
    with stage.recorder:
        yield stage
        for program in stage.playing:
            program.kill()
            program.wait()


def test_what_a_run_says_is_written_down_after_its_slot_was_told(stage: Stage) -> None:
    assert stage.play("seven").wait(PATIENCE) == 7
    (start,) = read_ledger(stage.folder)
    assert (start.key, start.slot, start.code, start.alone) == ("one", SLOT, 7, True)
    assert start.said == stage.log.read_bytes()
    assert stage.begun == [(SLOT, False)]


def test_a_second_start_of_a_run_that_lives_is_seen(stage: Stage) -> None:
    first = stage.play("tidy")
    deadline = time.monotonic() + PATIENCE
    while b"listens" not in stage.log.read_bytes():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stage.play("seven").wait(PATIENCE) == 7
    first.terminate()
    assert first.wait(PATIENCE) == 0
    lines = (stage.folder / f"one.{SLOT}").read_text().splitlines()
    begun = [json.loads(line) for line in lines if '"begin"' in line]
    assert [record["alone"] for record in begun] == [True, False]
