"""RunService: translates and delegates to `runs.service`."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastflow.v1 import runs_pb2, runs_pb2_grpc

from fastflow_controlplane import pages
from fastflow_controlplane.api.translate import differences_message, run_message
from fastflow_controlplane.clock import MICROSECONDS
from fastflow_controlplane.errors import FieldViolation, InvalidArgument
from fastflow_controlplane.runs.model import NewRun
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.runs.states import RunState

DEFAULT_PAGE = 50


class RunServicer(runs_pb2_grpc.RunServiceServicer):
    """Runs for clients."""

    def __init__(self, runs: RunService, reaper: Reaper) -> None:
        self._runs = runs
        self._reaper = reaper

    async def CreateRun(self, request: runs_pb2.CreateRunRequest, context: Any) -> runs_pb2.CreateRunResponse:
        """Queues a run."""
        if not request.pipeline:
            raise _required("pipeline", "name the pipeline to run")
        run = await self._runs.create(
            NewRun(
                pipeline=request.pipeline,
                environment=dict(request.environment),
                request_id=request.request_id,
                priority=request.priority,
                ref=request.ref,
            )
        )
        return runs_pb2.CreateRunResponse(run=run_message(run))

    async def GetRun(self, request: runs_pb2.GetRunRequest, context: Any) -> runs_pb2.GetRunResponse:
        """Reads one run."""
        return runs_pb2.GetRunResponse(run=run_message(await self._runs.get(request.id)))

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, context: Any) -> runs_pb2.ListRunsResponse:
        """Lists runs, newest first."""
        page = await self._runs.list(
            page_size=pages.check_size(request.page_size, DEFAULT_PAGE),
            page_token=request.page_token,
            pipeline=request.pipeline,
            states=[_state(value) for value in request.states],
        )
        runs, token = pages.fitting(
            [run_message(run) for run in page.runs], [run.id for run in page.runs], page.next_page_token
        )
        return runs_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def RerunRun(self, request: runs_pb2.RerunRunRequest, context: Any) -> runs_pb2.RerunRunResponse:
        """Queues a run that repeats another."""
        run = await self._runs.rerun(request.id, latest=request.latest, request_id=request.request_id)
        return runs_pb2.RerunRunResponse(run=run_message(run))

    async def DiffRuns(self, request: runs_pb2.DiffRunsRequest, context: Any) -> runs_pb2.DiffRunsResponse:
        """Compares two runs."""
        return differences_message(await self._runs.diff(request.a, request.b))

    async def CancelRun(self, request: runs_pb2.CancelRunRequest, context: Any) -> runs_pb2.CancelRunResponse:
        """Asks a run to stop. A repeat changes nothing, with or without request id."""
        grace = request.grace.ToMicroseconds() / MICROSECONDS if request.HasField("grace") else None
        return runs_pb2.CancelRunResponse(run=run_message(await self._runs.cancel(request.id, grace)))

    async def AbandonRun(self, request: runs_pb2.AbandonRunRequest, context: Any) -> runs_pb2.AbandonRunResponse:
        """Declares a run LOST."""
        run_id = await self._reaper.abandon(request.id, request.request_id)
        return runs_pb2.AbandonRunResponse(run=run_message(await self._runs.get(run_id)))

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        """Sends the run now and after each change."""
        async with aclosing(self._runs.watch(request.id)) as states:
            async for run in states:
                yield runs_pb2.WatchRunResponse(run=run_message(run))


def _state(value: int) -> RunState:
    name = runs_pb2.RunState.Name(value) if value in runs_pb2.RunState.values() else ""
    state = name.removeprefix("RUN_STATE_")
    if state not in RunState.__members__:
        message = f"{name or value} is no state to look for; there are: {', '.join(RunState)}"
        raise InvalidArgument(message, violations=[FieldViolation("states", message)])
    return RunState(state)


def _required(field: str, what: str) -> InvalidArgument:
    message = f"{field} is empty: {what}"
    return InvalidArgument(message, violations=[FieldViolation(field, message)])
