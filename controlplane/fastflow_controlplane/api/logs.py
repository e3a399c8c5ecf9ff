"""LogService: translates and delegates to `logs.follow`."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastflow.v1 import logs_pb2, logs_pb2_grpc

from fastflow_controlplane.errors import FieldViolation, InvalidArgument
from fastflow_controlplane.logs.follow import LogFollower
from fastflow_controlplane.logs.wire import piece_message
from fastflow_controlplane.runs.service import RunService


class LogServicer(logs_pb2_grpc.LogServiceServicer):
    """The output of runs for clients."""

    def __init__(self, runs: RunService, follower: LogFollower) -> None:
        self._runs = runs
        self._follower = follower

    async def ReadLog(self, request: logs_pb2.ReadLogRequest, context: Any) -> AsyncIterator[logs_pb2.ReadLogResponse]:
        """Sends a log from an offset, and with follow until it is complete."""
        _check(request)
        run = await self._runs.get(request.run_id)
        pieces = self._follower.read(
            run.id,
            attempt=request.attempt,
            offset=request.offset,
            tail_lines=request.tail_lines,
            follow=request.follow,
        )
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece_message(piece)


def _check(request: logs_pb2.ReadLogRequest) -> None:
    violations = [
        FieldViolation(field, f"{field} is {value}; it can not be negative")
        for field, value in (
            ("attempt", request.attempt),
            ("offset", request.offset),
            ("tail_lines", request.tail_lines),
        )
        if value < 0
    ]
    if request.tail_lines and request.offset:
        violations.append(FieldViolation("tail_lines", "tail_lines and offset exclude each other: leave one at 0"))
    if violations:
        raise InvalidArgument("; ".join(violation.description for violation in violations), violations=violations)
