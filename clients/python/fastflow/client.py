"""How any Python program reaches a control plane: one channel with keepalive and the shared token."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from fastflow import addresses

if TYPE_CHECKING:
    UnaryUnaryInterceptor = grpc.aio.UnaryUnaryClientInterceptor[Any, Any]
    UnaryStreamInterceptor = grpc.aio.UnaryStreamClientInterceptor[Any, Any]
else:  # generic in the type stubs alone
    UnaryUnaryInterceptor = grpc.aio.UnaryUnaryClientInterceptor
    UnaryStreamInterceptor = grpc.aio.UnaryStreamClientInterceptor

DEFAULT_SERVER = "127.0.0.1:7233"

KEEPALIVE_TIME_MS = 10_000
"""A ping after this long without traffic, so that a half-open connection is noticed within seconds."""
KEEPALIVE_TIMEOUT_MS = 5_000
"""A connection whose ping is not answered within this time is broken; so is one whose bytes no host acknowledges."""
BULK_TIMEOUT_MS = 30_000
"""The same for pings on a connection of its own, which carries bulk: they queue behind it on a slow network."""
CONNECT_MS = 5_000
"""How long a connection may take to be made. gRPC's own default is too long for a host that returns meanwhile, and the
back-off alone, which begins far below, is too short for a slow network."""
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Pages and log chunks stay well below; the bound keeps one peer from filling the other's memory."""
RECONNECT_MIN_MS = 200
RECONNECT_MAX_MS = 5_000
"""gRPC's own reconnect back-off (its default grows to two minutes, too long for a returning host)."""


def channel_options() -> list[tuple[str, Any]]:
    """Returns the channel arguments that client and server share.

    grpc.keepalive_timeout_ms becomes the sockets' TCP_USER_TIMEOUT; a ping waits for grpc.http2.ping_timeout_ms, which
    is a minute unless set. A server leaves it so: the answers to its pings queue behind a slow agent's logs, and of
    an agent's silence heartbeats tell earlier. Source: gRPC core, grpc/impl/channel_arg_names.h and
    src/core/ext/transport/chttp2/transport/writing.cc.
    """
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]


def open_channel(target: str, token: str | None = None, *, own_connection: bool = False) -> grpc.aio.Channel:
    """Opens a channel to the control plane at `target` ("host:port"); the connection is made on first use.

    `token` is sent as a bearer token with each call. `own_connection` keeps the channel from sharing a TCP
    connection with other channels to the same target, so that bulk on one does not delay the other.
    """
    options = [
        *channel_options(),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
        # Not what its name says: the least time a connection gets to be made.
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.http2.ping_timeout_ms", BULK_TIMEOUT_MS if own_connection else KEEPALIVE_TIMEOUT_MS),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    if is_loopback(target):
        # gRPC obeys http_proxy even for this machine itself, which no proxy can reach.
        options.append(("grpc.enable_http_proxy", 0))
    interceptors: Any = [_BearerUnaryUnary(token), _BearerUnaryStream(token)] if token else None
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)


def is_loopback(target: str) -> bool:
    """Tells whether "host:port" names this machine itself."""
    return addresses.is_loopback(target.rpartition(":")[0])


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the call metadata that carries `token`, for streams the caller writes to.

    `open_channel` adds it to all other calls by itself; an interceptor around a written stream would put a queue
    of its own between the caller and gRPC's flow control.
    """
    return (("authorization", f"Bearer {token}"),) if token else ()


class _Bearer:
    def __init__(self, token: str) -> None:
        self._metadata = bearer(token)

    def _with_token(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


# Two classes, since grpc.aio files an interceptor under the first kind of call it matches.


class _BearerUnaryUnary(_Bearer, UnaryUnaryInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._with_token(client_call_details), request)


class _BearerUnaryStream(_Bearer, UnaryStreamInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._with_token(client_call_details), request)
