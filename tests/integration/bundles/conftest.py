from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from fastflow.agent.v1 import gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.client import open_channel
from fastflow_agent.bundles import Bundles
from fastflow_controlplane.server import server_options

from tests.integration.bundles.world import HandClock, Source, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    source = Source()
    server = grpc.aio.server(options=server_options())
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(source, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    folder = tmp_path / "bundles"
    clock = HandClock()
    bundles = Bundles(folder, channel, clock=clock, backoff=Backoff(0.01, 0.05))
    yield World(source, server, bundles, folder, channel, clock)
    await channel.close(None)
    await server.stop(None)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "main.py").write_text("print('hello')\n" * 200)
    (code / "package" / "data.bin").write_bytes(bytes(range(256)) * 20)
    return code
