"""`ffctl run`: what it prints where, and the exit code that tells how the run ended."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fastflow.v1 import logs_pb2, runs_pb2
from ffctl import connection

from .conftest import RUN_ID, SHORT_ID, Ffctl, Gate, ScriptedServer, refuse, run_of


def answer_with(server: ScriptedServer, *states: runs_pb2.Run, output: bytes = b"") -> None:
    """Lets the server create a run that goes through `states` and writes `output`."""

    def create(request: runs_pb2.CreateRunRequest, _context: Any) -> runs_pb2.CreateRunResponse:
        return runs_pb2.CreateRunResponse(run=run_of("QUEUED"))

    def watch(_request: Any, _context: Any) -> Any:
        for state in states:
            yield runs_pb2.WatchRunResponse(run=state)

    def read(request: logs_pb2.ReadLogRequest, _context: Any) -> Any:
        yield logs_pb2.ReadLogResponse(
            offset=request.offset, data=output, next_offset=request.offset + len(output), attempt=1, sealed=True
        )

    server.answers |= {"CreateRun": create, "WatchRun": watch, "ReadLog": read}


def test_prints_the_short_run_id_alone_and_returns(server: ScriptedServer, ffctl: Ffctl) -> None:
    answer_with(server)
    ended = ffctl("run", "etl")
    assert (ended.code, ended.out) == (0, f"{SHORT_ID}\n".encode())
    assert server.asked(runs_pb2.WatchRunRequest) == []


def test_sends_parameters_and_a_random_request_id(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(server)
    monkeypatch.setenv("REGION", "eu=west")
    ffctl("run", "etl", "--env", "DAY=2025-11-23", "--env", "EMPTY=", "--env", "REGION")
    ffctl("run", "etl")
    first, second = server.asked(runs_pb2.CreateRunRequest)
    assert dict(first.environment) == {"DAY": "2025-11-23", "EMPTY": "", "REGION": "eu=west"}
    assert first.request_id != second.request_id
    assert len(first.request_id) == len(second.request_id) == 36


def test_a_given_request_id_is_sent_as_it_is(server: ScriptedServer, ffctl: Ffctl) -> None:
    answer_with(server)
    ffctl("run", "etl", "--request-id", "nightly-7")
    assert server.asked(runs_pb2.CreateRunRequest)[0].request_id == "nightly-7"


def test_a_parameter_without_value_that_our_environment_lacks_is_a_usage_error(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REGION", raising=False)
    ended = ffctl("run", "etl", "--env", "REGION")
    assert ended.code == 2
    assert "REGION is not set in your environment" in ended.err
    assert server.requests == []


def test_follow_prints_the_output_alone_on_stdout_and_the_rest_on_stderr(server: ScriptedServer, ffctl: Ffctl) -> None:
    output = bytes(range(256)) * 700 + b"no newline at the end"
    attempt = runs_pb2.Attempt(number=1, agent="worker-1")
    answer_with(
        server,
        run_of("QUEUED", message="no agent has 64 GiB of memory"),
        run_of("RUNNING", attempt=1, attempts=[attempt]),
        run_of("SUCCEEDED", attempt=1, attempts=[attempt], exit_code=0),
        output=output,
    )
    ended = ffctl("run", "etl", "--follow")
    assert (ended.code, ended.out) == (0, output)
    assert ended.err.splitlines() == [
        f"run {SHORT_ID}: queued: no agent has 64 GiB of memory",
        f"run {SHORT_ID}: running on worker-1",
        f"run {SHORT_ID} of etl SUCCEEDED",
    ]


def test_a_failed_run_is_exit_code_1_and_says_why_and_where_to_look(server: ScriptedServer, ffctl: Ffctl) -> None:
    failed = run_of(
        "FAILED",
        attempt=1,
        attempts=[runs_pb2.Attempt(number=1, agent="worker-1")],
        reason=runs_pb2.REASON_OOM_KILLED,
        exit_code=137,
        message="went over its hard memory limit of 512 MiB",
    )
    answer_with(server, failed, output=b"x")
    ended = ffctl("run", "etl", "--follow")
    assert ended.code == 1
    assert "FAILED (OOM_KILLED, exit code 137): went over its hard memory limit of 512 MiB" in ended.err
    assert f"ffctl runs show {SHORT_ID}" in ended.err


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("FAILED", runs_pb2.REASON_EXIT_CODE, "FAILED (exit code 1)\n"),
        ("CANCELLED", runs_pb2.REASON_CANCEL_REQUESTED, "CANCELLED (exit code 1): what happened\n"),
        ("TIMED_OUT", runs_pb2.REASON_TIMEOUT, "TIMED_OUT (exit code 1): what happened\n"),
    ],
)
def test_the_verdict_says_nothing_twice(
    server: ScriptedServer, ffctl: Ffctl, state: str, reason: runs_pb2.Reason.ValueType, told: str
) -> None:
    answer_with(server, run_of(state, reason=reason, exit_code=1, message="what happened"))
    assert f"run {SHORT_ID} of etl {told}" in ffctl("run", "etl", "--wait").err


@pytest.mark.parametrize("state", ["CANCELLED", "TIMED_OUT", "LOST"])
def test_every_other_end_is_exit_code_1(server: ScriptedServer, ffctl: Ffctl, state: str) -> None:
    answer_with(server, run_of(state))
    assert ffctl("run", "etl", "--wait").code == 1


def test_wait_prints_the_id_but_no_output(server: ScriptedServer, ffctl: Ffctl) -> None:
    answer_with(server, run_of("SUCCEEDED"), output=b"program output")
    ended = ffctl("run", "etl", "--wait")
    assert (ended.code, ended.out) == (0, f"{SHORT_ID}\n".encode())
    assert server.asked(logs_pb2.ReadLogRequest) == []


def test_wait_with_json_prints_the_run_in_its_terminal_state(server: ScriptedServer, ffctl: Ffctl) -> None:
    answer_with(server, run_of("RUNNING"), run_of("SUCCEEDED"))
    shown = json.loads(ffctl("run", "etl", "--wait", "-o", "json").out)
    assert (shown["id"], shown["state"]) == (RUN_ID, "RUN_STATE_SUCCEEDED")


def test_soft_limit_warnings_and_losses_are_told_once_while_following(server: ScriptedServer, ffctl: Ffctl) -> None:
    attempt = runs_pb2.Attempt(number=1, agent="worker-1")
    warning = attempt.warnings.add(kind=runs_pb2.SOFT_LIMIT_KIND_MEMORY, limit=100 * 2**20, peak=150 * 2**20)
    warning.raise_time.FromSeconds(1_763_900_010)
    attempt.log_losses.add(kind=runs_pb2.LOG_LOSS_KIND_DROPPED, offset=10, bytes=2048, message="spool quota reached")
    running = run_of("RUNNING", attempt=1, attempts=[attempt])
    answer_with(server, running, running, run_of("SUCCEEDED", attempt=1, attempts=[attempt]))
    err = ffctl("run", "etl", "--follow").err
    assert err.count("memory above its soft limit of 100 MiB, peak 150 MiB") == 1
    assert err.count("2 KiB lost at offset 10 (DROPPED): spool quota reached") == 1


def test_a_refusal_is_exit_code_4_with_message_violations_and_hint(server: ScriptedServer, ffctl: Ffctl) -> None:
    def create(_request: Any, context: Any) -> None:
        refuse(
            context,
            "INVALID_ARGUMENT",
            'the environment name "PATH" is refused',
            hint="Choose another name.",
            violations={"environment.PATH": "is used by the shell"},
        )

    server.answers["CreateRun"] = create
    ended = ffctl("run", "etl", "--env", "PATH=/bin")
    assert (ended.code, ended.out) == (4, b"")
    assert ended.err.splitlines() == [
        'ffctl: the environment name "PATH" is refused',
        "  environment.PATH: is used by the shell",
        "  Choose another name.",
    ]


def test_a_call_that_broke_is_repeated_with_the_same_request_id(server: ScriptedServer, ffctl: Ffctl) -> None:
    answer_with(server)
    create = server.answers["CreateRun"]

    def break_first(request: Any, context: Any) -> Any:
        if len(server.asked(runs_pb2.CreateRunRequest)) == 1:
            refuse(context, "UNAVAILABLE", "the disk of the control plane is full")
        return create(request, context)

    server.answers["CreateRun"] = break_first
    assert ffctl("run", "etl").code == 0
    first, second = server.asked(runs_pb2.CreateRunRequest)
    assert first.request_id == second.request_id


def test_an_unreachable_server_is_exit_code_3_and_says_what_to_do(server: ScriptedServer, ffctl: Ffctl) -> None:
    server.stop()
    ended = ffctl("run", "etl")
    assert (ended.code, ended.out) == (3, b"")
    assert f"no control plane answers at {server.address} (Connection refused)" in ended.err
    assert "ffctl up" in ended.err
    assert "Traceback" not in ended.err


def test_a_server_that_is_there_and_silent_is_not_said_to_be_missing(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.2)
    gate = Gate()
    server.answers["CreateRun"] = lambda _request, _context: gate.wait()
    ended = ffctl("run", "etl")
    gate.open()
    assert (ended.code, ended.out) == (3, b"")
    assert f"no answer from {server.address} within 0.2 s" in ended.err
    assert "its database" in ended.err
    assert "ffctl up" not in ended.err


def test_the_token_travels_as_a_bearer_token(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(server)
    monkeypatch.setenv("FASTFLOW_TOKEN", "open-sesame")
    ffctl("run", "etl")
    assert server.metadata[0]["authorization"] == "Bearer open-sesame"


def test_the_server_option_is_taken_before_and_after_the_command(
    server: ScriptedServer, ffctl: Ffctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(server)
    monkeypatch.setenv("FASTFLOW_SERVER", "127.0.0.1:1")
    assert ffctl("--server", server.address, "run", "etl").code == 0
    assert ffctl("run", "etl", "--server", server.address).code == 0


def test_what_is_no_address_is_a_usage_error(ffctl: Ffctl) -> None:
    ended = ffctl("run", "etl", "--server", "http://example")
    assert ended.code == 2
    assert '"http://example" is not an address' in ended.err


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(
    server: ScriptedServer, spawn: Callable[..., subprocess.Popen[bytes]], environment: dict[str, str]
) -> None:
    answer_with(server)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        environment[name] = "http://127.0.0.1:1"
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        environment.pop(name, None)
    process = spawn("run", "etl")
    process.communicate(timeout=60)
    assert process.returncode == 0
