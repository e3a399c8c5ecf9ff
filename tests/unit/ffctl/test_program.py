"""The program around the commands: fast to answer, and without tracebacks."""

import json
import subprocess
import sys

import pytest
from fastflow.v1 import runs_pb2
from ffctl import __main__ as program
from ffctl import details

from .conftest import Ffctl, ScriptedServer, run_of


def test_help_answers_without_loading_grpc_or_rich() -> None:
    script = (
        "import sys\nfrom ffctl.__main__ import run\nrun(['--help'])\n"
        "sys.exit(sum(name in sys.modules for name in ('grpc', 'rich', 'google.protobuf', 'asyncio')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert b"Exit codes" in done.stdout


@pytest.mark.parametrize("command", sorted(program.COMMANDS))
def test_every_command_has_help_with_an_example(ffctl: Ffctl, command: str) -> None:
    text = ffctl(command, "--help").out.decode()
    assert "Usage: ffctl" in text
    group = program.ffctl.get_command(None, command)
    for name in getattr(group, "commands", {}):
        text = ffctl(command, name, "--help").out.decode()
        assert "Example: ffctl" in text
    if not hasattr(group, "commands"):
        assert "ffctl" in text.partition("Example:")[2]


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["runs", "list", "--state", "asleep"], ["run", "a", "b"]])
def test_wrong_usage_is_exit_code_2(ffctl: Ffctl, arguments: list[str]) -> None:
    ended = ffctl(*arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert ended.err.startswith("Usage: ffctl")


def test_a_mistyped_command_is_answered_with_the_nearest(ffctl: Ffctl) -> None:
    assert "Did you mean 'logs'?" in ffctl("log").err
    assert "Did you mean 'list'?" in ffctl("runs", "lst").err


def test_help_fits_a_terminal_of_80_columns(environment: dict[str, str]) -> None:
    for arguments in [[], *([name] for name in program.COMMANDS)]:
        command = [sys.executable, "-m", "ffctl", *arguments, "--help"]
        done = subprocess.run(
            command, env={**environment, "COLUMNS": "80"}, capture_output=True, text=True, timeout=60, check=True
        )
        assert max(len(line) for line in done.stdout.splitlines()) <= 80
        assert "..." not in done.stdout.partition("Commands:")[2]


def test_a_defect_is_told_in_one_line_without_traceback(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["ListRuns"] = lambda request, context: runs_pb2.ListRunsResponse(runs=[run_of("QUEUED")])
    monkeypatch.delenv(program.DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(details, "runs_table", lambda runs, now: {}["missing"])
    ended = ffctl("runs", "list")
    assert ended.code == 1
    assert "this is a defect of ffctl: KeyError" in ended.err
    assert "Traceback" not in ended.err


def test_a_mistyped_variable_is_told_by_commands_that_ask_the_server(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["ListRuns"] = lambda request, context: runs_pb2.ListRunsResponse()
    monkeypatch.setenv("FASTFLOW_TOKN", "correct horse")
    ended = ffctl("runs", "list", "-o", "json")
    assert "warning: the environment variable FASTFLOW_TOKN" in ended.err
    assert "did you mean FASTFLOW_TOKEN?" in ended.err
    assert "correct horse" not in ended.err
    assert json.loads(ended.out) == {"runs": []}
    assert "FASTFLOW_TOKN" not in ffctl("runs", "list", "--help").err
