"""`ffctl secrets`: the value never comes from the command line, and is never shown."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fastflow.v1 import secrets_pb2

from .conftest import Ffctl, ScriptedServer
from .terminal import CTRL_D, CTRL_Q, CTRL_S, PATIENCE_SECONDS, Terminal

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def _store(server: ScriptedServer) -> None:
    def store(request: secrets_pb2.SetSecretRequest, _context: Any) -> secrets_pb2.SetSecretResponse:
        scopes = request.pipelines or [""]
        masked = len(request.value) >= 6
        return secrets_pb2.SetSecretResponse(
            secrets=[secrets_pb2.Secret(name=request.name, pipeline=p, version=3, masked=masked) for p in scopes]
        )

    server.answers |= {
        "SetSecret": store,
        "DeleteSecret": lambda request, context: secrets_pb2.DeleteSecretResponse(),
    }


def store_from_stdin(spawn: Spawn, value: bytes, *arguments: str) -> tuple[int, bytes, str]:
    process = spawn("secrets", "set", "API_TOKEN", *arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(value, timeout=PATIENCE_SECONDS)
    return process.returncode, out, err.decode()


def test_a_value_from_stdin_loses_one_last_newline_and_nothing_else(server: ScriptedServer, spawn: Spawn) -> None:
    code, out, err = store_from_stdin(spawn, b" two\nlines\n\n", "--pipeline", "etl", "--pipeline", "report")
    (request,) = server.asked(secrets_pb2.SetSecretRequest)
    assert (code, request.value, list(request.pipelines)) == (0, b" two\nlines\n", ["etl", "report"])
    assert (request.all_pipelines, len(request.request_id)) == (False, 36)
    assert out == b""
    assert "API_TOKEN for etl: version 3 stored" in err
    assert "two" not in err


def test_a_value_typed_twice_is_not_shown(server: ScriptedServer, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "secrets", "set", "API_TOKEN", "--all-pipelines")
    terminal.until("Value of API_TOKEN")
    terminal.type("open-sesame\n")
    terminal.until("Once more")
    terminal.type("open-sesame\n")
    assert terminal.end() == 0
    assert "open-sesame" not in terminal.everything
    assert "API_TOKEN for all pipelines: version 3 stored" in terminal.everything
    (request,) = server.asked(secrets_pb2.SetSecretRequest)
    assert (request.value, request.all_pipelines) == (b"open-sesame", True)


def test_a_value_is_hidden_before_it_is_asked_for(server: ScriptedServer, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "secrets", "set", "API_TOKEN", "--all-pipelines", typed=CTRL_S)
    terminal.until_hidden()  # while nothing can be written
    terminal.type(CTRL_Q)
    terminal.until("Value of API_TOKEN: ")
    terminal.type(CTRL_D)
    assert terminal.end() == 130
    assert server.requests == []


def test_a_value_typed_in_two_ways_is_asked_for_again(server: ScriptedServer, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "secrets", "set", "API_TOKEN", "--all-pipelines")
    for first, second in [("open-sesame\n", "open-sesam\n"), ("open-sesame\n", "open-sesame\n")]:
        terminal.until("Value of API_TOKEN")
        terminal.type(first)
        terminal.until("Once more")
        terminal.type(second)
    assert terminal.end() == 0
    assert "The two entered values do not match" in terminal.everything
    assert "open-sesam" not in terminal.everything
    assert [request.value for request in server.asked(secrets_pb2.SetSecretRequest)] == [b"open-sesame"]


def test_an_empty_value_is_asked_for_again_and_the_end_of_input_ends_it(server: ScriptedServer, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "secrets", "set", "API_TOKEN", "--all-pipelines")
    terminal.until("Value of API_TOKEN")
    terminal.type("\n")
    terminal.until("Value of API_TOKEN")
    terminal.type(CTRL_D)
    assert terminal.end() == 130
    assert server.requests == []


def test_a_value_too_short_to_be_masked_is_told(spawn: Spawn) -> None:
    _, _, err = store_from_stdin(spawn, b"12345", "--all-pipelines")
    assert "too short to be masked" in err


@pytest.mark.parametrize("scope", [[], ["--pipeline", "etl", "--all-pipelines"]])
def test_without_exactly_one_kind_of_scope_nothing_is_stored(
    server: ScriptedServer, ffctl: Ffctl, scope: list[str]
) -> None:
    ended = ffctl("secrets", "set", "API_TOKEN", *scope)
    assert ended.code == 2
    assert "--pipeline NAME (repeatable), --all-pipelines or --source NAME" in ended.err
    assert server.requests == []


def test_a_value_on_the_command_line_is_a_usage_error(server: ScriptedServer, ffctl: Ffctl) -> None:
    assert ffctl("secrets", "set", "API_TOKEN", "open-sesame", "--all-pipelines").code == 2
    assert server.requests == []


def test_delete_names_the_scopes(server: ScriptedServer, ffctl: Ffctl) -> None:
    assert ffctl("secrets", "delete", "API_TOKEN", "--pipeline", "etl").code == 0
    (request,) = server.asked(secrets_pb2.DeleteSecretRequest)
    assert (request.name, list(request.pipelines), request.all_pipelines) == ("API_TOKEN", ["etl"], False)


def test_the_list_shows_scopes_and_versions(server: ScriptedServer, ffctl: Ffctl) -> None:
    secrets = [
        secrets_pb2.Secret(name="API_TOKEN", version=3, masked=True),
        secrets_pb2.Secret(name="PIN", pipeline="etl", version=4),
    ]
    server.answers["ListSecrets"] = lambda request, context: secrets_pb2.ListSecretsResponse(secrets=secrets)
    _, first, second = ffctl("secrets", "list").out.decode().splitlines()
    assert first.startswith("API_TOKEN  all pipelines  3")
    assert second.startswith("PIN        etl            4")
    assert second.endswith("too short to be masked")


def test_nothing_is_said_of_logs_where_no_run_gets_a_secret(server: ScriptedServer, ffctl: Ffctl, spawn: Spawn) -> None:
    of_source = [secrets_pb2.Secret(name="TOKEN", source="main", version=1)]
    server.answers |= {
        "SetSecret": lambda request, context: secrets_pb2.SetSecretResponse(secrets=of_source),
        "ListSecrets": lambda request, context: secrets_pb2.ListSecretsResponse(secrets=of_source),
        "DeleteSecret": lambda request, context: secrets_pb2.DeleteSecretResponse(),
    }
    assert "masked" not in store_from_stdin(spawn, b"12345", "--source", "main")[2]
    assert "masked" not in ffctl("secrets", "list").out.decode()
    assert ffctl("secrets", "delete", "TOKEN", "--source", "main").err == "TOKEN is deleted\n"
