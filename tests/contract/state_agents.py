"""Worker hosts: what an agent does at the least that the protocol asks of it, and the network to it.

A journal per attempt, whose events are sent until they are acknowledged; desired state that it converges to; no second
start. What is on its way may come late, twice, in pieces or never.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.v1 import agents_pb2, runs_pb2
from fastflow_controlplane.runs.model import AttemptKey

from tests.contract.rows import GIB
from tests.contract.state_plane import ControlPlane

CORES = 2000
ENDS = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT")
Number = tuple[str, int]


class Stream:
    """The agent's end of one stream. What is said while it is `cut` is on its way until it is mended."""

    def __init__(self, plane: ControlPlane) -> None:
        self.inbox: list[gateway_pb2.ConnectResponse] = []
        self.cut = False
        self.welcomed = False
        self._late: list[gateway_pb2.ConnectRequest] = []
        self._requests: asyncio.Queue[gateway_pb2.ConnectRequest | None] = asyncio.Queue()
        self._served = plane.start_task(plane.sessions.serve(self._said(), self._answer))

    @property
    def open(self) -> bool:
        """Whether the control plane serves it."""
        return not self._served.done()

    def say(self, request: gateway_pb2.ConnectRequest) -> None:
        """Sends."""
        if self.cut:
            self._late.append(request)
        else:
            self._requests.put_nowait(request)

    def mend(self) -> None:
        """What was on its way comes."""
        self.cut = False
        for request in self._late:
            self.say(request)
        self._late = []

    def close(self) -> None:
        """Ends it, so that the control plane sees it."""
        self._requests.put_nowait(None)

    async def _said(self) -> AsyncIterator[gateway_pb2.ConnectRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _answer(self, answer: gateway_pb2.ConnectResponse) -> None:
        self.inbox.append(answer)


@dataclass
class Local:
    """One attempt as its worker host has it. `events` is its journal, numbered from `first`; `stop` is a cause.

    `refused` = its host had no record of it, so that a container may be left which nobody knows to be its own.
    """

    key: AttemptKey
    first: int = 1
    acked: int = 0
    state: str = "ASSIGNED"
    stop: str = ""
    begun: bool = False
    refused: bool = False
    gone: bool = False
    sealed: bool = False
    events: list[attempts_pb2.AttemptEvent] = field(default_factory=list)

    @property
    def number(self) -> Number:
        """Without its token."""
        return self.key.run_id, self.key.attempt

    @property
    def ended(self) -> bool:
        """Whether nothing of its program is to come; QUEUED = it is given back."""
        return self.state in ENDS or self.state == "QUEUED"

    @property
    def unacked(self) -> list[attempts_pb2.AttemptEvent]:
        """What is to be sent."""
        return [event for event in self.events if event.sequence > self.acked]

    @property
    def program(self) -> bool:
        """Whether it may take something of its host."""
        return self.begun and not self.gone

    def wire_key(self) -> attempts_pb2.AttemptKey:
        """Its name on the wire."""
        return attempts_pb2.AttemptKey(
            run_id=self.key.run_id, attempt=self.key.attempt, claim_token=self.key.claim_token
        )

    def note(self, state: str, reason: str = "") -> None:
        """Journals that it moved on; nothing says that this is true."""
        changed = attempts_pb2.StateChanged(state=f"RUN_STATE_{state}", reason=_reason(reason), slot="slot")
        self._tell(attempts_pb2.AttemptEvent(state_changed=changed))

    def move(self, state: str, reason: str = "") -> None:
        """Moves on, or gives the attempt back (QUEUED)."""
        self.note(state, reason)
        self.state = state

    def end(self, state: str, reason: str = "") -> None:
        """Ends."""
        code = ENDS.index(state)
        ended = attempts_pb2.Ended(state=f"RUN_STATE_{state}", reason=_reason(reason), exit_code=code)
        self._tell(attempts_pb2.AttemptEvent(ended=ended))
        self.state = state

    def vanish(self) -> None:
        """Its container is gone."""
        self._tell(attempts_pb2.AttemptEvent(container_gone=attempts_pb2.ContainerGone()))
        self.gone = True

    def _tell(self, event: attempts_pb2.AttemptEvent) -> None:
        event.key.CopyFrom(self.wire_key())
        event.sequence = self.first + len(self.events)
        self.events.append(event)


class Host:
    """A worker host. `speaks` is the newest protocol that it knows; `away` = it does not come back by itself.

    `strays` are programs that live here though the host knows no more of them. `begun` is told of each that begins.
    """

    def __init__(self, name: str, begun: Callable[[Local], None]) -> None:
        self.name = name
        self.speaks = 2
        self.away = False
        self.stream: Stream | None = None
        self.former: list[Stream] = []
        self.attempts: dict[Number, Local] = {}
        self.strays: set[Number] = set()
        self._begun = begun
        self._lives = 0
        self._forget_itself()

    def _forget_itself(self) -> None:
        self._lives += 1
        self._agent_id = f"{self.name} {self._lives}"
        self._cluster_id = ""
        self._revision = 0
        self._draining = False
        self._desired_first = True

    @property
    def connected(self) -> bool:
        """Whether it has a stream."""
        return self.stream is not None and self.stream.open

    @property
    def in_reach(self) -> bool:
        """Whether the control plane has no reason to take it for away."""
        return self.stream is not None and self.stream.open and self.stream.welcomed and not self.stream.cut

    def connect(self, plane: ControlPlane) -> None:
        """Opens a stream; the one before may still be open, and what was said on it on its way."""
        if self.stream is not None:
            self.former.append(self.stream)
        self.stream, self.away = Stream(plane), False
        self._desired_first = True
        hello = gateway_pb2.Hello(
            protocol_min=1,
            protocol_max=self.speaks,
            agent_id=self._agent_id,
            agent_name=self.name,
            instance_id=f"instance {self._lives}",
            machine_id=f"machine of {self.name}",
            cluster_id=self._cluster_id,
            last_revision=self._revision,
            capacity=agents_pb2.Capacity(cpu_milli_cores=CORES, memory_bytes=8 * GIB),
        )
        self.stream.say(gateway_pb2.ConnectRequest(hello=hello))

    def disconnect(self) -> None:
        """Its streams break."""
        for stream in (*self.former, self.stream):
            if stream is not None:
                stream.close()
        self.stream, self.former = None, []

    def mend(self) -> None:
        """What was on its way comes."""
        for stream in (*self.former, self.stream):
            if stream is not None:
                stream.mend()

    def wipe(self) -> None:
        """It is started anew without its data folder; its programs go on, but for a host that can not tell of them."""
        self.disconnect()
        if self.speaks > 1:
            self.strays |= {local.number for local in self.attempts.values() if local.program}
        self.attempts.clear()
        self._forget_itself()

    def heartbeat(self) -> None:
        """Says that it lives."""
        if self.stream is not None:
            beat = gateway_pb2.Heartbeat(applied_revision=self._revision)
            self.stream.say(gateway_pb2.ConnectRequest(heartbeat=beat))

    def send(self, events: Iterable[attempts_pb2.AttemptEvent]) -> None:
        """Sends events as they are."""
        if self.stream is not None:
            batch = attempts_pb2.AttemptEvents(events=events)
            self.stream.say(gateway_pb2.ConnectRequest(events=batch))

    def hear(self) -> bool:
        """Takes in what came; returns whether something did."""
        stream = self.stream
        if stream is None or stream.cut or not stream.inbox:
            return False
        heard, stream.inbox = stream.inbox, []
        for answer in heard:
            match answer.WhichOneof("message"):
                case "welcome":
                    self._take_welcome(answer.welcome, stream)
                case "desired":
                    self._take_page(answer.desired)
                case "events_ack":
                    self._take_acks(answer.events_ack.acks)
                case "rejection":
                    # A Hello of before came later; the agent dials anew.
                    assert answer.rejection.code == gateway_pb2.REJECTION_CODE_SUPERSEDED, answer.rejection
                    stream.close()
        return True

    def _take_welcome(self, welcome: gateway_pb2.Welcome, stream: Stream) -> None:
        # No database is restored here, no folder copied.
        assert not welcome.quarantine_reason
        stream.welcomed = True
        assert self._cluster_id in ("", welcome.cluster_id)
        self._agent_id, self._cluster_id = welcome.agent_id, welcome.cluster_id
        reported = [
            gateway_pb2.InventoryAttempt(
                key=local.wire_key(), state=f"RUN_STATE_{local.state}", last_event=local.first + len(local.events) - 1
            )
            for local in self.attempts.values()
        ]
        page = gateway_pb2.InventoryPage(attempts=reported, last_page=True)
        stream.say(gateway_pb2.ConnectRequest(inventory=page))

    def _take_page(self, page: desired_pb2.DesiredPage) -> None:
        if page.full:
            assert self._desired_first
            assert page.last_page
            named = {(word.key.run_id, word.key.attempt) for word in page.attempts}
            # To an agent of protocol 1 nothing can be said of one that can not be told at present.
            assert self.speaks == 1 or self.attempts.keys() <= named, "a full set names all that was reported"
        else:
            assert page.previous_revision == self._revision
        assert page.revision >= self._revision
        self._desired_first = False
        self._revision = page.revision
        if page.HasField("agent"):
            self._draining = page.agent.draining and self.speaks > 1
        for word in page.attempts:
            self._take_word(word)
        if self._draining:
            for local in self.attempts.values():
                if not local.begun and not local.ended:
                    self._give_back_drained(local)

    def _take_word(self, word: desired_pb2.DesiredAttempt) -> None:
        number = word.key.run_id, word.key.attempt
        action = desired_pb2.DesiredAction.Name(word.action).removeprefix("DESIRED_ACTION_")
        cause = desired_pb2.StopCause.Name(word.stop_cause).removeprefix("STOP_CAUSE_")
        local = self.attempts.get(number)
        assert action != "ORPHAN", f"{self.name} is told that nobody knows {number}"
        if action == "FORGET":
            if local is not None:
                # That its end and its log are stored, the rows say themselves.
                assert local.gone, f"{number} is forgotten before its time"
                del self.attempts[number]
            return
        if local is None and action != "WAIT":
            local = self._bind(word, action, cause)
            self.attempts[number] = local
        if local is not None:
            assert local.key.claim_token == word.key.claim_token
            local.acked = max(local.acked, word.known_seq)
            if action == "STOP":
                local.stop = local.stop or cause

    def _bind(self, word: desired_pb2.DesiredAttempt, action: str, cause: str) -> Local:
        key = AttemptKey(word.key.run_id, word.key.attempt, word.key.claim_token)
        local = Local(key, first=word.known_seq + 1, acked=word.known_seq)
        local.refused = word.ended or word.known_seq > 0
        if word.ended:
            # Nothing is to be told of it but that nothing of it is left.
            local.state, local.sealed = "FAILED", True
        elif word.known_seq:
            local.end("FAILED", "STATE_LOST")
        elif action == "STOP":
            local.stop = cause
            self._stop_unbegun(local)
        return local

    def _take_acks(self, acks: Iterable[attempts_pb2.AttemptEventAck]) -> None:
        for ack in acks:
            local = self.attempts.get((ack.run_id, ack.attempt))
            if local is not None:
                # Not more than it ever said, and nothing that it was told before is taken back.
                assert ack.sequence < local.first + len(local.events)
                gap = ack.rejection == attempts_pb2.EVENT_REJECTION_GAP
                assert gap or ack.rejection != attempts_pb2.EVENT_REJECTION_BAD_TOKEN
                local.acked = max(local.acked, ack.sequence)

    # What its programs do

    def go_on(self, local: Local) -> None:
        """The next thing that happens to an attempt, where all goes well."""
        if local.state == "ASSIGNED" and not local.stop:
            local.move("PREPARING")
        elif not local.begun and not local.ended:
            if local.stop:
                self._stop_unbegun(local)
            elif local.acked or self.speaks == 1:
                # Noted that it is here: from now on a second start is refused wherever it may come from.
                local.begun = True
                self._begun(local)
                local.move("RUNNING")
        elif local.state == "RUNNING":
            if local.stop:
                local.move("STOPPING")
            else:
                local.end("SUCCEEDED")
        elif local.state == "STOPPING":
            local.end("CANCELLED", "AGENT_DRAINED" if local.stop == "DRAIN" and self.speaks > 1 else "CANCEL_REQUESTED")
        elif not local.gone and not (local.refused and self.strays):
            local.vanish()

    def could_not_start(self, local: Local) -> None:
        """Gives an attempt back that did not begin."""
        if not local.begun and not local.ended and not local.stop:
            local.move("QUEUED", "RUNTIME")

    def _give_back_drained(self, local: Local) -> None:
        local.move("QUEUED", "AGENT_DRAINED")

    def _stop_unbegun(self, local: Local) -> None:
        if local.stop == "DRAIN" and self.speaks > 1:
            self._give_back_drained(local)
        else:
            local.end("CANCELLED", "CANCEL_REQUESTED")
        local.vanish()


def _reason(name: str) -> "runs_pb2.Reason.ValueType":
    return runs_pb2.Reason.Value(f"REASON_{name}") if name else runs_pb2.REASON_UNSPECIFIED
