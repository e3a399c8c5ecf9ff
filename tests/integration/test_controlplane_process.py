"""`fastflow-controlplane` as a process: how it starts, refuses to start, and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from fastflow.v1 import runs_pb2, runs_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROGRAM = str(Path(sys.executable).parent / "fastflow-controlplane")
SECONDS = 60.0
"""Longer than anything here takes on a busy machine."""

Start = Callable[[Mapping[str, str]], "Process"]


class Process:
    """A control plane that was told to start."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen([PROGRAM, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, str]] = []

    def wait_until_ready(self) -> str:
        """Returns the address once calls are answered."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "control plane is ready":
                return self.log[-1]["address"]
        raise AssertionError(f"it ended: {self.log}")

    def wait(self) -> int:
        """Returns the exit code; what was logged since stands in `log`."""
        _, rest = self.popen.communicate(timeout=SECONDS)
        self.log += [json.loads(line) for line in rest.splitlines()]
        return self.popen.returncode


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a control plane on folders of its own and a free port."""
    (tmp_path / "pipelines" / "hello").mkdir(parents=True)
    (tmp_path / "pipelines" / "hello" / "main.py").write_text("print(1)\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
    return {
        **kept,
        "FASTFLOW_LISTEN": "127.0.0.1:0",
        "FASTFLOW_DATA_DIR": str(tmp_path / "data"),
        "FASTFLOW_PIPELINES_DIR": str(tmp_path / "pipelines"),
    }


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts control planes, and ends those that still run."""
    started: list[Process] = []

    def start(environment: Mapping[str, str]) -> Process:
        started.append(Process(environment))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def command(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_it_answers_its_health_once_it_says_that_it_is_ready(start: Start, environment: dict[str, str]) -> None:
    process = start(environment)
    with grpc.insecure_channel(process.wait_until_ready()) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_though_somebody_watches_and_keeps_what_was_stored(
    start: Start, environment: dict[str, str], number: signal.Signals
) -> None:
    first = start(environment)
    with grpc.insecure_channel(first.wait_until_ready()) as channel:
        stub = runs_pb2_grpc.RunServiceStub(channel)
        run = stub.CreateRun(runs_pb2.CreateRunRequest(pipeline="hello"), timeout=SECONDS).run
        watching = stub.WatchRun(runs_pb2.WatchRunRequest(id=run.id), timeout=SECONDS)
        next(iter(watching))
        first.popen.send_signal(number)
        assert first.wait() == 0
    assert "Traceback" not in json.dumps(first.log)

    second = start(environment)
    with grpc.insecure_channel(second.wait_until_ready()) as channel:
        stub = runs_pb2_grpc.RunServiceStub(channel)
        assert stub.GetRun(runs_pb2.GetRunRequest(id=run.id), timeout=SECONDS).run.id == run.id


def test_it_says_who_else_uses_its_data_folder(start: Start, environment: dict[str, str]) -> None:
    start(environment).wait_until_ready()
    second = start(environment)
    assert second.wait() == 1
    assert "another control plane uses the data folder" in second.log[-1]["why"]


def test_it_says_that_its_port_is_taken(start: Start, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start({**environment, "FASTFLOW_LISTEN": address})
        assert process.wait() == 1
    assert f"{address} can not be listened on" in process.log[-1]["why"]


@pytest.mark.parametrize(("content", "why"), [(None, "No such file or directory"), ("text", "it holds no certificate")])
def test_it_says_that_its_authorities_can_not_be_read(
    start: Start, environment: dict[str, str], tmp_path: Path, content: str | None, why: str
) -> None:
    bundle = tmp_path / "authorities.pem"
    if content is not None:
        bundle.write_text(content)
    process = start({**environment, "FASTFLOW_CA_BUNDLE": str(bundle)})
    assert process.wait() == 1
    assert f"the file {bundle}, which ca_bundle names, can not be used: {why}" in process.log[-1]["why"]


def test_it_refuses_another_address_than_loopback_without_a_token(environment: dict[str, str]) -> None:
    done = command({**environment, "FASTFLOW_LISTEN": "0.0.0.0:0"}, "serve")
    assert done.returncode == 2
    assert "set allow_remote = true and a token" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_help_explains_every_setting_and_the_settings_in_force_are_printed(environment: dict[str, str]) -> None:
    described = command(environment, "serve", "--help").stdout
    printed = command({**environment, "FASTFLOW_TOKEN": "correct horse"}, "serve", "--print-config").stdout
    assert "FASTFLOW_LOST_AFTER" in described
    assert f'data_dir = "{environment["FASTFLOW_DATA_DIR"]}"' in printed
    assert "correct horse" not in printed


def test_a_mistyped_variable_is_told_where_it_may_be_missed(start: Start, environment: dict[str, str]) -> None:
    told = "FASTFLOW_TOKN is no setting of Fast-Flow and has no effect: did you mean FASTFLOW_TOKEN?"
    mistyped = {**environment, "FASTFLOW_TOKN": "correct horse"}
    process = start(mistyped)
    process.wait_until_ready()
    assert [line["level"] for line in process.log if told in line["event"]] == ["warning"]
    printed = command(mistyped, "serve", "--print-config")
    assert told in printed.stderr
    assert "TOKN" not in printed.stdout
    remote = {"FASTFLOW_LISTEN": "0.0.0.0:0", "FASTFLOW_ALLOW_REMOTE": "true"}
    refused = command({**mistyped, **remote}, "serve")
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "correct horse" not in f"{process.log}{printed.stderr}{refused.stderr}"


def test_a_token_is_asked_of_every_caller_but_a_probe(start: Start, environment: dict[str, str]) -> None:
    process = start({**environment, "FASTFLOW_TOKEN": "correct horse"})
    with grpc.insecure_channel(process.wait_until_ready()) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        stub = runs_pb2_grpc.RunServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        bearer = (("authorization", "Bearer correct horse"),)
        stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=SECONDS, metadata=bearer)
