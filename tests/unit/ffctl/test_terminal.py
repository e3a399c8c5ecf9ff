"""What a person at a terminal sees: colours, one moving line, tables that fit; and what is left out elsewhere."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fastflow.v1 import limits_pb2, logs_pb2, runs_pb2

from .conftest import SHORT_ID, Gate, ScriptedServer, run_of
from .terminal import PATIENCE_SECONDS, Terminal

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def _plain_terminal(environment: dict[str, str]) -> None:
    environment["TERM"] = "xterm-256color"
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        environment.pop(name, None)


@pytest.fixture
def runs(server: ScriptedServer) -> list[runs_pb2.Run]:
    listed = []
    for state, reason in (("FAILED", runs_pb2.REASON_OOM_KILLED), ("SUCCEEDED", runs_pb2.REASON_UNSPECIFIED)):
        run = run_of(state, reason=reason, attempt=1, attempts=[runs_pb2.Attempt(number=1, agent="worker-1")])
        run.pipeline = "monthly_report_of_sales"
        run.start_time.FromSeconds(1_763_900_001)
        run.end_time.FromSeconds(1_763_900_101)
        run.limits.CopyFrom(limits_pb2.Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=2**30))
        listed.append(run)
    server.answers["ListRuns"] = lambda request, context: runs_pb2.ListRunsResponse(runs=listed)
    return listed


def screen(spawn: Spawn, *arguments: str, columns: int = 80) -> str:
    terminal = Terminal(spawn, *arguments, columns=columns)
    assert terminal.end() == 0
    return terminal.everything


def test_states_are_coloured_on_a_terminal(spawn: Spawn, runs: list[runs_pb2.Run]) -> None:
    assert "\x1b[31mFAILED" in screen(spawn, "runs", "list")


def test_no_color_switches_colours_off(spawn: Spawn, runs: list[runs_pb2.Run], environment: dict[str, str]) -> None:
    environment["NO_COLOR"] = "1"
    assert "\x1b" not in screen(spawn, "runs", "list")


def test_a_pipe_gets_neither_colours_nor_cut_lines(
    spawn: Spawn, runs: list[runs_pb2.Run], environment: dict[str, str]
) -> None:
    environment["FORCE_COLOR"] = "1"
    runs[0].pipeline = "p" * 200
    out, _ = spawn("runs", "list").communicate(timeout=PATIENCE_SECONDS)
    assert b"\x1b" not in out
    assert b"p" * 200 in out
    assert len(out.splitlines()) == 3


def test_the_list_of_runs_keeps_one_row_per_run_at_80_columns(
    spawn: Spawn, runs: list[runs_pb2.Run], environment: dict[str, str]
) -> None:
    environment["NO_COLOR"] = "1"
    lines = screen(spawn, "runs", "list").splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert "FAILED" in lines[1]
    assert SHORT_ID in lines[1]


def test_on_a_narrow_terminal_ids_and_states_are_not_cut(
    spawn: Spawn, runs: list[runs_pb2.Run], environment: dict[str, str]
) -> None:
    environment["NO_COLOR"] = "1"
    for line in screen(spawn, "runs", "list", columns=40).splitlines()[1:]:
        assert SHORT_ID in line
        assert "FAILED" in line or "SUCCEEDED" in line


def test_waiting_shows_one_moving_line_that_is_gone_at_the_end(
    server: ScriptedServer, spawn: Spawn, environment: dict[str, str]
) -> None:
    gate = Gate()

    def watch(_request: Any, _context: Any) -> Any:
        yield runs_pb2.WatchRunResponse(run=run_of("QUEUED", message="no agent has 64 GiB of memory"))
        gate.wait()
        yield runs_pb2.WatchRunResponse(run=run_of("SUCCEEDED", attempt=1, attempts=[runs_pb2.Attempt(number=1)]))

    def read(_request: Any, _context: Any) -> Any:
        gate.wait()
        yield logs_pb2.ReadLogResponse(data=b"hello\n", next_offset=6, attempt=1, sealed=True)

    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": watch,
        "ReadLog": read,
    }
    terminal = Terminal(spawn, "run", "etl", "--follow")
    terminal.until("queued: no agent has 64 GiB of memory")
    gate.open()
    assert terminal.end() == 0
    erased, _, rest = terminal.everything.rpartition("\x1b[2K")
    assert "queued" in erased
    assert "queued" not in rest
    assert "hello" in rest
