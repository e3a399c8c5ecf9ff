"""The public API without ffctl, whose start takes as long as a whole run: for tests that ask often."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

import grpc
from fastflow.v1 import agents_pb2, agents_pb2_grpc, logs_pb2, logs_pb2_grpc, runs_pb2, runs_pb2_grpc

CALL_SECONDS = 60.0
"""How long a control plane that was started may take until it has answered, on a crowded machine."""
PATIENCE: dict[str, Any] = {"timeout": CALL_SECONDS, "wait_for_ready": True}
TRIES = 3
"""The first may go to a connection that broke unnoticed."""
RECONNECT_MS = 100
T = TypeVar("T")


class Api:
    """One caller of a control plane; a context manager.

    Calls that ask wait for a control plane that is away. Those that change something raise grpc.RpcError where it dies
    meanwhile, or had died since the last call.
    """

    def __init__(self, server: str) -> None:
        times = [f"grpc.{which}_reconnect_backoff_ms" for which in ("initial", "min", "max")]
        options = [("grpc.enable_http_proxy", 0), *((time, RECONNECT_MS) for time in times)]
        self._channel = grpc.insecure_channel(server, options)
        self._runs = runs_pb2_grpc.RunServiceStub(self._channel)
        self._logs = logs_pb2_grpc.LogServiceStub(self._channel)
        self._agents = agents_pb2_grpc.AgentServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def create_run(self, pipeline: str, request_id: str, environment: dict[str, str]) -> str:
        """Queues a run, unless the request was heard before, and returns its id."""
        request = runs_pb2.CreateRunRequest(pipeline=pipeline, request_id=request_id, environment=environment)
        return self._runs.CreateRun(request, **PATIENCE).run.id

    def cancel(self, run: str) -> None:
        """Asks a run to stop."""
        self._runs.CancelRun(runs_pb2.CancelRunRequest(id=run), **PATIENCE)

    def run(self, run: str) -> runs_pb2.Run:
        """The run as it is now."""
        return self._patiently(lambda: self._runs.GetRun(runs_pb2.GetRunRequest(id=run), **PATIENCE).run)

    def log(self, run: str) -> bytes:
        """The run's whole log so far."""
        request = logs_pb2.ReadLogRequest(run_id=run)
        return self._patiently(lambda: b"".join(answer.data for answer in self._logs.ReadLog(request, **PATIENCE)))

    def agent(self, name: str) -> agents_pb2.Agent:
        """The agent as it is known now."""
        request = agents_pb2.GetAgentRequest(name=name)
        return self._patiently(lambda: self._agents.GetAgent(request, **PATIENCE).agent)

    def _patiently(self, call: Callable[[], T]) -> T:
        for _ in range(TRIES - 1):
            with suppress(grpc.RpcError):
                return call()
        return call()
