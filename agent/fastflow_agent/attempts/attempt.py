"""One attempt from its slot's binding to the last trace of it; also one that is only refused.

The journal says where the attempt is, so `run` may be entered anew after any interruption, in this process or the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from fastflow_agent.attempts import closing
from fastflow_agent.attempts.conclusion import conclude
from fastflow_agent.attempts.dossier import Dossier, Services
from fastflow_agent.attempts.output import Output
from fastflow_agent.attempts.start import Failed, NotHere, Start, Stopped, withdraw
from fastflow_agent.attempts.watch import Watch
from fastflow_agent.desired import Desired
from fastflow_agent.facts import Ended, Event, Fact, StateChanged
from fastflow_agent.journal import Journal
from fastflow_agent.model import AttemptKey, Reason, SlotId, State, StopCause
from fastflow_agent.reconcile import DRAINED, Resumption, resume, unbegun
from fastflow_agent.records import Released, Stopping
from fastflow_agent.runtime.base import Observation, RuntimeFault, RuntimeUnavailable, SlotState

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Report:
    """What the agent's inventory says of an attempt."""

    key: AttemptKey
    state: State
    last_event: int
    log_offset: int
    slot: SlotId
    container_gone: bool
    pipeline: str = ""


class Attempt:
    """One attempt. `run` does all the work; the other methods only pass words in and out."""

    def __init__(self, journal: Journal, services: Services, *, fresh: bool) -> None:
        """`fresh` says that the journal was made by this process just now: nothing of the attempt can exist yet."""
        self._dossier = Dossier(journal, services)
        self._output = Output(self._dossier)
        self._services = services
        self._fresh = fresh

    @property
    def key(self) -> AttemptKey:
        """Which attempt this is."""
        return self._dossier.key

    @property
    def slot(self) -> SlotId:
        """The slot bound to it; empty for one that is only refused."""
        return self._dossier.slot

    @property
    def began(self) -> bool:
        """Whether user code may have run."""
        return self._dossier.history.releasing is not None

    @property
    def report(self) -> Report:
        """What to tell the control plane of it at a new stream."""
        history = self._dossier.history
        return Report(
            key=self.key,
            state=history.state,
            last_event=history.last_event,
            log_offset=self._output.offset,
            slot=self.slot,
            container_gone=history.container_gone,
            pipeline=history.intent.pipeline,
        )

    def tell(self, word: Desired) -> None:
        """Take the control plane's word."""
        self._dossier.acknowledge(word.known_seq)
        self._dossier.wishes.tell(word)

    def take_up_again(self, word: Desired) -> None:
        """The first word of a new stream: this is what the control plane knows now, perhaps less than before."""
        self._dossier.history.rewind(word.known_seq)
        self._dossier.wishes.retract()
        self._dossier.wishes.renew(word)

    def retract(self) -> None:
        """Nobody knows whether what it was told last still holds: begin and end nothing for it."""
        self._dossier.wishes.retract()

    def drain(self, draining: bool) -> None:
        """Give it back if its program has not begun, where the agent is being drained."""
        self._dossier.wishes.drain(draining)

    def abandon(self) -> None:
        """Nobody wants it any more: stop it and delete it."""
        self._dossier.wishes.abandon()

    def acknowledge(self, sequence: int, *, stored: bool) -> None:
        """The control plane has settled all events up to `sequence`; `stored`: not by turning them down."""
        self._dossier.acknowledge(sequence)
        if stored:
            self._dossier.wishes.note_stored()

    @property
    def unacknowledged(self) -> list[Event]:
        """Events the control plane has not settled yet, in order."""
        return list(self._dossier.history.unacked.values())

    def note_oom(self, kills: int) -> None:
        """The sampler saw the kernel kill a process of the container over its limit."""
        self._dossier.note_oom(kills)

    def note(self, fact: Fact) -> None:
        """Something was found out about it that is to be journaled and told."""
        self._dossier.note(fact)

    async def run(self) -> None:
        """Return once all of the attempt is deleted. Raises what nobody foresaw; then enter it again."""
        if not self._dossier.history.forgotten:
            await self._live_with_helpers()
        await closing.delete_all(self._dossier, self._output)

    async def fail(self, message: str) -> None:
        """End an attempt whose user code has not run, because of a fault of the agent itself; a known end stands."""
        if self.began or self._dossier.history.settled:
            return
        await self._dossier.record(facts=(Ended(State.FAILED, Reason.RUNTIME, message),))

    async def _live_with_helpers(self) -> None:
        """Return once nobody wants anything of the attempt any more, and nothing writes into its journal."""
        helpers = [asyncio.create_task(self._dossier.keep_notes())]
        if self._dossier.history.created and not self._dossier.history.sealed:
            # Taken over from an earlier agent: its output is shipped even while the engine does not answer.
            helpers.append(asyncio.create_task(self._output.ship()))
        try:
            await self._live()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)

    async def _live(self) -> None:
        history = self._dossier.history
        if not history.settled:
            await self._until_settled()
        if not history.container_gone:
            await closing.remove_container(self._dossier)
        await closing.seal_log(self._dossier, self._output)
        await self._until_forgotten()

    async def _until_forgotten(self) -> None:
        wishes = self._dossier.wishes
        while True:
            await wishes.until(lambda: wishes.forget or wishes.doubted)
            if wishes.forget:
                # A loss of output may be found as late as the log's end, or be told no sooner: when the control plane
                # lacks nothing it knows of. Another stream may want the attempt after all meanwhile.
                await self._output.note_losses()
                await self._dossier.until_told()
                if wishes.forget:
                    return
            else:
                await closing.seal_log_again(self._dossier, self._output)

    async def _until_settled(self) -> None:
        resumption = await self._resumption()
        log.info("attempt", attempt=str(self.key), slot=self.slot, next=resumption.value)
        if resumption is Resumption.WITHHELD:
            await self._start()
        if not self._dossier.history.settled:
            await self._watch(forgotten=resumption is Resumption.FORGOTTEN)

    async def _resumption(self) -> Resumption:
        if self._fresh:
            return Resumption.WITHHELD
        runtime, history = self._services.runtime, self._dossier.history
        released = await self._dossier.insistently(lambda: runtime.was_released(self.slot))
        seen = await self._dossier.insistently(lambda: runtime.observe(self.slot))
        return resume(history, seen, released, self._services.boot_id)

    async def _start(self) -> None:
        """To the release, or to an end without one."""
        wishes = self._dossier.wishes
        try:
            await wishes.until(lambda: wishes.run or wishes.unstarted)
            if not self._fresh and await withdraw(self._dossier):
                return
            self._fresh = False
            await Start(self._dossier, self._output).bring_up(wishes)
        except Stopped as stopped:
            await self._end_before_release(stopped.cause)
        except Failed as failure:
            await self._dossier.record(facts=(Ended(State.FAILED, failure.reason, str(failure)),))
        except NotHere as refusal:
            await self._give_up(refusal)

    async def _watch(self, *, forgotten: bool) -> None:
        """From the release to the verdict; there is nothing to wait for if the engine has `forgotten` the start."""
        if not self._dossier.history.released:
            # The agent died, or the engine failed to answer, between the release and its record.
            await self._dossier.record(Released(), facts=(StateChanged(State.RUNNING, slot=self.slot),))
        if forgotten:
            await conclude(self._dossier, Observation(SlotState.ABSENT), released=True)
        else:
            await Watch(self._dossier).until_end()

    async def _end_before_release(self, cause: StopCause) -> None:
        if cause is StopCause.DRAIN:
            await self._give_up(NotHere(Reason.AGENT_DRAINED, DRAINED))
            return
        stopping = Stopping(cause, self._services.clock.now(), 0.0)
        await self._dossier.record(stopping, facts=(unbegun(cause),))

    async def _give_up(self, refusal: NotHere) -> None:
        """Send the attempt back to be placed elsewhere.

        The container goes first where the engine answers. Where it does not, the record alone makes sure that the slot
        is never released; its capacity stays held until the container is seen to be gone.
        """
        try:
            await self._services.runtime.remove(self.slot)
        except (RuntimeUnavailable, RuntimeFault) as error:
            log.warning("container not removed yet", attempt=str(self.key), error=str(error))
        await self._dossier.record(facts=(StateChanged(State.QUEUED, refusal.reason, str(refusal)),))
