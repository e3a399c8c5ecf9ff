"""Clients and operators of a control plane that is killed and frozen: they never give up."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from fastflow.v1 import agents_pb2, runs_pb2
from fastflow.v1.agents_pb2_grpc import AgentServiceStub
from fastflow.v1.runs_pb2_grpc import RunServiceStub

from tests.chaos.diary import Diary
from tests.chaos.script import Act, Step

CALL_SECONDS = 5.0
"""A call that is not answered by then is repeated: its control plane may be frozen."""
AGAIN_SECONDS = 0.3
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Clients:
    """Calls as steps of the script say, from any thread. Each raises grpc.RpcError where it is refused."""

    def __init__(self, server: str, diary: Diary) -> None:
        self._server = server
        self._diary = diary
        self._runs: dict[str, str] = {}
        self._over = threading.Event()

    def close(self) -> None:
        """From now on they do give up."""
        self._over.set()

    def submit(self, step: Step) -> None:
        """Asks for a run."""
        request = runs_pb2.CreateRunRequest(
            pipeline=step.kind, request_id=step.target, environment={"KEY": step.target}
        )
        try:
            run = self._call(lambda channel: RunServiceStub(channel).CreateRun(request, timeout=CALL_SECONDS).run)
        except grpc.RpcError:
            self._runs.setdefault(step.target, "")
            raise
        self._runs[step.target] = run.id
        self._diary.answer("ACCEPTED", step.target, run=run.id)

    def cancel(self, step: Step) -> None:
        """Asks a run to stop, once it is accepted; nothing where it was not."""
        while step.target not in self._runs and not self._over.is_set():
            time.sleep(AGAIN_SECONDS / 10)
        run = self._runs.get(step.target)
        if not run:
            return
        request = runs_pb2.CancelRunRequest(id=run)
        self._call(lambda channel: RunServiceStub(channel).CancelRun(request, timeout=CALL_SECONDS))
        self._diary.answer("CANCELLED", step.target)

    def operate(self, step: Step) -> None:
        """Drains an agent, or lets it take runs again."""
        begun = time.monotonic()
        name, request_id = step.target, f"{step.target} {step.at}"
        if step.act is Act.DRAIN:
            drain = agents_pb2.DrainAgentRequest(name=name, request_id=request_id, stop=step.deadline == 0)
            if step.deadline:
                drain.deadline.FromMicroseconds(round(step.deadline * 1_000_000))
            self._call(lambda channel: AgentServiceStub(channel).DrainAgent(drain, timeout=CALL_SECONDS))
        else:
            resume = agents_pb2.ResumeAgentRequest(name=name, request_id=request_id)
            self._call(lambda channel: AgentServiceStub(channel).ResumeAgent(resume, timeout=CALL_SECONDS))
        self._diary.deed(step.act, name, begun=begun, deadline=step.deadline)

    def _call(self, call: Callable[[grpc.Channel], Any]) -> Any:
        """The answer to a call that is repeated until there is one. Raises grpc.RpcError for a refusal."""
        while True:
            try:
                with grpc.insecure_channel(self._server, options=[("grpc.enable_http_proxy", 0)]) as channel:
                    return call(channel)
            except grpc.RpcError as error:
                if error.code() not in AGAIN or self._over.is_set():
                    raise
                time.sleep(AGAIN_SECONDS)
