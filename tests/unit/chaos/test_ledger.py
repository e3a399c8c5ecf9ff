"""The recorder of the ledger: a run begins only once what is needed to judge it has been kept."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.ledger import Recorder, read_ledger

PIPELINE = Path(__file__).parents[2] / "chaos" / "pipeline"
SLOT = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the ledger is."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    return folder


@pytest.fixture
def kept(folder: Path) -> list[tuple[str, bool]]:
    """Slots that were told to begin, and whether the ledger knew of a start by then."""
    return []


@pytest.fixture
def recorder(folder: Path, kept: list[tuple[str, bool]]) -> Iterator[Recorder]:
    """One on the loopback."""

    def begins(slot: str) -> None:
        kept.append((slot, any(path.suffix != ".lock" for path in folder.iterdir())))

    with Recorder(folder, "127.0.0.1", begins) as recorder:
        yield recorder


def play(recorder: Recorder, folder: Path, kind: str) -> subprocess.Popen[bytes]:
    """Starts a run's program with its log in a slot's folder."""
    slot = folder.parent / SLOT
    slot.mkdir(exist_ok=True)
    environment = {**os.environ, "LEDGER_ADDRESS": recorder.address, "KEY": "one", "KIND": kind}
    with (slot / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "main.py"], cwd=PIPELINE, env=environment, stdout=log)


def test_what_a_run_says_is_written_down_after_its_slot_was_told(
    recorder: Recorder, folder: Path, kept: list[tuple[str, bool]]
) -> None:
    assert play(recorder, folder, "seven").wait(60) == 7
    (start,) = read_ledger(folder)
    assert (start.key, start.slot, start.code, start.alone) == ("one", SLOT, 7, True)
    assert start.said == (folder.parent / SLOT / "log").read_bytes()
    assert kept == [(SLOT, False)]


def test_a_second_start_of_a_run_that_lives_is_seen(recorder: Recorder, folder: Path) -> None:
    first = play(recorder, folder, "tidy")
    log = folder.parent / SLOT / "log"
    while b"listens" not in log.read_bytes():
        assert first.poll() is None
    second = play(recorder, folder, "seven")
    assert second.wait(60) == 7
    first.terminate()
    assert first.wait(60) == 0
    lines = (folder / f"one.{SLOT}").read_text().splitlines()
    begun = [json.loads(line) for line in lines if '"begin"' in line]
    assert [record["alone"] for record in begun] == [True, False]
