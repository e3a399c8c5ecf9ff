"""What stands in an attempt's journal, and what follows from it.

The order of the steps is: INTENT, PREPARED, CREATED, STARTED, RELEASING, RELEASED, STOPPING, SIGNALLED, EXITED, ACKED,
SEALED, FORGET. RELEASING is written before the release and RELEASED after it, so that a journal without RELEASING
proves that no user code ran; STOPPING is written before the signal and SIGNALLED after it. PAUSED is written before
the program is frozen and RESUMED after it was thawed. No record holds a secret
or the value of an environment variable.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from fastflow_agent.facts import ContainerGone, Ended, Event, LogLossFound, OutputPaused, SoftLimitCrossed, StateChanged
from fastflow_agent.model import AttemptKey, Limits, SlotId, State, StopCause


@dataclass(frozen=True)
class Intent:
    """First record: binds the slot to the attempt and keeps what is needed of it after a restart.

    Times in seconds; `timeout` counts from the release and 0 is none.
    """

    run_id: str
    attempt: int
    claim_token: str
    slot: SlotId
    pipeline: str
    bundle_digest: str
    limits: Limits
    timeout: float
    stop_grace: float
    python_version: str
    log_limit: int
    boot_id: str
    time: datetime
    pause_on_backlog: bool = False
    step: Literal["INTENT"] = "INTENT"

    @property
    def key(self) -> AttemptKey:
        """The attempt the slot is bound to."""
        return AttemptKey(self.run_id, self.attempt, self.claim_token)


@dataclass(frozen=True)
class Prepared:
    """Code and dependencies are there; the slot holds on to this generation of the uv cache."""

    generation: str
    step: Literal["PREPARED"] = "PREPARED"


@dataclass(frozen=True)
class Created:
    """The container exists. Its output goes into the file with this inode, and no other is taken for it."""

    log_inode: int
    step: Literal["CREATED"] = "CREATED"


@dataclass(frozen=True)
class Started:
    """The container runs and waits for its release."""

    step: Literal["STARTED"] = "STARTED"


@dataclass(frozen=True)
class Releasing:
    """From here on user code may have run. The time limit counts from `monotonic`.

    Linux' monotonic clock (seconds) is the same for all processes of one boot, so it outlives the agent and ignores
    what is done to the wall clock; after a reboot there is nothing left to limit.
    """

    time: datetime
    monotonic: float
    boot_id: str
    step: Literal["RELEASING"] = "RELEASING"


@dataclass(frozen=True)
class Released:
    """The wrapper has taken its environment."""

    step: Literal["RELEASED"] = "RELEASED"


@dataclass(frozen=True)
class OomSeen:
    """The kernel killed a process of the container over its memory limit; the container is ended for it."""

    kills: int
    step: Literal["OOM_SEEN"] = "OOM_SEEN"


@dataclass(frozen=True)
class Paused:
    """The program is to be frozen, from `monotonic` (seconds) on: until its output has been delivered."""

    monotonic: float
    step: Literal["PAUSED"] = "PAUSED"


@dataclass(frozen=True)
class Resumed:
    """It goes on since `monotonic` (seconds)."""

    monotonic: float
    step: Literal["RESUMED"] = "RESUMED"


@dataclass(frozen=True)
class Stopping:
    """The attempt is to end: SIGTERM, then SIGKILL `grace` seconds later."""

    cause: StopCause
    time: datetime
    grace: float
    step: Literal["STOPPING"] = "STOPPING"


@dataclass(frozen=True)
class Signalled:
    """SIGTERM reached the program at `monotonic` (seconds), while it lived: the end that follows is the stop's."""

    monotonic: float
    step: Literal["SIGNALLED"] = "SIGNALLED"


@dataclass(frozen=True)
class Exited:
    """What the engine said of the container's end, in the same write as the verdict drawn from it.

    `log_bytes` is how long the log was then, all of it on the disk: as long after a power cut, it is whole. None = the
    host was restarted before that, and nobody knows.
    """

    state: str
    oom_flag: bool
    error: str
    exit_code: int | None = None
    log_bytes: int | None = None
    step: Literal["EXITED"] = "EXITED"


@dataclass(frozen=True)
class Acked:
    """The control plane has settled all events up to `sequence`."""

    sequence: int
    step: Literal["ACKED"] = "ACKED"


@dataclass(frozen=True)
class SequenceRaised:
    """The control plane knows events this journal has lost; numbers go on after `sequence`."""

    sequence: int
    step: Literal["SEQUENCE_RAISED"] = "SEQUENCE_RAISED"


@dataclass(frozen=True)
class Sealed:
    """The control plane has the whole log."""

    end_offset: int
    step: Literal["SEALED"] = "SEALED"


@dataclass(frozen=True)
class Forget:
    """All of it is to be deleted, the journal last."""

    step: Literal["FORGET"] = "FORGET"


@dataclass(frozen=True)
class Noted:
    """An event."""

    event: Event
    step: Literal["EVENT"] = "EVENT"


Step = (
    Intent
    | Prepared
    | Created
    | Started
    | Releasing
    | Released
    | OomSeen
    | Paused
    | Resumed
    | Stopping
    | Signalled
    | Exited
    | Acked
    | SequenceRaised
    | Sealed
    | Forget
)
Record = Annotated[Step | Noted, Field(discriminator="step")]

_RECORD: TypeAdapter[Step | Noted] = TypeAdapter(Record)


def encode(record: Step | Noted) -> bytes:
    """One line of JSON without its end."""
    return _RECORD.dump_json(record, exclude_none=True)


def decode(text: bytes) -> Step | Noted:
    """The record `encode` made `text` of; ValueError for anything else."""
    return _RECORD.validate_json(text)


@dataclass
class History:
    """What the records of one attempt add up to."""

    intent: Intent
    generation: str = ""
    created: bool = False
    log_inode: int | None = None
    started: bool = False
    releasing: Releasing | None = None
    released: bool = False
    oom_kills: int = 0
    paused: Paused | None = None
    """Set while the program is frozen."""
    paused_seconds: float = 0.0
    """How long it was frozen before: its time limit stood still."""
    pause: OutputPaused | None = None
    """The newest one."""
    stopping: Stopping | None = None
    signalled: Signalled | None = None
    log_bytes: int | None = None
    """Length of the log when nobody wrote to it any more, all of it on the disk."""
    ended: Ended | None = None
    given_up: StateChanged | None = None
    """Set when the attempt could not start and is to be placed elsewhere: its slot is never released."""
    container_gone: bool = False
    sealed: bool = False
    end_offset: int = 0
    forgotten: bool = False
    state: State = State.ASSIGNED
    message: str = ""
    """What it says of itself in that state."""
    last_event: int = 0
    acked: int = 0
    events: list[Event] = field(default_factory=list)
    """All of them, ascending: a control plane whose database was restored may ask for settled ones again."""
    crossings: dict[int, SoftLimitCrossed] = field(default_factory=dict)
    losses: set[tuple[str, int]] = field(default_factory=set)
    """Kind and offset of each: the same one may be found again after a restart."""

    @classmethod
    def of(cls, records: Iterable[Step | Noted]) -> History | None:
        """The history of a whole journal; None if it does not begin with INTENT."""
        rest = iter(records)
        first = next(rest, None)
        if not isinstance(first, Intent):
            return None
        history = cls(first)
        for record in rest:
            history.apply(record)
        return history

    @property
    def settled(self) -> bool:
        """Whether nothing here can change the attempt's result any more: it is known, or no slot was bound to it."""
        return self.ended is not None or self.given_up is not None or not self.intent.slot

    @property
    def unacked(self) -> dict[int, Event]:
        """Events the control plane has not settled, by number, ascending."""
        first = bisect_right(self.events, self.acked, key=lambda event: event.sequence)
        return {event.sequence: event for event in self.events[first:]}

    def rewind(self, sequence: int) -> None:
        """The control plane knows events up to `sequence` only, whatever it had settled before."""
        self.acked = min(self.acked, sequence)

    def apply(self, record: Step | Noted) -> None:
        """Take over one more record."""
        match record:
            case Prepared(generation=generation):
                self.generation = generation
            case Created(log_inode=inode):
                self.created, self.log_inode = True, inode
            case Started():
                self.started = True
            case Releasing():
                self.releasing = record
            case Released():
                self.released = True
            case OomSeen(kills=kills):
                self.oom_kills = max(self.oom_kills, kills)
            case Paused():
                self.paused = record
            case Resumed(monotonic=monotonic) if self.paused is not None:
                self.paused_seconds += max(0.0, monotonic - self.paused.monotonic)
                self.paused = None
            case Stopping():
                self.stopping = self.stopping or record
            case Signalled():
                self.signalled = record
            case Acked(sequence=sequence):
                self.acked = max(self.acked, sequence)
            case SequenceRaised(sequence=sequence):
                self.last_event = max(self.last_event, sequence)
                self.acked = max(self.acked, sequence)
            case Sealed(end_offset=end_offset):
                self.sealed, self.end_offset = True, end_offset
            case Forget():
                self.forgotten = True
            case Noted(event=event):
                self._note(event)
            case Exited(log_bytes=log_bytes):
                self.log_bytes = log_bytes
            case Intent() | Resumed():
                pass

    def _note(self, event: Event) -> None:
        self.last_event = event.sequence
        self.events.append(event)
        match event.fact:
            case StateChanged(state=state) as change:
                self.state, self.message = state, change.message
                if state is State.QUEUED:
                    self.given_up = change
            case Ended(state=state) as ended:
                self.state, self.ended = state, ended
            case SoftLimitCrossed(crossing=crossing) as crossed:
                self.crossings[crossing] = crossed
            case OutputPaused() as pause:
                self.pause = pause
            case LogLossFound(kind=kind, offset=offset):
                self.losses.add((kind, offset))
            case ContainerGone():
                self.container_gone = True
