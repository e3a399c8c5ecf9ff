"""What every call passes through: the token, errors turned into statuses, one log entry."""

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from fastflow_controlplane.api import status
from fastflow_controlplane.conditions import is_told
from fastflow_controlplane.errors import FastFlowError
from fastflow_controlplane.identity.tokens import SharedToken

if TYPE_CHECKING:
    ServerInterceptor = grpc.aio.ServerInterceptor[Any, Any]
else:  # generic in the type stubs alone
    ServerInterceptor = grpc.aio.ServerInterceptor

log = structlog.get_logger(__name__)

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""Methods without token: a probe has none, and learns nothing but that the server lives."""

Behavior = Callable[[Any, Any], Any]


class CallInterceptor(ServerInterceptor):
    """Guards every method of the server.

    A FastFlowError becomes its status; any other exception is a defect: logged with a reference, answered as INTERNAL
    without its text.
    """

    def __init__(self, token: SharedToken) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's handler; an unknown method is left to gRPC, which answers UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        guard = _Guard(handler_call_details.method, self._token)
        # gRPC's own record of a handler, with the one behaviour that is set replaced.
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=guard.answering_once(handler.unary_unary))
        if handler.stream_unary is not None:
            return handler._replace(stream_unary=guard.answering_once(handler.stream_unary))
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=guard.answering_often(handler.unary_stream))
        return handler._replace(stream_stream=guard.answering_often(handler.stream_stream))


class _Guard:
    """Guards one call of `method`."""

    def __init__(self, method: str, token: SharedToken) -> None:
        self._method = method
        self._token = token

    def answering_once(self, behavior: Behavior) -> Behavior:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._call(context):
                return await behavior(request, context)

        return guarded

    def answering_often(self, behavior: Behavior) -> Behavior:
        if not inspect.isasyncgenfunction(behavior):
            return self.answering_once(behavior)

        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            # Closed with the call, not when it is collected: a follower holds a log open.
            async with self._call(context), aclosing(behavior(request, context)) as answers:
                async for answer in answers:
                    yield answer

        return guarded

    @asynccontextmanager
    async def _call(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        started = time.monotonic()
        outcome = "OK"
        # Asked for now: once a peer has gone, gRPC may free the call before a generator is closed, and asking a freed
        # call for its peer ends the whole process (a segmentation fault, grpcio 1.85).
        peer = context.peer()
        try:
            if self._method not in OPEN_METHODS:
                self._token.check(context.invocation_metadata() or ())
            yield
        except FastFlowError as error:
            outcome = error.code
            answer = status.status_of(error)
            tell = log.debug if is_told(error) else log.info
            tell("call refused", method=self._method, code=error.code, reason=error.reason, why=answer.message)
            await _abort(context, answer)
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            outcome = "ENDED"
            raise
        except Exception as error:
            if stop := _end_of_server(error):
                outcome = "ENDED"
                raise stop from None  # which gRPC knows
            # The border: no exception text may reach a client.
            outcome = "INTERNAL"
            reference = secrets.token_hex(4)
            log.exception("call failed", method=self._method, reference=reference)
            await _abort(context, status.internal(reference))
        finally:
            seconds = round(time.monotonic() - started, 6)
            log.debug("call", method=self._method, outcome=outcome, seconds=seconds, peer=peer)


def _end_of_server(error: BaseException) -> BaseException | None:
    """The error by which gRPC tells a stream that is read or written that its server was stopped; None for any other.

    It has no public name.
    """
    if isinstance(error, BaseExceptionGroup):
        found = [_end_of_server(part) for part in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, grpc.aio.BaseError) and type(error).__name__ == "_ServerStoppedError" else None


async def _abort(context: grpc.aio.ServicerContext[Any, Any], answer: Any) -> None:
    await context.abort(status.grpc_code(answer), answer.message, status.trailers(answer))
