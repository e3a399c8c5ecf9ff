"""The interceptor around a servicer that does what a test says, over a real connection."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
from fastflow.v1 import runs_pb2, runs_pb2_grpc
from fastflow_controlplane.api.interceptors import CallInterceptor
from fastflow_controlplane.identity.tokens import SharedToken
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health

TOKEN = "correct-horse"


class Servicer(runs_pb2_grpc.RunServiceServicer):
    """Answers, or raises what the test put into `fault`."""

    def __init__(self) -> None:
        self.fault: Callable[[], Exception] | None = None

    async def GetRun(self, request: runs_pb2.GetRunRequest, context: Any) -> runs_pb2.GetRunResponse:
        self._fail()
        return runs_pb2.GetRunResponse(run=runs_pb2.Run(id=request.id))

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        yield runs_pb2.WatchRunResponse(run=runs_pb2.Run(id=request.id))
        self._fail()

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault()


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def token() -> str | None:
    return None


@pytest.fixture
async def channel(servicer: Servicer, token: str | None) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[CallInterceptor(SharedToken(token))])
    runs_pb2_grpc.add_RunServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)
