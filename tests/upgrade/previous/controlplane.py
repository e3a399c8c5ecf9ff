"""A small control plane of protocol 1. It has one run, and whichever agent comes gets it.

    controlplane.py BUNDLE_FILE BUNDLE_DIGEST [stop | break]

Prints "port N", then each thing that happened, and ends once the run's log is whole and its container gone. Once the
run is RUNNING, "stop" makes its stop desired, and "break" ends the stream of its agent.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, gateway_pb2_grpc
from fastflow.v1 import limits_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration

PROTOCOL = 1
WINDOW = 1 << 30
PATIENCE = 240.0
KEY = attempts_pb2.AttemptKey(run_id="01890000-0000-7000-8000-000000000001", attempt=1, claim_token="token")
NEWER_MEMBER = gateway_pb2.ConnectResponse.FromString(b"\xe2\x03\x00")
"""A message of a kind (field 60) that neither side knows."""


class ControlPlane(gateway_pb2_grpc.AgentGatewayServiceServicer):
    """Knows of the run what its agent told."""

    def __init__(self, bundle: bytes, digest: str, then: str) -> None:
        self._bundle = bundle
        self._digest = digest
        self._then = then
        self._revision = 0
        self._known_seq = 0
        self._log = b""
        self._sealed = False
        self._gone = False
        self._outgoing: queue.Queue[Any] = queue.Queue()
        self.forgotten = threading.Event()

    def Connect(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        """One agent's stream."""
        context.send_initial_metadata(())
        self._outgoing = outgoing = queue.Queue()
        threading.Thread(target=self._listen, args=(request_iterator,), daemon=True).start()
        yield from iter(outgoing.get, None)

    def UploadLogs(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        """The run's output."""
        for request in request_iterator:
            if request.HasField("chunk"):
                self._log = self._log[: request.chunk.offset] + request.chunk.data
            elif request.HasField("seal"):
                # First said: the thread of the other stream may see it sealed and say that all is over.
                tell(f"log {self._log!r} sealed at {request.seal.end_offset}")
                self._sealed = True
                self._settle()
            yield gateway_pb2.UploadLogsResponse(
                run_id=KEY.run_id,
                attempt=KEY.attempt,
                durable_offset=len(self._log),
                window_end=len(self._log) + WINDOW,
                sealed=self._sealed,
            )

    def FetchBundle(self, request: Any, context: Any) -> Iterator[Any]:
        """The run's code."""
        assert request.digest == self._digest
        yield gateway_pb2.FetchBundleResponse(offset=0, data=self._bundle, total_size=len(self._bundle))

    def end(self) -> None:
        """End the agent's stream, and with it the thread that serves it."""
        self._outgoing.put(None)

    def _listen(self, requests: Any) -> None:
        for request in requests:
            kind = request.WhichOneof("message")
            if kind == "hello":
                self._welcome(request.hello)
            elif kind == "inventory":
                for attempt in request.inventory.attempts:
                    tell(f"comes with {runs_pb2.RunState.Name(attempt.state)}")
                if request.inventory.last_page:
                    self._desire(self._assignment(), full=True)
            elif kind == "events":
                for event in request.events.events:
                    self._note(event)

    def _welcome(self, hello: Any) -> None:
        assert hello.protocol_min <= PROTOCOL <= hello.protocol_max
        welcome = gateway_pb2.Welcome(
            protocol=PROTOCOL,
            cluster_id="cluster-1",
            session_epoch=1,
            heartbeat_interval=Duration(seconds=1),
            orphan_grace=Duration(seconds=300),
            agent_id=hello.agent_id,
        )
        self._say(welcome=welcome)
        self._outgoing.put(NEWER_MEMBER)

    def _note(self, event: Any) -> None:
        fact = event.WhichOneof("fact")
        is_new = event.sequence > self._known_seq
        self._known_seq = max(self._known_seq, event.sequence)
        if is_new and fact in ("state_changed", "ended"):
            tell(runs_pb2.RunState.Name(getattr(event, fact).state))
        ack = attempts_pb2.AttemptEventAck(run_id=event.key.run_id, attempt=event.key.attempt, sequence=event.sequence)
        self._say(events_ack=attempts_pb2.AttemptEventsAck(acks=[ack]))
        if fact == "container_gone":
            self._gone = True
            self._settle()
        elif is_new and fact == "state_changed" and event.state_changed.state == runs_pb2.RUN_STATE_RUNNING:
            self._go_on()

    def _go_on(self) -> None:
        if self._then == "stop":
            stop = desired_pb2.DesiredAttempt(
                key=KEY,
                action=desired_pb2.DESIRED_ACTION_STOP,
                known_seq=self._known_seq,
                durable_log_offset=len(self._log),
                stop_cause=desired_pb2.STOP_CAUSE_CANCEL,
                stop_grace=Duration(seconds=5),
            )
            self._desire(stop)
        elif self._then == "break":
            self.end()

    def _settle(self) -> None:
        if self._gone and self._sealed:
            self._desire(desired_pb2.DesiredAttempt(key=KEY, action=desired_pb2.DESIRED_ACTION_FORGET))
            tell("forgotten")
            self.forgotten.set()

    def _assignment(self) -> Any:
        spec = desired_pb2.RunSpec(
            pipeline="hello",
            bundle_digest=self._digest,
            bundle_size=len(self._bundle),
            limits=limits_pb2.Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=1 << 28),
            stop_grace=Duration(seconds=5),
            log_limit_bytes=1 << 30,
            on_log_backlog=desired_pb2.LOG_BACKLOG_POLICY_DROP,
            environment={"GREETING": "hello"},
        )
        return desired_pb2.DesiredAttempt(
            key=KEY,
            action=desired_pb2.DESIRED_ACTION_RUN,
            known_seq=self._known_seq,
            durable_log_offset=len(self._log),
            spec=spec,
        )

    def _desire(self, word: Any, *, full: bool = False) -> None:
        self._revision += 1
        self._say(desired=page(self._revision, word, full=full))

    def _say(self, **message: Any) -> None:
        self._outgoing.put(gateway_pb2.ConnectResponse(**message))


def page(revision: int, word: Any, *, full: bool = False) -> Any:
    """Desired state of one attempt."""
    previous = 0 if full else revision - 1
    return desired_pb2.DesiredPage(
        revision=revision, previous_revision=previous, full=full, last_page=True, attempts=[word]
    )


def tell(text: str) -> None:
    """Say what happened."""
    # `print` writes a line and its end apart, and what two threads say would run together.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve one run to its end."""
    bundle, digest, *then = sys.argv[1:]
    controlplane = ControlPlane(Path(bundle).read_bytes(), digest, *(then or [""]))
    server = grpc.server(ThreadPoolExecutor(8))
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(controlplane, server)
    tell(f"port {server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    if not controlplane.forgotten.wait(PATIENCE):
        sys.exit("the run did not come to its end")
    controlplane.end()
    server.stop(1.0).wait()


if __name__ == "__main__":
    main()
