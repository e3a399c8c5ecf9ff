"""AgentGatewayService: hands each stream to the part that owns it."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc

from fastflow_controlplane.agents.session import AgentSessions
from fastflow_controlplane.logs.ingest import LogIngest
from fastflow_controlplane.logs.wire import answering, uploads
from fastflow_controlplane.sources.catalog import Catalog

BUNDLE_PIECE_BYTES = 256 * 1024
"""Bytes of a bundle in one message: large enough that framing costs nothing, small enough that two fit in memory."""


class AgentGatewayServicer(gateway_pb2_grpc.AgentGatewayServiceServicer):
    """The side that agents dial."""

    def __init__(self, sessions: AgentSessions, ingest: LogIngest, catalog: Catalog) -> None:
        self._sessions = sessions
        self._ingest = ingest
        self._catalog = catalog

    # Both streams are written to from several tasks, so they are coroutines that write and no generators: gRPC takes
    # either, the generated types know generators alone.

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterable[gateway_pb2.ConnectRequest], context: Any
    ) -> None:
        """Liveness, desired state and attempt events of one agent."""
        await context.send_initial_metadata(())
        await self._sessions.serve(request_iterator, context.write)

    async def UploadLogs(  # type: ignore[override]
        self, request_iterator: AsyncIterable[gateway_pb2.UploadLogsRequest], context: Any
    ) -> None:
        """Log bytes of one agent."""
        await self._ingest.serve(uploads(request_iterator), answering(context.write))

    async def FetchBundle(
        self, request: gateway_pb2.FetchBundleRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.FetchBundleResponse]:
        """The code of a pipeline, in pieces; an empty bundle is one piece without data."""
        async with await self._catalog.open_bundle(request.digest) as bundle:
            offset = 0
            while True:
                data = await bundle.read(BUNDLE_PIECE_BYTES)
                if data or not offset:
                    yield gateway_pb2.FetchBundleResponse(offset=offset, data=data, total_size=bundle.size)
                offset += len(data)
                if not data or offset >= bundle.size:
                    return
