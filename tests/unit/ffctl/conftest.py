"""ffctl against a server whose answers a test writes down: what no real control plane can be made to do on time."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastflow.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    pipelines_pb2,
    pipelines_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
    sources_pb2,
    sources_pb2_grpc,
)
from ffctl import __main__ as program
from ffctl import follow, output
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.ports import HeldPort

from .terminal import PATIENCE_SECONDS

FFCTL = Path(sys.executable).parent / "ffctl"
RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
SHORT_ID = "099a8057"

Handler = Callable[[Any, grpc.ServicerContext], Any]

_SERVICES = [
    (runs_pb2, runs_pb2_grpc, "RunService"),
    (logs_pb2, logs_pb2_grpc, "LogService"),
    (pipelines_pb2, pipelines_pb2_grpc, "PipelineService"),
    (agents_pb2, agents_pb2_grpc, "AgentService"),
    (secrets_pb2, secrets_pb2_grpc, "SecretService"),
    (sources_pb2, sources_pb2_grpc, "SourceService"),
]


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown as where the clock is UTC, wherever this runs."""
    monkeypatch.setenv("TZ", "UTC")
    # A process looks at the variable once.
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class ScriptedServer:
    """A gRPC server of the public services; `answers` maps a method's name to what it does.

    `requests` are the requests it got, in order. It can be stopped and started again on its port.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self._port = HeldPort()
        self.start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port.number}"

    def start(self) -> None:
        """Starts it, on the same port as before."""
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        for messages, stubs, service in _SERVICES:
            getattr(stubs, f"add_{service}Servicer_to_server")(self._servicer(messages, stubs, service), self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Stops it at once, in the middle of whatever it does."""
        self._server.stop(None).wait()

    def close(self) -> None:
        """Ends it, and gives its port back."""
        self.stop()
        self._port.close()

    def asked(self, kind: type[Any]) -> list[Any]:
        """The requests of one kind."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _servicer(self, messages: Any, stubs: Any, service: str) -> Any:
        methods = {
            method.name: self._method(method.name, method.server_streaming)
            for method in messages.DESCRIPTOR.services_by_name[service].methods
        }
        return type(f"Scripted{service}", (getattr(stubs, f"{service}Servicer"),), methods)()

    def _method(self, name: str, streaming: bool) -> Callable[..., Any]:
        def answer(_servicer: Any, request: Any, context: grpc.ServicerContext) -> Any:
            self.requests.append(request)
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
            return self.answers[name](request, context)

        def answers(_servicer: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from answer(_servicer, request, context)

        return answers if streaming else answer


def refuse(
    context: grpc.ServicerContext,
    code: str,
    message: str,
    hint: str = "",
    violations: dict[str, str] | None = None,
) -> None:
    """Ends a call as a control plane refuses it."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    information = error_details_pb2.ErrorInfo(reason=code, domain="fastflow", metadata={"hint": hint} if hint else {})
    status.details.add().Pack(information)
    if violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in violations.items():
            bad_request.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad_request)
    context.abort_with_status(rpc_status.to_status(status))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    err: str


Ffctl = Callable[..., Ended]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def ffctl(server: ScriptedServer, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Ffctl:
    """Runs a command inside this process, which is faster; its stdout and stderr are files, no terminals."""
    monkeypatch.setenv("FASTFLOW_SERVER", server.address)
    monkeypatch.delenv("FASTFLOW_TOKEN", raising=False)
    monkeypatch.setattr(follow, "QUIET_AFTER_LOST_S", 0.1)

    def run(*arguments: str) -> Ended:
        output.console.cache_clear()
        code = program.run(list(arguments))
        captured = capfdbinary.readouterr()
        return Ended(code, captured.out, captured.err.decode())

    return run


@pytest.fixture
def environment(server: ScriptedServer) -> dict[str, str]:
    """What a child process needs to talk to the scripted server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
    return {**kept, "FASTFLOW_SERVER": server.address}


@pytest.fixture
def spawn(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts ffctl as its own process, by the program `through` if named; what is left of it is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, through: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        chosen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*through, str(FFCTL), *arguments], env=environment, **chosen)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_of(state: str, **fields: Any) -> runs_pb2.Run:
    """A run named RUN_ID in `state` ("RUNNING")."""
    run = runs_pb2.Run(id=RUN_ID, pipeline="etl", state=runs_pb2.RunState.Value(f"RUN_STATE_{state}"), **fields)
    run.create_time.FromSeconds(1_763_900_000)
    return run


class Gate:
    """Lets a scripted answer wait for the test, for a bounded time."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        """Lets it go on."""
        self._event.set()

    def wait(self) -> None:
        """Waits until the test opened it."""
        assert self._event.wait(PATIENCE_SECONDS), "the test never opened the gate"
