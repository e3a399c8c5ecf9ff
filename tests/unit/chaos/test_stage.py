"""The stage writes down whatever goes wrong on it, and goes on."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.chaos import stage as stage_module
from tests.chaos.diary import Diary
from tests.chaos.script import Act, Step
from tests.chaos.settings import READY, logged_as
from tests.chaos.stage import Stage
from tests.cluster import Cluster, Program

AGENT = "plain-1"
SAID_BEGUN = logged_as(READY[AGENT])
DEAF = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('deaf, {SAID_BEGUN}', flush=True)
time.sleep(600)
"""
BEGINS = f"""
import pathlib, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("begins", flush=True)
signal.sigwait([signal.SIGTERM])
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print('{SAID_BEGUN}', flush=True)
"""
HEARS = "import signal, time; signal.signal(signal.SIGTERM, print); print('hears', flush=True); time.sleep(600)"
SLEEPS = "import time; print('sleeps', flush=True); time.sleep(600)"
CRASHES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage without programs, whose agent a test starts as it likes."""
    stage = Stage(tmp_path)
    with Diary(tmp_path) as stage._diary, Cluster(tmp_path / "cluster", "process") as stage.cluster:
        yield stage
        stage.cluster.agents.clear()


def agent(stage: Stage, code: str, *arguments: str) -> Program:
    """Starts Python code as the agent."""
    command = ["python", "-c", code, *arguments]
    program = stage.cluster.agents[AGENT] = Program(command, stage.folder / f"{AGENT}.log", {})
    program.start()
    return program


def deeds(stage: Stage) -> list[dict[str, Any]]:
    """What was written down."""
    return [json.loads(line) for line in (stage.folder / "deeds.jsonl").read_text().splitlines()]


def test_what_fails_in_a_thread_is_written_down(stage: Stage) -> None:
    well: Future[None] = Future()
    well.set_result(None)
    failed: Future[None] = Future()
    failed.set_exception(ValueError("unforeseen"))
    stage._await({well: "SUBMIT one", failed: "journals"})
    (fault,) = deeds(stage)
    assert (fault["what"], fault["target"]) == ("FAULT", "journals")
    assert "unforeseen" in fault["error"]


def test_what_takes_for_ever_is_written_down(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "SETTLED_SECONDS", 0.0)
    stage._await({Future(): "CANCEL one"})
    stage._until("FILLED", 0.0, lambda: False)
    assert [(deed["what"], deed["target"]) for deed in deeds(stage)] == [("FAULT", "CANCEL one"), ("FAULT", "FILLED")]


def test_a_program_that_does_not_end_is_killed_and_that_is_written_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "ENDING_SECONDS", 0.0)
    program = agent(stage, DEAF)
    program.wait_for_log(SAID_BEGUN)
    assert stage._stop(program) == -9
    assert [(deed["what"], deed["target"]) for deed in deeds(stage)] == [("HUNG", AGENT)]


def test_a_program_that_is_told_to_stop_before_it_has_begun_may_begin_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_said, go = Program.has_said, stage.folder / "go"

    def has_said_so_far(program: Program, text: str) -> bool:
        said = has_said(program, text)
        go.touch()
        return said

    monkeypatch.setattr(Program, "has_said", has_said_so_far)
    monkeypatch.setattr(stage_module, "ENDING_SECONDS", 0.0)
    program = agent(stage, BEGINS, str(go))
    program.wait_for_log("begins")
    assert stage._stop(program) == 0
    assert program.has_said(SAID_BEGUN)
    assert not deeds(stage)


@pytest.mark.parametrize("act", [Act.KILL, Act.STOP, Act.FREEZE, Act.THAW, Act.START])
def test_a_program_that_crashed_is_found_so_when_its_turn_comes(stage: Stage, act: Act) -> None:
    stage._await_end(agent(stage, CRASHES))
    stage._do(Step(0.0, act, AGENT))
    (deed,) = deeds(stage)
    assert (deed["what"], deed["found"]) == (act, -11)
    stage._await_end(stage.cluster.agents[AGENT])


@pytest.mark.parametrize(
    ("code", "said", "catches"),
    [(DEAF, "deaf", False), (HEARS, "hears", True), (SLEEPS, "sleeps", False)],
    ids=["ignores it", "has a handler", "has none"],
)
def test_whether_a_program_hears_that_it_is_stopped_is_written_down(
    stage: Stage, code: str, said: str, catches: bool
) -> None:
    program = agent(stage, code)
    program.wait_for_log(said)
    stage._do(Step(0.0, Act.STOP, AGENT))
    assert [deed["catches"] for deed in deeds(stage)] == [catches]
    program.kill()


def test_what_was_started_is_stopped_where_not_all_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeping(Cluster):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.controlplane = Program(["python", "-c", SLEEPS], self.controlplane.log, {})

    def no_relay(_: str) -> NoReturn:
        raise OSError("no port is free")

    monkeypatch.setattr(stage_module, "Cluster", Sleeping)
    monkeypatch.setattr(stage_module, "Relay", no_relay)
    monkeypatch.setattr(stage_module, "_network", lambda: nullcontext(("none", "127.0.0.1")))
    stage = Stage(tmp_path)
    try:
        with pytest.raises(OSError, match="no port"), stage:
            pass
        assert stage.cluster.controlplane.code is not None
    finally:
        stage.cluster.controlplane.kill()


def test_the_journal_of_a_run_that_begins_outlives_its_slot(stage: Stage) -> None:
    journal = stage.folder / "cluster" / AGENT / "slots" / "0123456789abcdef" / "journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("INTENT")
    stage._keep_journal("0123456789abcdef")
    journal.unlink()
    assert (stage.folder / "journals" / AGENT / "0123456789abcdef").read_text() == "INTENT"
