"""What operators do to agents: drain, resume, remove. All of it stands in the database and so survives every restart.

A drained agent gets no new runs, and itself gives back what it has not begun. What it runs ends by itself, or is
stopped at a deadline. The deadline is kept as wall-clock time, as it outlives processes, but counted on the monotonic
clock from the moment it was set or read: a clock that jumps meanwhile stops nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import structlog
from fastflow.ids import short

from fastflow_controlplane.agents.model import AgentView
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.conditions import repeat
from fastflow_controlplane.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    not_found,
)
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.lost import Lost, LostRuns, with_waiting
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, attempts, requests
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.lost_attempts import lose_all
from fastflow_controlplane.store.queries.transitions import Epochs

log = structlog.get_logger(__name__)

T = TypeVar("T")

DRAIN_AGENT = "DRAIN_AGENT"
RESUME_AGENT = "RESUME_AGENT"
REMOVE_AGENT = "REMOVE_AGENT"
DEADLINE_CHECK_SECONDS = 1.0
"""How often deadlines are looked at; costs nothing while no agent is drained."""
MAX_DEADLINE_SECONDS = 365 * 86_400.0
"""A longer deadline is a mistake in the unit."""
RUNS_NAMED = 5
"""Runs that a refusal names."""


class AgentOperations:
    """Changes agents as operators ask. Every method raises FastFlowError alone."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        changes: Changes,
        scheduler: Scheduler,
        registry: AgentRegistry,
        leader_epoch: int,
        stop_grace: float,
    ) -> None:
        """`stop_grace` is seconds: what runs get between SIGTERM and SIGKILL at a deadline."""
        self._store = store
        self._clock = clock
        self._changes = changes
        self._registry = registry
        self._lost = LostRuns(changes, scheduler, registry)
        self._leader_epoch = leader_epoch
        self._stop_grace_usec = round(stop_grace * MICROSECONDS)
        self._deadlines: dict[tuple[str, int], float] = {}
        self._stopped: set[tuple[str, int]] = set()

    async def drain(
        self, name: str, *, deadline: float | None = None, stop: bool = False, request_id: str = ""
    ) -> AgentView:
        """Drains an agent; runs left `deadline` seconds from now are stopped, with `stop` those of now.

        Of an agent that is drained already, only the deadline changes. Raises NotFound and InvalidArgument.
        """
        _check_deadline(deadline, stop=stop)
        now = self._clock.now()
        seconds = 0.0 if stop else deadline
        deadline_time = None if seconds is None else now + round(seconds * MICROSECONDS)

        def drain(connection: Connection, row: AgentRow) -> list[AttemptKey]:
            agent_id = row.facts.agent_id
            agents.drain(connection, agent_id, deadline_time, now)
            return attempts.stop_all(connection, agent_id, "DRAIN", self._stop_grace_usec) if stop else []

        def drained(row: AgentRow, stopped: list[AttemptKey]) -> None:
            log.info("agent is drained", agent=name, deadline_seconds=seconds)
            self._registry.changed(row)
            self._tell(stopped)

        await self._change(name, DRAIN_AGENT, request_id, [name, deadline, stop], drain, drained)
        return await self._registry.get(name)

    async def resume(self, name: str, request_id: str = "") -> AgentView:
        """Lets an agent take runs again; one that does already stays as it is. Raises NotFound."""

        def resume(connection: Connection, row: AgentRow) -> None:
            if row.draining:
                agents.resume(connection, row.facts.agent_id)

        def resumed(row: AgentRow, _: None) -> None:
            log.info("agent takes runs again", agent=name)
            self._registry.changed(row)

        await self._change(name, RESUME_AGENT, request_id, [name], resume, resumed)
        return await self._registry.get(name)

    async def remove(self, name: str, *, force: bool = False, request_id: str = "") -> list[str]:
        """Takes an agent that is not connected off the list; returns the runs that became LOST by it.

        Raises NotFound, and FailedPrecondition where it is connected, or has runs or output that it did not deliver;
        with `force` it loses these.
        """
        epochs = Epochs(session=0, leader=self._leader_epoch)
        now = self._clock.now()
        away = self._registry.away()

        def remove(connection: Connection, row: AgentRow) -> Lost:
            agent_id = row.facts.agent_id
            if away.get(agent_id) != row.session_epoch:
                raise _connected(name)
            unended = attempts.read_unended(connection, agent_id)
            if unended and not force:
                raise _has_runs(name, unended)
            message = f'agent "{name}" was removed by an operator; should it return, the program is stopped'
            lost = lose_all(connection, agent_id, message, epochs, now)
            agents.remove(connection, agent_id, now)
            return with_waiting(connection, lost)

        def removed(row: AgentRow, lost: Lost) -> None:
            log.info("agent is removed", agent=name, lost_runs=len(lost.attempts))
            self._registry.removed(row.facts.agent_id)
            self._lost.tell(lost)

        lost = await self._change(name, REMOVE_AGENT, request_id, [name, force], remove, removed)
        return [attempt.key.run_id for attempt in lost.attempts] if lost else []

    async def watch(self) -> None:
        """Stops what is left at each deadline, until cancelled; what the database refuses is tried again."""
        complaint = "runs could not be stopped at the deadline of a drain"
        await repeat(self._clock, DEADLINE_CHECK_SECONDS, self.check, complaint)

    async def check(self) -> None:
        """Looks once. Raises Unavailable."""
        due = {(row.facts.agent_id, row.drain_deadline_time or 0): row for row in self._registry.drains()}
        now = self._clock.monotonic()
        self._deadlines = {
            key: self._deadlines.get(key, now + (key[1] - self._clock.now()) / MICROSECONDS) for key in due
        }
        self._stopped &= due.keys()
        for key, row in due.items():
            if key not in self._stopped and now >= self._deadlines[key]:
                await self._stop(row)
                self._stopped.add(key)

    async def _stop(self, row: AgentRow) -> None:
        agent_id = row.facts.agent_id

        def stop(connection: Connection) -> list[AttemptKey]:
            # Resumed, or given another deadline, since this one was looked at: nothing is stopped.
            if not agents.is_drained_until(connection, agent_id, row.drain_deadline_time):
                return []
            return attempts.stop_all(connection, agent_id, "DRAIN", self._stop_grace_usec)

        def stopped(keys: list[AttemptKey]) -> None:
            log.info("deadline of a drain has passed", agent=row.facts.name, stopped_runs=len(keys))
            self._registry.desired_changed(agent_id)
            self._tell(keys)

        await self._store.write(stop, stopped)

    async def _change(
        self,
        name: str,
        kind: str,
        request_id: str,
        content: list[Any],
        change: Callable[[Connection, AgentRow], T],
        changed: Callable[[AgentRow, T], None],
    ) -> T | None:
        """Applies `change` to the agent of this name and tells `changed` after the commit; returns what it returned.

        None = it was applied before, under the same `request_id`.
        """
        fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

        def apply(connection: Connection) -> tuple[AgentRow, T] | None:
            if requests.answered(connection, kind, request_id, fingerprint) is not None:
                return None
            found = agents.read_agents(connection, name=name)
            if not found:
                raise not_found("agent", name, agents.read_names(connection))
            agent_id = found[0].facts.agent_id
            result = change(connection, found[0])
            requests.remember(connection, kind, request_id, fingerprint, agent_id, self._clock.now())
            after = agents.read_agents(connection, agent_id=agent_id)
            return (after or found)[0], result

        def applied(done: tuple[AgentRow, T] | None) -> None:
            if done is not None:
                changed(*done)

        done = await self._store.write(apply, applied)
        return None if done is None else done[1]

    def _tell(self, keys: Sequence[AttemptKey]) -> None:
        for key in keys:
            self._changes.notify(key.run_id)


def _check_deadline(deadline: float | None, *, stop: bool) -> None:
    message = ""
    if stop and deadline is not None:
        message = "deadline and stop exclude each other: stop is a deadline of now"
    elif deadline is not None and not 0 <= deadline <= MAX_DEADLINE_SECONDS:
        message = f"deadline is {deadline:g} s; allowed is 0 to {MAX_DEADLINE_SECONDS:.0f} s"
    if message:
        raise InvalidArgument(message, violations=[FieldViolation("deadline", message)])


def _connected(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f'agent "{name}" is connected, and would be back at once: drain it (`ffctl agents drain {name}`), stop it on '
        "its host (`systemctl stop fastflow-agent`), then remove it",
        reason="AGENT_CONNECTED",
        metadata={"agent": name},
    )


def _has_runs(name: str, run_ids: Sequence[str]) -> FailedPrecondition:
    named = ", ".join(short(run_id) for run_id in run_ids[:RUNS_NAMED])
    more = f" and {len(run_ids) - RUNS_NAMED} more" if len(run_ids) > RUNS_NAMED else ""
    return FailedPrecondition(
        f'agent "{name}" still has runs, or output that it did not deliver: {named}{more}. Start it again to get them, '
        f"or give them up with `ffctl agents remove {name} --force`: those that have not ended are LOST then",
        reason="AGENT_HAS_RUNS",
        metadata={"agent": name, "runs": ",".join(run_ids)},
    )
