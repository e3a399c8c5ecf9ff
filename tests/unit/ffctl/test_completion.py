"""Shell completion: words of ffctl at once, names by asking the server."""

import subprocess
from collections.abc import Callable

import pytest
from fastflow.v1 import pipelines_pb2, runs_pb2

from .conftest import RUN_ID, Ffctl, ScriptedServer, run_of
from .terminal import PATIENCE_SECONDS

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def complete(spawn: Spawn, environment: dict[str, str]) -> Callable[..., list[str]]:
    def ask(*words: str) -> list[str]:
        environment["_FFCTL_COMPLETE"] = "bash_complete"
        environment["COMP_WORDS"] = " ".join(["ffctl", *words])
        environment["COMP_CWORD"] = str(len(words))
        out, err = spawn().communicate(timeout=PATIENCE_SECONDS)
        assert err == b""
        return [line.partition(",")[2] for line in out.decode().split()]

    return ask


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o nosort -F"), ("zsh", "#compdef ffctl"), ("fish", "complete --no-files")]
)
def test_the_script_of_each_shell_is_printed(ffctl: Ffctl, shell: str, sign: str) -> None:
    ended = ffctl("completion", shell)
    assert ended.code == 0
    assert sign in ended.out.decode()
    assert "_FFCTL_COMPLETE" in ended.out.decode()


def test_the_bash_script_is_sound(ffctl: Ffctl) -> None:
    script = ffctl("completion", "bash").out
    assert subprocess.run(["bash", "-n"], input=script, timeout=PATIENCE_SECONDS, check=False).returncode == 0


def test_commands_and_options_are_offered(complete: Callable[..., list[str]]) -> None:
    assert complete("ru") == ["run", "runs"]
    assert "--follow" in complete("run", "--f")


def test_pipeline_names_and_run_ids_come_from_the_server(
    server: ScriptedServer, complete: Callable[..., list[str]]
) -> None:
    names = [pipelines_pb2.Pipeline(name="etl"), pipelines_pb2.Pipeline(name="report")]
    server.answers |= {
        "ListPipelines": lambda request, context: pipelines_pb2.ListPipelinesResponse(pipelines=names),
        "ListRuns": lambda request, context: runs_pb2.ListRunsResponse(runs=[run_of("RUNNING")]),
    }
    assert complete("run", "e") == ["etl"]
    assert complete("logs", "") == [RUN_ID[-8:]]


def test_a_silent_server_offers_nothing_and_says_nothing(
    server: ScriptedServer, complete: Callable[..., list[str]]
) -> None:
    server.stop()
    assert complete("run", "") == []
