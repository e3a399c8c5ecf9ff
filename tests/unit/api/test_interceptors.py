"""Errors as callers see them, and the shared token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from fastflow.v1 import runs_pb2, runs_pb2_grpc
from fastflow_controlplane.api.interceptors import _Guard
from fastflow_controlplane.errors import FieldViolation, InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.identity.tokens import SharedToken
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from .conftest import TOKEN, Servicer


async def refused(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs_pb2_grpc.RunServiceStub(channel).GetRun(runs_pb2.GetRunRequest(id="x"), metadata=metadata)
    return caught.value


async def read_all(channel: grpc.aio.Channel, received: list[str]) -> None:
    async for answer in runs_pb2_grpc.RunServiceStub(channel).WatchRun(runs_pb2.WatchRunRequest(id="x")):
        received.append(answer.run.id)


def status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    (packed,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed)


def details_in(error: grpc.aio.AioRpcError, kind: type[Any]) -> list[Any]:
    found = []
    for packed in status_in(error).details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            found.append(message)
    return found


async def test_an_error_travels_with_exactly_one_error_info(channel: grpc.aio.Channel, servicer: Servicer) -> None:
    servicer.fault = lambda: NotFound('there is no run "x"', reason="RUN_NOT_FOUND", metadata={"run": "x"})
    error = await refused(channel)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, 'there is no run "x"')
    (information,) = details_in(error, error_details_pb2.ErrorInfo)
    assert (information.domain, information.reason, dict(information.metadata)) == (
        "fastflow",
        "RUN_NOT_FOUND",
        {"run": "x"},
    )
    assert details_in(error, error_details_pb2.BadRequest) == []


async def test_wrong_fields_are_named_as_violations(channel: grpc.aio.Channel, servicer: Servicer) -> None:
    servicer.fault = lambda: InvalidArgument("no", violations=[FieldViolation("page_size", "is -1; allowed is 1 to 9")])
    (bad_request,) = details_in(await refused(channel), error_details_pb2.BadRequest)
    assert [(violation.field, violation.description) for violation in bad_request.field_violations] == [
        ("page_size", "is -1; allowed is 1 to 9")
    ]


async def test_a_defect_shows_a_log_reference_and_nothing_of_the_exception(
    channel: grpc.aio.Channel, servicer: Servicer
) -> None:
    servicer.fault = lambda: KeyError("the password is hunter2")
    with capture_logs() as entries:
        error = await refused(channel)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error)
    assert "KeyError" not in str(error)
    (information,) = details_in(error, error_details_pb2.ErrorInfo)
    (entry,) = [entry for entry in entries if entry["event"] == "call failed"]
    assert entry["reference"] == information.metadata["reference"]
    assert entry["reference"] in error.details()


async def test_an_error_in_the_middle_of_a_stream_ends_it_with_its_status(
    channel: grpc.aio.Channel, servicer: Servicer
) -> None:
    servicer.fault = lambda: Unavailable("the disk is full", reason="DISK_FULL")
    received: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(channel, received)
    assert received == ["x"]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_in(caught.value, error_details_pb2.ErrorInfo)[0].reason == "DISK_FULL"


async def test_a_huge_message_still_arrives_as_an_error_of_its_kind(
    channel: grpc.aio.Channel, servicer: Servicer
) -> None:
    huge = "ü" * 100_000
    servicer.fault = lambda: InvalidArgument(
        huge, metadata={"name": huge}, violations=[FieldViolation(f"environment[{huge}]", huge)] * 1000
    )
    error = await refused(channel)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("üüü")


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/fastflow.v1.RunService/NoSuchMethod")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_call_leaves_one_log_entry(channel: grpc.aio.Channel) -> None:
    with capture_logs() as entries:
        await runs_pb2_grpc.RunServiceStub(channel).GetRun(runs_pb2.GetRunRequest(id="x"))
    (entry,) = [entry for entry in entries if entry["event"] == "call"]
    assert (entry["method"], entry["outcome"]) == ("/fastflow.v1.RunService/GetRun", "OK")
    assert entry["seconds"] >= 0


class TestWithToken:
    @pytest.fixture
    def token(self) -> str:
        return TOKEN

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    async def test_the_right_token_passes(self, channel: grpc.aio.Channel, scheme: str) -> None:
        metadata = (("authorization", f"{scheme} {TOKEN}"),)
        await runs_pb2_grpc.RunServiceStub(channel).GetRun(runs_pb2.GetRunRequest(id="x"), metadata=metadata)

    @pytest.mark.parametrize(
        ("metadata", "reason"),
        [
            ((), "TOKEN_MISSING"),
            ((("authorization", "Bearer wrong"),), "TOKEN_WRONG"),
            ((("authorization", TOKEN),), "TOKEN_WRONG"),
            ((("authorization", "Bearer "),), "TOKEN_WRONG"),
        ],
    )
    async def test_any_other_is_refused_with_what_to_do(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], reason: str
    ) -> None:
        error = await refused(channel, metadata)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        (information,) = details_in(error, error_details_pb2.ErrorInfo)
        assert information.reason == reason
        assert "FASTFLOW_TOKEN" in information.metadata["hint"]
        assert TOKEN not in str(error)

    async def test_streams_are_guarded_as_well(self, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(channel, [])
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_health_needs_no_token(self, channel: grpc.aio.Channel) -> None:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


class FreedCall:
    """A call's context as gRPC leaves it once the peer has gone; asking the real one then crashes the process."""

    def __init__(self) -> None:
        self.freed = False

    def peer(self) -> str:
        assert not self.freed, "a freed call was asked for its peer"
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {TOKEN}"),)


async def test_a_stream_closed_after_its_peer_has_gone_leaves_the_freed_call_alone() -> None:
    async def answers(request: object, context: object) -> AsyncIterator[int]:
        yield 1
        yield 2

    context = FreedCall()
    stream = _Guard("/fastflow.v1.RunService/WatchRun", SharedToken(TOKEN)).answering_often(answers)(None, context)
    assert await anext(stream) == 1
    context.freed = True
    await stream.aclose()


async def test_a_stream_that_meets_the_end_of_the_server_is_no_defect() -> None:
    begun, reads, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(requests: AsyncIterator[bytes], context: object) -> None:
        begun.set()
        # As where a shutdown comes while a stream is at work on something that no cancellation cuts short.
        while not reads.is_set():
            with suppress(asyncio.CancelledError):
                await reads.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(requests))

    async def read(requests: AsyncIterator[bytes]) -> None:
        async for _ in requests:
            pass

    guarded = _Guard("/test.Service/Upload", SharedToken(None)).answering_often(answer)

    async def until_ended(requests: AsyncIterator[bytes], context: object) -> None:
        try:
            await guarded(requests, context)
        finally:
            ended.set()

    server = grpc.aio.server()
    handlers = {"Upload": grpc.stream_stream_rpc_method_handler(until_ended)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/test.Service/Upload")()
        await begun.wait()
        with capture_logs() as entries:
            await server.stop(None)
            reads.set()
            await ended.wait()
        call.cancel()
    assert [(entry["event"], entry.get("outcome")) for entry in entries] == [("call", "ENDED")]
