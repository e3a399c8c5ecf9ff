"""A small agent of protocol 1. It runs no container: it answers each assignment as an agent that runs one does.

    agent.py HOST:PORT

A pipeline named "waits" runs until it is stopped, one named "prepares" is stopped before it begins; any other prints
its own name and succeeds. Each line on standard output is something that happened.
"""

import itertools
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import google_crc32c
import grpc
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, gateway_pb2_grpc
from fastflow.v1 import agents_pb2, runs_pb2

PROTOCOL = 1
HEARTBEAT_SECONDS = 2.0
REDIAL_SECONDS = 0.5
NEWER_MEMBER = gateway_pb2.ConnectRequest.FromString(b"\xe2\x03\x00")
"""A message of a kind (field 60) that neither side knows."""


class Agent:
    """Dials in again for as long as it lives, with what it has."""

    def __init__(self, address: str) -> None:
        self._stub = gateway_pb2_grpc.AgentGatewayServiceStub(grpc.insecure_channel(address))
        self._outgoing: queue.Queue[Any] = queue.Queue()
        self._stopped: dict[str, threading.Event] = {}
        self._told: dict[str, list[Any]] = {}

    def live(self) -> None:
        """Speak until this is killed."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            try:
                self._speak()
            except grpc.RpcError as error:
                tell(f"the stream broke: {error.code().name}")
            time.sleep(REDIAL_SECONDS)

    def _speak(self) -> None:
        """One stream, from Hello to its end."""
        outgoing: queue.Queue[Any] = queue.Queue()
        outgoing.put(gateway_pb2.ConnectRequest(hello=hello()))
        outgoing.put(NEWER_MEMBER)
        self._outgoing = outgoing
        attempts = [inventory(events) for events in self._told.values()]
        self._say(inventory=gateway_pb2.InventoryPage(attempts=attempts, last_page=True))
        for events in list(self._told.values()):
            # It does not note what was acknowledged: what is known already changes nothing.
            self._say(events=attempts_pb2.AttemptEvents(events=events))
        for answer in self._stub.Connect(iter(outgoing.get, None), wait_for_ready=True):
            kind = answer.WhichOneof("message")
            if kind == "welcome":
                tell(f"welcome to protocol {answer.welcome.protocol}")
            elif kind == "rejection":
                tell(f"rejected: {answer.rejection.message}")
            elif kind == "desired":
                for attempt in answer.desired.attempts:
                    self._take(attempt)

    def _beat(self) -> None:
        for number in itertools.count(1):
            self._say(heartbeat=gateway_pb2.Heartbeat(number=number))
            time.sleep(HEARTBEAT_SECONDS)

    def _take(self, attempt: Any) -> None:
        run = attempt.key.run_id
        if attempt.action == desired_pb2.DESIRED_ACTION_RUN and run in self._stopped:
            tell(f"goes on {run}")
        elif attempt.action == desired_pb2.DESIRED_ACTION_RUN:
            self._stopped[run] = threading.Event()
            threading.Thread(target=self._run, args=(attempt,), daemon=True).start()
        elif attempt.action == desired_pb2.DESIRED_ACTION_STOP:
            tell(f"stop {run} within {attempt.stop_grace.seconds} s")
            self._stopped[run].set()
        elif attempt.action == desired_pb2.DESIRED_ACTION_FORGET:
            self._told.pop(run, None)
            tell(f"forget {run}")

    def _run(self, attempt: Any) -> None:
        spec, key = attempt.spec, attempt.key
        code = b"".join(
            piece.data for piece in self._stub.FetchBundle(gateway_pb2.FetchBundleRequest(digest=spec.bundle_digest))
        )
        assert len(code) == spec.bundle_size
        events = Events(key)
        self._tell(events.moved("PREPARING"))
        if spec.pipeline == "prepares":
            self._stopped[key.run_id].wait()
            self._tell(events.cancelled_before_it_began(), events.gone())
            self._deliver(key, b"")
            return
        self._tell(events.moved("RUNNING"))
        state = "SUCCEEDED"
        if spec.pipeline == "waits":
            self._stopped[key.run_id].wait()
            self._tell(events.moved("STOPPING"))
            state = "CANCELLED"
        self._tell(events.ended(state), events.gone())
        self._deliver(key, spec.pipeline.encode() + b"\n")

    def _deliver(self, key: Any, data: bytes) -> None:
        chunk = gateway_pb2.LogChunk(key=key, offset=0, data=data, crc32c=google_crc32c.value(data))
        seal = gateway_pb2.LogSeal(key=key, end_offset=len(data))
        chunks = [gateway_pb2.UploadLogsRequest(chunk=chunk)] if data else []
        requests = [*chunks, gateway_pb2.UploadLogsRequest(seal=seal)]
        *_, last = self._stub.UploadLogs(iter(requests))
        tell(f"log of {key.run_id} sealed: {last.sealed}")

    def _tell(self, *events: Any) -> None:
        self._told.setdefault(events[0].key.run_id, []).extend(events)
        self._say(events=attempts_pb2.AttemptEvents(events=events))

    def _say(self, **message: Any) -> None:
        self._outgoing.put(gateway_pb2.ConnectRequest(**message))


class Events:
    """The facts of one attempt, numbered."""

    def __init__(self, key: Any) -> None:
        self._key = key
        self._numbers: Iterator[int] = itertools.count(1)

    def moved(self, state: str) -> Any:
        """It is in `state` now."""
        return self._event(state_changed=attempts_pb2.StateChanged(state=f"RUN_STATE_{state}", slot="0123456789abcdef"))

    def ended(self, state: str) -> Any:
        """It ended in `state`."""
        reason = runs_pb2.REASON_CANCEL_REQUESTED if state == "CANCELLED" else runs_pb2.REASON_UNSPECIFIED
        return self._event(ended=attempts_pb2.Ended(state=f"RUN_STATE_{state}", reason=reason, exit_code=0))

    def cancelled_before_it_began(self) -> Any:
        """It was stopped before its program began."""
        reason = runs_pb2.REASON_CANCEL_REQUESTED
        return self._event(ended=attempts_pb2.Ended(state="RUN_STATE_CANCELLED", reason=reason))

    def gone(self) -> Any:
        """Its container is gone."""
        return self._event(container_gone=attempts_pb2.ContainerGone())

    def _event(self, **fact: Any) -> Any:
        event = attempts_pb2.AttemptEvent(key=self._key, sequence=next(self._numbers), **fact)
        event.time.GetCurrentTime()
        return event


def inventory(events: list[Any]) -> Any:
    """What the agent has of an attempt that told these events."""
    moved = [event.state_changed.state for event in events if event.HasField("state_changed")]
    return gateway_pb2.InventoryAttempt(key=events[0].key, state=moved[-1], last_event=events[-1].sequence)


def hello() -> Any:
    """What the agent says of itself."""
    return gateway_pb2.Hello(
        protocol_min=PROTOCOL,
        protocol_max=PROTOCOL,
        agent_version="0.1.0",
        agent_id="01890000-0000-7000-8000-00000000a9e7",
        agent_name="previous",
        instance_id="one",
        capacity=agents_pb2.Capacity(cpu_milli_cores=4000, memory_bytes=8 << 30),
        runtime=gateway_pb2.RuntimeFacts(runtime="process", cgroup="none", python_versions=["3.11.7"]),
    )


def tell(text: str) -> None:
    """Say what happened."""
    # `print` writes a line and its end apart, and what two threads say would run together.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    Agent(sys.argv[1]).live()
