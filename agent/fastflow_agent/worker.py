"""Owns all attempts of this host: adopts them at start, begins and ends them as the control plane desires."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from fastflow.backoff import Backoff
from fastflow.service.failpoints import AgentPoint

from fastflow_agent.attempts.attempt import Attempt, Report
from fastflow_agent.attempts.dossier import RETRY_INITIAL_SECONDS, Services
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import ContainerGone, Event, Fact, LogLossFound, SoftLimitCrossed, StateChanged
from fastflow_agent.journal import Journal
from fastflow_agent.model import AttemptKey, Limits, Reason, SlotId, State, new_slot_id, parse_slot_id
from fastflow_agent.reconcile import Abandon, AttemptNumber, Begin, Local, Orphan, Refuse, Tell, converge, number
from fastflow_agent.records import History, Intent

log = structlog.get_logger(__name__)

FAULTS_BEFORE_FAILURE = 3
"""Unforeseen errors in a row after which an attempt whose user code has not run is given up as FAILED."""

FAULT_RETRY_MAXIMUM_SECONDS = 30.0
"""Back-off after unforeseen errors of an attempt whose program runs: it is never given up, only watched anew."""


class Worker:
    """The attempts of this host. All methods but `adopt` return at once; the work is done in tasks of `tasks`."""

    def __init__(
        self,
        services: Services,
        conditions: Conditions,
        tasks: asyncio.TaskGroup,
        slots_dir: Path,
        on_sample: Callable[[AttemptKey, Usage], None],
    ) -> None:
        self._services = services
        self._conditions = conditions
        self._tasks = tasks
        self._slots_dir = slots_dir
        self._on_sample = on_sample
        self._attempts: dict[AttemptNumber, Attempt] = {}
        self._binding: dict[AttemptNumber, AttemptKey] = {}
        self._slots: dict[SlotId, Attempt] = {}
        self._desired: dict[AttemptNumber, Desired] = {}
        self._orphaned: dict[AttemptNumber, float] = {}
        self._orphan_grace = 0.0
        self._connected = False
        self._draining = False

    # What the control plane says.

    def take_full(self, words: Sequence[Desired], orphan_grace: float) -> None:
        """Take the whole desired state; what is not in it is an orphan, stopped after `orphan_grace` seconds."""
        # An ORPHAN is left out, as its absence says the same: beside it the same attempt may be wanted under another
        # token, assigned by a restored database that does not know the one here.
        self._desired = {number(word.key): word for word in words if word.action is not Action.ORPHAN}
        self._orphan_grace = orphan_grace
        self._connected = True
        for key, word in self._desired.items():
            if (known := self._attempts.get(key)) and known.key == word.key:
                known.take_up_again(word)
        self.converge()

    def drain(self, draining: bool) -> None:
        """Begin nothing while this holds: what has not begun goes back to be placed elsewhere."""
        if draining != self._draining:
            log.info("agent is drained: it begins no runs" if draining else "agent takes runs again")
        self._draining = draining
        for attempt in self._attempts.values():
            attempt.drain(draining)

    def pause(self) -> None:
        """What is desired may have changed meanwhile: begin and abandon nothing more until `take_full`."""
        self._connected = False

    def keep_still(self) -> None:
        """What was desired holds no more: let no user code begin, and end none for it, until `take_full`."""
        self.pause()
        self._desired.clear()
        for attempt in self._attempts.values():
            attempt.retract()

    def take_delta(self, words: Sequence[Desired]) -> None:
        """Take changes; what is not mentioned stays as it was."""
        self._desired.update({number(word.key): word for word in words})
        self.converge()

    def acknowledge(self, attempt: AttemptNumber, sequence: int, *, stored: bool) -> None:
        """All events of the attempt up to `sequence` are settled; `stored`: not by turning them down."""
        if known := self._attempts.get(attempt):
            known.acknowledge(sequence, stored=stored)

    def converge(self) -> None:
        """Bring what is here nearer to what is desired. Repeat while connected: orphans are stopped by time."""
        if not self._connected:
            return
        keys = [attempt.key for attempt in self._attempts.values()] + list(self._binding.values())
        local = [Local(key, self._orphaned.get(number(key))) for key in keys]
        for step in converge(self._desired, local, self._services.clock.monotonic(), self._orphan_grace):
            match step:
                case Begin(desired=word):
                    self._bind(word)
                case Refuse(desired=word, facts=facts):
                    self._bind(word, facts)
                case Tell(desired=word):
                    self._orphaned.pop(number(word.key), None)
                    if attempt := self._attempts.get(number(word.key)):
                        attempt.tell(word)
                case Orphan(key=key):
                    log.warning("the control plane does not know this attempt", attempt=str(key))
                    self._orphaned[number(key)] = self._services.clock.monotonic()
                    if attempt := self._attempts.get(number(key)):
                        attempt.retract()
                case Abandon(key=key):
                    if attempt := self._attempts.get(number(key)):
                        attempt.abandon()
        here = {number(key) for key in keys}
        # What is neither here nor to come needs no memory, least of all its secrets.
        self._desired = {
            key: word for key, word in self._desired.items() if key in here or word.action in (Action.RUN, Action.STOP)
        }
        self._say_orphans()

    # What the agent asks.

    @property
    def keys(self) -> list[AttemptKey]:
        """All attempts here."""
        return [attempt.key for attempt in self._attempts.values()]

    @property
    def reports(self) -> list[Report]:
        """The inventory. An attempt whose journal is still being made is here too, and is told what becomes of it.

        Without it a control plane that no longer wants it would count its capacity as free, and the agent would keep it
        as an orphan; and one with a restored database would doubt whether it had begun.
        """
        begun = [attempt.report for attempt in self._attempts.values()]
        return begun + [Report(key, State.ASSIGNED, 0, 0, SlotId(""), False) for key in self._binding.values()]

    @property
    def bound_slots(self) -> frozenset[SlotId]:
        """Slots with a journal."""
        return frozenset(self._slots)

    def unacknowledged(self, attempt: AttemptNumber) -> tuple[AttemptKey, list[Event]] | None:
        """Key and unacknowledged events of an attempt, in order; None if it is not here."""
        known = self._attempts.get(attempt)
        return (known.key, known.unacknowledged) if known else None

    # What the sampler sees.

    def sampled(self, slot: SlotId, used: Usage) -> None:
        """A new sample of a slot."""
        if attempt := self._slots.get(slot):
            self._on_sample(attempt.key, used)

    def crossed(self, slot: SlotId, crossing: SoftLimitCrossed) -> None:
        """A slot crossed a soft limit."""
        if attempt := self._slots.get(slot):
            attempt.note(crossing)

    def oom_killed(self, slot: SlotId, kills: int) -> None:
        """The kernel killed a process in a slot that still lives."""
        if attempt := self._slots.get(slot):
            attempt.note_oom(kills)

    # Beginning.

    async def adopt(self) -> list[SlotId]:
        """Take up all attempts whose journals are here; returns slot folders without one.

        Raises UnknownRecord for a journal of a newer version, and OSError.
        """
        loop = asyncio.get_running_loop()
        journalless = []
        for slot in await loop.run_in_executor(self._services.disk, _slot_folders, self._slots_dir):
            path = self._services.paths(slot).journal
            try:
                journal = await Journal.open(path, self._services.disk, self._services.clock)
            except FileNotFoundError:
                journal = None
            if journal is None:
                journalless.append(slot)
                continue
            self._pin(journal.history, slot)
            self._enter(Attempt(journal, self._services, fresh=False))
        return journalless

    def _pin(self, history: History, slot: SlotId) -> None:
        """Keep what a slot of an earlier agent uses, before anything can be removed."""
        if history.container_gone:
            return
        self._services.bundles.pin(history.intent.bundle_digest, slot)
        if history.generation:
            self._services.uvcache.pin(history.generation, slot)

    def _bind(self, word: Desired, refusal: tuple[Fact, ...] | None = None) -> None:
        self._binding[number(word.key)] = word.key
        self._tasks.create_task(self._begin(word, refusal), name=f"bind {word.key}")

    async def _begin(self, word: Desired, refusal: tuple[Fact, ...] | None) -> None:
        try:
            journal = await self._journal(word) if refusal is None else None
        except OSError as error:
            self._services.health.disk_refused(error)
            message = f"could not start: the worker's disk refuses to write ({error.strerror})"
            journal, refusal = None, (StateChanged(State.QUEUED, Reason.DISK_FULL, message), ContainerGone())
        if journal is None:
            journal = Journal.volatile(self._intent(word, SlotId("")), self._services.disk, self._services.clock)
            journal.acknowledge(word.known_seq)
            await journal.append(facts=self._with_loss(word, refusal or ()))
        self._services.reach(AgentPoint.BOUND)
        del self._binding[number(word.key)]
        attempt = Attempt(journal, self._services, fresh=True)
        newest = self._desired.get(number(word.key))
        if newest is not None and newest.key == word.key:
            attempt.tell(newest)
        self._enter(attempt)
        self.converge()

    def _enter(self, attempt: Attempt) -> None:
        self._attempts[number(attempt.key)] = attempt
        attempt.drain(self._draining)
        if attempt.slot:
            self._slots[attempt.slot] = attempt
        self._tasks.create_task(self._drive(attempt), name=f"attempt {attempt.key}")
        self._services.changed(attempt.key)

    async def _journal(self, word: Desired) -> Journal:
        slot = new_slot_id()
        return await Journal.create(
            self._services.paths(slot).journal,
            self._intent(word, slot),
            self._services.disk,
            self._services.clock,
            facts=(StateChanged(State.PREPARING, slot=slot),),
        )

    def _intent(self, word: Desired, slot: SlotId) -> Intent:
        spec = word.spec
        return Intent(
            run_id=word.key.run_id,
            attempt=word.key.attempt,
            claim_token=word.key.claim_token,
            slot=slot,
            pipeline=spec.pipeline if spec else "",
            bundle_digest=spec.bundle_digest if spec else "",
            limits=spec.limits if spec else Limits(0, 0),
            timeout=spec.timeout if spec else 0.0,
            stop_grace=spec.stop_grace if spec else 0.0,
            python_version=spec.python_version if spec else "",
            log_limit=spec.log_limit if spec else 0,
            boot_id=self._services.boot_id,
            time=self._services.clock.now(),
            pause_on_backlog=spec.pause_on_backlog if spec else False,
        )

    def _with_loss(self, word: Desired, refusal: tuple[Fact, ...]) -> tuple[Fact, ...]:
        """A refusal of what once ran here also loses the output that was not delivered."""
        if word.known_seq == 0 or word.ended:
            return refusal
        message = "the agent's record of this attempt is lost, and with it any output that had not been delivered"
        loss = LogLossFound("DISK", word.durable_offset, self._services.clock.now(), message=message)
        return (loss, *refusal)

    # Living.

    async def _drive(self, attempt: Attempt) -> None:
        """Run an attempt to its last trace; an error nobody foresaw ends neither it nor the others."""
        backoff = Backoff(RETRY_INITIAL_SECONDS, FAULT_RETRY_MAXIMUM_SECONDS)
        faults = 0
        while True:
            try:
                await attempt.run()
                break
            except Exception as error:
                faults += 1
                log.error("attempt met an error", attempt=str(attempt.key), error=repr(error), exc_info=error)
                if faults == FAULTS_BEFORE_FAILURE:
                    await attempt.fail(f"the agent could not start it: {type(error).__name__}")
                await self._services.clock.sleep(backoff.next())
        log.info("attempt is forgotten", attempt=str(attempt.key))
        self._drop(attempt)

    def _drop(self, attempt: Attempt) -> None:
        key = number(attempt.key)
        del self._attempts[key]
        self._slots.pop(attempt.slot, None)
        self._orphaned.pop(key, None)
        self._services.changed(attempt.key)
        self.converge()

    def _say_orphans(self) -> None:
        if self._orphaned:
            names = ", ".join(sorted(f"{run}/{attempt}" for run, attempt in self._orphaned))
            self._conditions.hold(
                ConditionType.ORPHANS,
                f"the control plane does not know these attempts; each is stopped {self._orphan_grace:g} s after it "
                f"said so: {names}",
            )
        else:
            self._conditions.clear(ConditionType.ORPHANS)


def _slot_folders(slots_dir: Path) -> list[SlotId]:
    if not slots_dir.is_dir():
        return []
    found = []
    for folder in sorted(slots_dir.iterdir()):
        try:
            found.append(parse_slot_id(folder.name))
        except ValueError:
            log.warning("this folder is none of the agent's", folder=str(folder))
    return found
