"""Worker hosts and a control plane without network or clock, over the real functions of the store.

What an agent does here is the least that the protocol asks of it: a journal per attempt whose events are sent until
they are acknowledged, desired state that it converges to, no second start. What is on its way may come late, twice or
never.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fastflow.ids import new_id
from fastflow_controlplane.agents.events import (
    GAP,
    AttemptEvent,
    ContainerGone,
    Effects,
    Ended,
    Fact,
    SessionSuperseded,
    StateChanged,
    apply_events,
)
from fastflow_controlplane.agents.model import AgentFacts, Capacity
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.retry import NO_RETRY, RetryPolicy
from fastflow_controlplane.runs.states import TERMINAL, Reason, RunState
from fastflow_controlplane.store.queries import attempts, desired, requests, runs
from fastflow_controlplane.store.queries.cluster import take_over
from fastflow_controlplane.store.queries.desired import DesiredRow
from fastflow_controlplane.store.queries.lost_attempts import lose_all
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs, note
from sqlalchemy import Connection

from tests.contract.rows import GIB, MAX_PLACEMENTS, NOW, new_run

T = TypeVar("T")

REQUEST = "CREATE_RUN"
CLUSTER = "cluster"
GRACE_USEC = 10_000_000
RETRIES = 2
"""How often every other run is started again after it was lost."""


@dataclass
class Local:
    """One attempt as its worker host has it. `events` is its journal, numbered from `first`.

    `refused` = its host had no record of it, and no container that it knows to be its own; `over` = nor has its end to
    be told.
    """

    key: AttemptKey
    first: int = 1
    acked: int = 0
    state: RunState = RunState.ASSIGNED
    stop: bool = False
    gone: bool = False
    sealed: bool = False
    refused: bool = False
    over: bool = False
    events: list[AttemptEvent] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing of its program is to come; QUEUED = it is given back."""
        return self.over or self.state in TERMINAL or self.state is RunState.QUEUED

    @property
    def unacked(self) -> list[AttemptEvent]:
        """What is to be sent."""
        return [event for event in self.events if event.sequence > self.acked]

    def tell(self, fact: Fact) -> None:
        """Journals a fact."""
        self.events.append(AttemptEvent(self.key, self.first + len(self.events), NOW, fact))
        match fact:
            case StateChanged(state=state) | Ended(state=state):
                self.state = state
            case ContainerGone():
                self.gone = True

    def move(self, state: RunState) -> None:
        """Moves on, or gives the attempt back (QUEUED)."""
        self.tell(StateChanged(state, Reason.NONE, "", f"slot of {self.key.attempt}"))

    def end(self, state: RunState, reason: Reason = Reason.NONE) -> None:
        """Ends."""
        self.tell(Ended(state, reason, "", None, None, None, None))


@dataclass
class Host:
    """A worker host. `connected` = it has a stream of session `epoch`; `revision` is what it has converged to.

    `strays` are attempts whose programs may live here though the host knows no more of them.
    """

    name: str
    epoch: int = 0
    revision: int = 0
    connected: bool = False
    attempts: dict[AttemptKey, Local] = field(default_factory=dict)
    strays: set[AttemptKey] = field(default_factory=set)

    @property
    def facts(self) -> AgentFacts:
        """What it says of itself."""
        return AgentFacts(self.name, self.name, "instance", capacity=Capacity(4000, 8 * GIB))


@dataclass(frozen=True)
class Message:
    """Events on their way, with the session they were sent in."""

    host: Host
    epoch: int
    events: tuple[AttemptEvent, ...]


class World:
    """A control plane with its database, two hosts, and what is on its way between them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.hosts = [Host("a"), Host("b")]
        self.runs: list[str] = []
        self.answers: dict[str, str] = {}
        self.keys: list[AttemptKey] = []
        self.told: set[AttemptKey] = set()
        self.started: set[AttemptKey] = set()
        self.held: set[tuple[str, int]] = set()
        """What holds capacity, as those know who saw it placed and gone."""
        self.wire: list[Message] = []
        self.leader = take_over(connection, NOW).leader_epoch
        for host in self.hosts:
            self.hello(host)

    def write(self, operation: Callable[[Connection], T], *, commits: bool = True) -> T | None:
        """The operation's result; None where the control plane dies before its commit, and nothing of it is left."""
        savepoint = self.connection.begin_nested()
        result = operation(self.connection)
        if commits:
            savepoint.commit()
            return result
        savepoint.rollback()
        return None

    def request(self, request_id: str, *, commits: bool = True) -> None:
        """Asks for a run, perhaps again."""

        def store(connection: Connection) -> str:
            known = requests.answered(connection, REQUEST, request_id, "same")
            if known is not None:
                return known
            retry = RetryPolicy(frozenset({RunState.LOST}), RETRIES) if len(self.runs) % 2 else NO_RETRY
            run = new_run(new_id(), retry=retry)
            runs.insert_run(connection, run, NOW)
            requests.remember(connection, REQUEST, request_id, "same", run.id, NOW)
            return run.id

        run_id = self.write(store, commits=commits)
        if run_id is not None:
            assert self.answers.setdefault(request_id, run_id) == run_id
            if run_id not in self.runs:
                self.runs.append(run_id)

    def rerun(self, run_id: str) -> None:
        """Asks for a run that repeats another."""

        def store(connection: Connection) -> str:
            runs.read_stored(connection, run_id)
            again = new_run(new_id())
            runs.insert_run(connection, again, NOW)
            return again.id

        self.runs.append(str(self.write(store)))

    def place(self, run_id: str, host: Host, leader: int, *, commits: bool = True) -> None:
        """Places a run, which the scheduler believes to be waiting."""
        token = f"token {len(self.keys)}"
        epochs = Epochs(0, leader)
        key = self.write(
            lambda connection: attempts.assign(connection, run_id, host.name, token, {}, epochs, NOW), commits=commits
        )
        if key is not None:
            self.keys.append(key)
            self.held.add((key.run_id, key.attempt))

    def give_back_untold(self, key: AttemptKey) -> None:
        """Takes back an attempt that its agent was never told of, as where a secret can not be opened."""
        epochs = Epochs(0, self.leader)
        given = self.write(
            lambda connection: attempts.give_back_untold(connection, key, Reason.SECRET, "", epochs, NOW)
        )
        if given:
            self.held.discard((key.run_id, key.attempt))

    def lose(self, host: Host, leader: int, *, commits: bool = True) -> None:
        """Declares all attempts of a host lost."""
        epochs = Epochs(0, leader)
        self.write(lambda connection: lose_all(connection, host.name, "away", epochs, NOW), commits=commits)

    def crash(self) -> None:
        """The control plane dies and another takes over: all streams are gone."""
        self.leader = take_over(self.connection, NOW).leader_epoch
        for host in self.hosts:
            host.connected = False

    def hello(self, host: Host) -> None:
        """A new stream: the host reports what it has, and hears all it shall do."""
        reported = frozenset(host.attempts)
        belonging = Belonging(CLUSTER, host.revision)
        row = self.write(lambda connection: register(connection, host.facts, [], belonging, CLUSTER, NOW))
        assert row is not None
        assert row.session_epoch > host.epoch
        host.epoch, host.connected = row.session_epoch, True
        for abandoned in desired.read_abandoned(self.connection, host.name, reported):
            self._close(abandoned.key)
        state = desired.read_all(self.connection, host.name, reported)
        known = {word.key for word in state.rows}
        for key in reported - known:
            del host.attempts[key]  # an orphan, after its grace
        self._converge(host, state.rows)
        host.revision = state.revision

    def delta(self, host: Host) -> None:
        """The host hears what changed."""
        state = desired.read_since(self.connection, host.name, host.revision)
        assert state.revision >= host.revision
        self._converge(host, state.rows)
        host.revision = state.revision

    def wipe(self, host: Host) -> None:
        """The host loses its journals, and comes back; what the control plane had heard of may live there still."""
        host.strays |= {
            key for key, local in host.attempts.items() if local.acked and not local.gone and not local.refused
        }
        # Of those it was heard of, the control plane says so; the others were lost before anybody knew.
        self.started -= host.attempts.keys()
        host.attempts.clear()
        self.hello(host)

    def send(self, host: Host, local: Local, skipped: int, *, answered: bool, commits: bool = True) -> None:
        """Sends what is not acknowledged, perhaps with the first of it lost; the answer may be lost, too."""
        message = Message(host, host.epoch, tuple(local.unacked[skipped:]))
        if message.events:
            self.wire.append(message)
            effects = self.write(lambda connection: self._apply(connection, message), commits=commits)
            self._note(effects, [local] if answered else [])

    def deliver(self, message: Message) -> None:
        """A message comes again, or late."""
        savepoint = self.connection.begin_nested()
        try:
            effects = self._apply(self.connection, message)
        except SessionSuperseded:
            assert message.epoch != message.host.epoch
            savepoint.rollback()
            return
        assert message.epoch == message.host.epoch
        savepoint.commit()
        self._note(effects, [])

    def forge(self, event: AttemptEvent, host: Host) -> None:
        """Sends an event for an attempt that is not this host's, or under another token."""
        effects = self.write(lambda connection: self._apply(connection, Message(host, host.epoch, (event,))))
        assert effects is not None
        assert [answer.rejection for answer in effects.acknowledgements] == ["BAD_TOKEN"]

    def seal(self, local: Local) -> None:
        """The log of an attempt is whole."""
        local.sealed = True

        def seal(connection: Connection) -> None:
            note(connection, local.key, {"log_sealed": True, "log_bytes": 1})
            attempts.settle(connection, local.key)

        self.write(seal)

    def remove_strays(self, host: Host) -> None:
        """The host has found and removed what no journal is about."""
        host.strays.clear()

    def goes(self, host: Host, local: Local) -> None:
        """The container of an attempt goes; of one that the host does not know, once none is left that it may be."""
        if local.ended and not local.gone and not (local.refused and host.strays):
            local.tell(ContainerGone())

    def heal(self) -> None:
        """Everything comes to its end: all hosts return, all programs end, everything is delivered."""
        for _ in range(3):
            for host in self.hosts:
                self.remove_strays(host)
                self.hello(host)
                for local in list(host.attempts.values()):
                    self._finish(host, local)
                self.delta(host)

    def _finish(self, host: Host, local: Local) -> None:
        if not local.ended:
            local.end(RunState.CANCELLED if local.stop else RunState.SUCCEEDED)
        self.goes(host, local)
        self.send(host, local, 0, answered=True)
        if not local.sealed:
            self.seal(local)

    def _apply(self, connection: Connection, message: Message) -> Effects:
        epochs = Epochs(message.epoch, self.leader)
        return apply_events(connection, message.host.facts, message.events, epochs, MAX_PLACEMENTS, NOW)

    def _note(self, effects: Effects | None, acknowledged: Sequence[Local]) -> None:
        if effects is None:
            return
        self.held -= {(key.run_id, key.attempt) for key in effects.released}
        for local in acknowledged:
            for answer in effects.acknowledgements:
                assert answer.rejection == GAP or answer.sequence >= local.acked
                local.acked = max(local.acked, answer.sequence)

    def _close(self, key: AttemptKey) -> None:
        """An ended attempt of which its host no longer knows: nothing more will come of its log."""

        def close(connection: Connection) -> None:
            note(connection, key, {"log_sealed": True, "log_bytes": 0})
            attempts.settle(connection, key)

        self.write(close)

    def _converge(self, host: Host, words: Iterable[DesiredRow]) -> None:
        for word in words:
            self.told.add(word.key)
            local = host.attempts.get(word.key)
            if local is not None:
                local.acked = max(local.acked, word.known_seq)
                local.stop |= word.action == "STOP"
                if word.action == "FORGET":
                    del host.attempts[word.key]
            elif word.action != "FORGET":
                host.attempts[word.key] = self._begin(word)

    def _begin(self, word: DesiredRow) -> Local:
        local = Local(word.key, first=word.known_seq + 1, acked=word.known_seq)
        local.over = word.ended and word.log_sealed
        local.refused = local.over or word.known_seq > 0
        if local.over:
            pass
        elif word.known_seq:
            local.end(RunState.FAILED, Reason.STATE_LOST)
        elif word.action == "STOP":
            local.end(RunState.CANCELLED, Reason.CANCEL_REQUESTED)
            local.tell(ContainerGone())
        else:
            assert word.key not in self.started
            self.started.add(word.key)
        return local
