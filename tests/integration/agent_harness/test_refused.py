"""What an agent hears whose token is not the control plane's."""

import asyncio
from typing import Any, cast

import grpc.aio
import pytest
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.client import bearer, open_channel
from fastflow_agent.clock import Clock
from fastflow_agent.conditions import Conditions
from fastflow_agent.runtime.base import Facts
from fastflow_agent.stream.outbox import Outbox
from fastflow_agent.stream.session import Refused, Session, SessionHost
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer
from fastflow_controlplane.api.interceptors import CallInterceptor
from fastflow_controlplane.identity.tokens import SharedToken

STREAMS = 40
"""An answer that came while the agent wrote was lost about once in five streams."""


class Host:
    """As much of an agent as a stream needs that is never welcomed."""

    def facts(self) -> Facts:
        """What runs containers."""
        return Facts(runtime="process", runtime_version="", cgroup="none")


@pytest.mark.parametrize(("token", "why"), [("wrong", "is not the one"), (None, "brought none")])
async def test_a_wrong_or_missing_token_is_told_as_such_every_time(token: str | None, why: str) -> None:
    server = grpc.aio.server(interceptors=[CallInterceptor(SharedToken("right"))])
    nothing = cast("Any", None)  # no call comes as far as its parts
    servicer = AgentGatewayServicer(nothing, nothing, nothing)
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}", token)
    stub = gateway_pb2_grpc.AgentGatewayServiceStub(channel)
    clock = Clock()
    inventory = [gateway_pb2.InventoryPage()] * 20
    try:
        for _ in range(STREAMS):
            call = stub.Connect(None, metadata=bearer(token))
            session = Session(call, cast("SessionHost", Host()), Outbox(cast("Any", None)), Conditions(clock), clock)
            with pytest.raises(Refused, match=rf"UNAUTHENTICATED: .*{why}.*FASTFLOW_TOKEN"):
                await session.run(gateway_pb2.Hello(), inventory, asyncio.Event())
    finally:
        await channel.close(None)
        await server.stop(None)
