"""The connection to a control plane: calls that are repeated while nobody answers, and errors turned into sentences.

Every call ffctl makes is safe to repeat: it reads, or it carries a request id.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import grpc.aio
from fastflow.backoff import Backoff
from fastflow.client import is_loopback, open_channel
from fastflow.v1 import (
    agents_pb2_grpc,
    logs_pb2_grpc,
    pipelines_pb2_grpc,
    runs_pb2_grpc,
    secrets_pb2_grpc,
    sources_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ffctl.address import TOKEN_VARIABLE
from ffctl.failures import Failure, Refused, Unreachable

PATIENCE_S = 5.0
"""For how long one command tries to reach a server that does not answer: longer than a restart of it takes."""
FOLLOW_PATIENCE_S = 600.0
"""For how long a command that follows a run waits for the server to return; the run goes on meanwhile."""
CALL_TIMEOUT_S = 15.0
"""For how long one answer is waited for: a server with a slow disk answers late, a wrong address never."""
RETRY_INITIAL_S = 0.1
RETRY_MAXIMUM_S = 1.0

Answer = TypeVar("Answer")


class Connection:
    """A channel to the control plane at `address` ("host:port") and the stubs of its services."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._channel = open_channel(address, token)
        self.runs = runs_pb2_grpc.RunServiceStub(self._channel)
        self.logs = logs_pb2_grpc.LogServiceStub(self._channel)
        self.pipelines = pipelines_pb2_grpc.PipelineServiceStub(self._channel)
        self.agents = agents_pb2_grpc.AgentServiceStub(self._channel)
        self.secrets = secrets_pb2_grpc.SecretServiceStub(self._channel)
        self.sources = sources_pb2_grpc.SourceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        *,
        patience: float = PATIENCE_S,
        on_lost: Callable[[str], None] = lambda explanation: None,
    ) -> Answer:
        """Makes one call, again and again for `patience` seconds while the server can not be reached.

        `on_lost` is told the first time an attempt fails. Raises Unreachable or Refused.
        """
        retry = _Retry(self.address, patience, on_lost)
        while True:
            try:
                return await method(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                await retry.after(error)

    async def stream(
        self,
        start: Callable[[], AsyncIterable[Answer]],
        *,
        complete: Callable[[], bool],
        patience: float = FOLLOW_PATIENCE_S,
        on_lost: Callable[[str], None] = lambda explanation: None,
    ) -> AsyncIterator[Answer]:
        """Yields a stream's messages, and opens it anew with `start` until one ended with `complete()` true.

        `patience` counts from the last message. Raises Unreachable or Refused.
        """
        retry = _Retry(self.address, patience, on_lost)
        while True:
            try:
                async for message in start():
                    retry.reset()
                    yield message
                if complete():
                    return
                await retry.wait("the server ended the stream", answered=True)
            except grpc.aio.AioRpcError as error:
                await retry.after(error)


class _Retry:
    def __init__(self, address: str, patience: float, on_lost: Callable[[str], None]) -> None:
        self._address = address
        self._patience = patience
        self._on_lost = on_lost
        self.reset()

    def reset(self) -> None:
        self._backoff = Backoff(RETRY_INITIAL_S, RETRY_MAXIMUM_S)
        self._since: float | None = None

    async def after(self, error: grpc.aio.AioRpcError) -> None:
        """Waits before the next attempt; raises what `error` means where waiting can not help."""
        failure = explain(error, self._address)
        answered = isinstance(failure, Refused)
        if answered and error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise failure from None
        await self.wait(failure.message, answered=answered, failure=failure)

    async def wait(self, explanation: str, *, answered: bool, failure: Failure | None = None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._on_lost(explanation)
        pause = self._backoff.next()
        if now + pause - self._since > self._patience:
            raise failure or Unreachable(f"{self._address}: {explanation} again and again")
        await asyncio.sleep(pause)


_TRANSPORT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
"""Codes that gRPC itself uses for a connection that broke, or for a peer that is no gRPC server."""

_SILENT = (
    "The control plane there, its database or the network is slow or hangs: its log tells. "
    "Or name another with --server or FASTFLOW_SERVER."
)


def explain(error: grpc.aio.AioRpcError, address: str) -> Failure:
    """Returns what a failed call means: Refused where a control plane answered, otherwise Unreachable."""
    code = error.code()
    status = rpc_status.from_call(cast(Any, error))  # typed for the synchronous API; takes both
    if status is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"no answer from {address} within {CALL_TIMEOUT_S:g} s", hint=_SILENT)
    if status is None and code in _TRANSPORT:
        return Unreachable(
            f"no control plane answers at {address} ({_transport(error)})",
            hint=_advice(address),
        )
    if status is None:
        return Refused(
            f"{address} answered {code.name}: {error.details() or 'no explanation'}",
            code=code.name,
            hint=_hint(code),
        )
    details: list[str] = []
    hint = ""
    for packed in status.details:
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            packed.Unpack(bad_request)
            details += [
                f"{violation.field}: {violation.description}"
                for violation in bad_request.field_violations
                if violation.description not in status.message
            ]
        elif packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            information = error_details_pb2.ErrorInfo()
            packed.Unpack(information)
            hint = information.metadata.get("hint", "")
    return Refused(status.message, code=code.name, details=details, hint=hint or _hint(code))


_CAUSES = [
    (re.compile(r"^.*last error: (?:[A-Z_]+: )?(?:ipv[46]:\S+: )?"), ""),
    (re.compile(r"^Failed to connect to remote host: "), ""),
    (re.compile(r"^errors resolving .*: ([^:\]]+)\]+$"), r"\1"),
    (re.compile(r"^Cancelling all calls$"), "it is being stopped"),
]
"""What gRPC writes around a cause ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7233: …"),
and what is written in its place."""


def _transport(error: grpc.aio.AioRpcError) -> str:
    details = error.details() or error.code().name
    for pattern, cause in _CAUSES:
        details = pattern.sub(cause, details)
    return details


def _advice(address: str) -> str:
    if is_loopback(address):
        return "Start one with `ffctl up`, or name another with --server or FASTFLOW_SERVER."
    return "See whether it runs and this machine may reach it, or name another with --server or FASTFLOW_SERVER."


def _hint(code: grpc.StatusCode) -> str:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"Set {TOKEN_VARIABLE} to the token the control plane was started with."
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "Something other than a control plane listens there, or an older one: compare the versions."
    return ""
