"""The one task that places runs. It owns all placement state, a cache of rows that is rebuilt at start.

Others tell it what changed, from the event loop and after the commit that changed it; it decides, and has each
decision written through `assign`. Until that is committed the capacity counts as taken.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import structlog

from fastflow_controlplane.agents.model import Capacity
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.conditions import is_told
from fastflow_controlplane.errors import FastFlowError
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey, FailedPlacements, Held, Placement, WaitingRun
from fastflow_controlplane.scheduler.explain import being_stopped, explain
from fastflow_controlplane.scheduler.placement import Offer, Shape, choose, obstacle
from fastflow_controlplane.scheduler.queue import WaitingQueue

log = structlog.get_logger(__name__)

MAX_WRITING = 100
"""Decisions being written at once: what fills one group commit; more would only wait there."""
WRITE_RETRY_SECONDS = 2.0
"""A decision that could not be written (disk full, secret unreadable) is taken anew after this long."""
MAX_DOUBLINGS = 6
"""The delay before an agent gets a run again that it could not start doubles this often at the most."""

Assign = Callable[[WaitingRun, str], Awaitable[AttemptKey | None]]
"""Writes one decision (run, agent id); None = the run no longer waits. Raises FastFlowError."""


class Scheduler:
    """Places waiting runs on agents. `placement_delay` (seconds) and `priority_aging` (seconds) as in the settings.

    `changes` learns when the reasons of a waiting run change for another cause than a write.
    """

    def __init__(self, clock: Clock, changes: Changes, placement_delay: float, priority_aging: float) -> None:
        self._clock = clock
        self._changes = changes
        self._placement_delay = placement_delay
        self._queue = WaitingQueue(round(priority_aging * MICROSECONDS))
        self._offers: dict[str, Offer] = {}
        self._held: dict[tuple[str, int], Held] = {}
        # Waiting runs that have lost attempts, until they are placed; with one on an agent that is back they are not in
        # the queue.
        self._lost: dict[str, WaitingRun] = {}
        self._writing: dict[str, tuple[WaitingRun, Shape]] = {}
        self._returning: list[tuple[float, int, WaitingRun, WaitingRun]] = []
        self._order = itertools.count()
        self._left: set[str] = set()
        self._again: dict[str, WaitingRun] = {}
        self._troubles: dict[str, str] = {}
        self._wake = asyncio.Event()

    def restore(self, waiting: Iterable[WaitingRun], held: Iterable[Held]) -> None:
        """Fills the cache from rows, before `run`; agents follow by `agent_changed`."""
        for attempt in held:
            self._held[attempt.run_id, attempt.attempt] = attempt
        for run in waiting:
            self.add(run)

    def add(self, run: WaitingRun) -> None:
        """A run waits. Known ones are left as they are."""
        if run.run_id in self._writing:
            # It came back before its placement was seen to be written.
            self._again[run.run_id] = run
        elif run.run_id not in self._queue:
            if run.lost_on:
                self._lost[run.run_id] = run
                if self._being_stopped(run):
                    return
            left = {agent_id: self._exclusion_left(failed) for agent_id, failed in run.failed_on.items()}
            excluded = frozenset(agent_id for agent_id, seconds in left.items() if seconds > 0)
            if excluded:
                first = min(left[agent_id] for agent_id in excluded)
                later = {agent_id: run.failed_on[agent_id] for agent_id in excluded if left[agent_id] > first}
                self._return_later(run, first, replace(run, failed_on=later))
            limits = run.limits
            shape = Shape(limits.cpu_hard_milli_cores, limits.memory_hard_bytes, run.python_version, excluded)
            self._queue.add(run, shape)
            self._wake.set()

    def _exclusion_left(self, failed: FailedPlacements) -> float:
        """Seconds for which the agent does not get the run again; at most the delay, however the wall clock jumped."""
        delay = self._placement_delay * 2.0 ** min(failed.count - 1, MAX_DOUBLINGS)
        passed = (self._clock.now() - failed.last_time) / MICROSECONDS
        return delay - max(0.0, passed)

    def remove(self, run_id: str) -> None:
        """A run no longer waits: it was cancelled or failed."""
        self._queue.remove(run_id)
        self._lost.pop(run_id, None)
        self._troubles.pop(run_id, None)
        if run_id in self._writing:
            self._again.pop(run_id, None)
            self._left.add(run_id)

    def agent_changed(self, offer: Offer) -> None:
        """An agent appeared or changed; what its attempts hold is known here."""
        held = [held for held in self._held.values() if held.agent_id == offer.agent_id]
        reserved = Capacity(
            sum(attempt.cpu_milli_cores for attempt in held),
            sum(attempt.memory_bytes for attempt in held),
            len(held),
        )
        self._offers[offer.agent_id] = replace(offer, reserved=reserved)
        self._weigh_lost_on(offer.agent_id)
        self._wake_fitting(offer.agent_id)
        self._tell_watchers({attempt.run_id for attempt in held})

    def agent_removed(self, agent_id: str) -> None:
        """An agent is no more, and nobody waits for what it is to stop."""
        if self._offers.pop(agent_id, None) is not None:
            self._weigh_lost_on(agent_id)
            self._tell_watchers()

    def released(self, key: AttemptKey) -> None:
        """The container of an attempt is gone."""
        self._release(key.run_id, key.attempt)
        run = self._lost.get(key.run_id)
        if run is not None and key.attempt in run.lost_on:
            left = {number: agent_id for number, agent_id in run.lost_on.items() if number != key.attempt}
            run = replace(run, lost_on=left)
            if run.run_id in self._writing:
                self._lost[run.run_id] = run
                return
            self._queue.remove(run.run_id)
            del self._lost[run.run_id]
            self.add(run)

    def forget(self, run_ids: Collection[str]) -> None:
        """Runs are no more. What one lost on an agent that was removed may hold, nobody will tell of."""
        gone = frozenset(run_ids)
        for run_id, attempt in [held for held in self._held if held[0] in gone]:
            self._release(run_id, attempt)

    def explain(self, run_id: str) -> tuple[Placement, ...]:
        """Returns why a run waits; nothing for one that does not."""
        found = self._queue.find(run_id) or self._writing.get(run_id)
        if found is None:
            lost = self._lost.get(run_id)
            attempt = self._being_stopped(lost) if lost else 0
            return being_stopped(attempt, self._offers[lost.lost_on[attempt]].name) if lost and attempt else ()
        return explain(found[1], list(self._offers.values()), self._troubles.get(run_id, ""))

    def python_versions(self) -> frozenset[str]:
        """Returns the interpreters of all agents known."""
        return frozenset(version for offer in self._offers.values() for version in offer.python_versions)

    async def run(self, assign: Assign) -> None:
        """Places runs until cancelled."""
        async with asyncio.TaskGroup() as writes:
            while True:
                self._wake.clear()
                self._readmit()
                for run, offer in self._decide():
                    writes.create_task(self._write(assign, run, offer), name=f"place {run.run_id}")
                await self._rest()

    def _decide(self) -> list[tuple[WaitingRun, Offer]]:
        decided: list[tuple[WaitingRun, Offer]] = []
        for run, shape in self._queue.next_runs(self._clock.now()):
            if len(self._writing) >= MAX_WRITING:
                break
            offer = choose(shape, self._offers.values(), (run.bundle_digest, run.python_version))
            if offer is None:
                self._queue.park(shape)
                continue
            self._queue.take(run.run_id)
            self._writing[run.run_id] = (run, shape)
            self._hold(Held(run.run_id, 0, offer.agent_id, shape.cpu_milli_cores, shape.memory_bytes))
            decided.append((run, offer))
        return decided

    async def _write(self, assign: Assign, run: WaitingRun, offer: Offer) -> None:
        key: AttemptKey | None = None
        trouble = ""
        try:
            key = await assign(run, offer.agent_id)
        except FastFlowError as error:
            trouble = error.message
            if not is_told(error):
                log.warning("placement could not be written", run=run.run_id, agent=offer.name, why=trouble)
        finally:
            _, shape = self._writing.pop(run.run_id)
            provisional = self._held.pop((run.run_id, 0))
            if key is not None:
                self._held[run.run_id, key.attempt] = replace(provisional, attempt=key.attempt)
            else:
                self._held[run.run_id, 0] = provisional
                self._release(run.run_id, 0)
        left = run.run_id in self._left
        self._left.discard(run.run_id)
        self._troubles.pop(run.run_id, None)
        again = self._again.pop(run.run_id, None)
        # Of its lost attempts some may have been released, or their agents have come back, while this was written.
        run = self._lost.pop(run.run_id, run)
        if key is not None:
            log.info("run assigned", run=run.run_id, attempt=key.attempt, agent=offer.name)
            if again is not None:
                self.add(again)
        elif trouble and not left:
            self._wait_again(run, shape, trouble)
        self._wake.set()

    def _wait_again(self, run: WaitingRun, shape: Shape, trouble: str) -> None:
        """The placement of a run could not be written: for a while no agent known now gets it."""
        self._troubles[run.run_id] = trouble
        if run.lost_on:
            self._lost[run.run_id] = run
        if not self._being_stopped(run):
            self._queue.add(run, replace(shape, excluded=shape.excluded | set(self._offers)))
            self._return_later(run, WRITE_RETRY_SECONDS, run)

    def _being_stopped(self, run: WaitingRun) -> int:
        """Number of a lost attempt that is stopped now, since its agent is back; 0 = there is none.

        An agent out of reach is not waited for: it may never come back. Nor is one in quarantine, which stops nothing.
        """
        for attempt, agent_id in run.lost_on.items():
            offer = self._offers.get(agent_id)
            if offer is not None and not offer.offline:
                return attempt
        return 0

    def _weigh_lost_on(self, agent_id: str) -> None:
        """An agent went or came: runs with attempts lost on it may be placed, or have to wait for their end."""
        for run in [run for run in self._lost.values() if agent_id in run.lost_on.values()]:
            if run.run_id in self._writing:
                continue
            if self._being_stopped(run):
                self._queue.remove(run.run_id)
            else:
                self.add(run)

    def _hold(self, held: Held) -> None:
        self._held[held.run_id, held.attempt] = held
        self._count(held, 1)

    def _release(self, run_id: str, attempt: int) -> None:
        held = self._held.pop((run_id, attempt), None)
        if held is not None:
            self._count(held, -1)
            self._wake_fitting(held.agent_id)

    def _count(self, held: Held, sign: int) -> None:
        offer = self._offers.get(held.agent_id)
        if offer is None:
            return
        reserved = Capacity(
            offer.reserved.cpu_milli_cores + sign * held.cpu_milli_cores,
            offer.reserved.memory_bytes + sign * held.memory_bytes,
            offer.reserved.slots + sign,
        )
        self._offers[held.agent_id] = replace(offer, reserved=reserved)
        self._tell_watchers()

    def _tell_watchers(self, concerned: Collection[str] = ()) -> None:
        """What is told of waiting runs and of those `concerned` may have changed; only watched ones need to know."""
        for run_id in self._changes.watched():
            if run_id in self._queue or run_id in self._lost or run_id in concerned:
                self._changes.notify(run_id)

    def _wake_fitting(self, agent_id: str) -> None:
        offer = self._offers.get(agent_id)
        if offer is not None and self._queue.wake(lambda shape: not obstacle(shape, offer)):
            self._wake.set()

    def _return_later(self, run: WaitingRun, seconds: float, changed: WaitingRun) -> None:
        """After this time `run`, if it still waits, is looked at as `changed`."""
        heapq.heappush(self._returning, (self._clock.monotonic() + seconds, next(self._order), run, changed))

    def _readmit(self) -> None:
        """Looks anew at runs whose exclusion has ended."""
        now = self._clock.monotonic()
        while self._returning and self._returning[0][0] <= now:
            _, _, run, changed = heapq.heappop(self._returning)
            found = self._queue.find(run.run_id)
            if found is not None and found[0] is run:
                self._queue.remove(run.run_id)
                self.add(changed)

    async def _rest(self) -> None:
        """Returns when something changed or an exclusion ends."""
        if self._wake.is_set():
            return
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._wake.wait())}
        if self._returning:
            left = self._returning[0][0] - self._clock.monotonic()
            waits.add(asyncio.ensure_future(self._clock.sleep(left)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
