"""Rows to begin a test with, written as the control plane writes them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastflow.ids import new_id
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.agents.events import (
    AttemptEvent,
    ContainerGone,
    Effects,
    Ended,
    Fact,
    StateChanged,
    apply_events,
)
from fastflow_controlplane.agents.model import AgentFacts, Capacity
from fastflow_controlplane.runs.model import AttemptKey, AttemptView, RunView
from fastflow_controlplane.runs.retry import NO_RETRY, RetryPolicy
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.lost_attempts import LostAttempt, lose_all
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.runs import Cancelled, StoredRun
from fastflow_controlplane.store.queries.transitions import Epochs, note
from sqlalchemy import Connection

GIB = 1024**3
NOW = 1_800_000_000_000_000
MAX_PLACEMENTS = 3


def new_run(
    run_id: str, pipeline: str = "hello", parameters: bytes | None = None, retry: RetryPolicy = NO_RETRY
) -> StoredRun:
    """A run that asks for one core and one GiB."""
    return StoredRun(
        id=run_id,
        pipeline=pipeline,
        priority=0,
        trigger="api",
        request_id="",
        limits=Limits(1000, GIB),
        timeout_usec=0,
        python_version="",
        bundle_digest="sha256:" + "0" * 64,
        bundle_size=1,
        commit="",
        tree="",
        environment_names=(),
        default_environment={},
        parameters=parameters,
        log_limit_bytes=GIB,
        on_log_backlog="DROP",
        retry=retry,
    )


@dataclass(frozen=True)
class Rows:
    """Writes to one store, with a clock that stands at NOW."""

    store: Store

    async def run(
        self,
        pipeline: str = "hello",
        *,
        run_id: str = "",
        parameters: bytes | None = None,
        retry: RetryPolicy = NO_RETRY,
    ) -> str:
        """Stores a waiting run."""
        run = new_run(run_id or new_id(), pipeline, parameters, retry)
        await self.store.write(lambda connection: runs.insert_run(connection, run, NOW))
        return run.id

    async def agent(self, name: str = "w", *, agent_id: str = "", connected: Sequence[str] = ()) -> AgentRow:
        """Registers an agent as a Hello does: its session epoch rises."""
        facts = AgentFacts(agent_id or f"id of {name}", name, new_id(), capacity=Capacity(4000, 8 * GIB, 0))
        return await self.store.write(lambda connection: register(connection, facts, connected, Belonging(), "c", NOW))

    async def assign(self, run_id: str, agent: AgentRow, token: str = "token") -> AttemptKey | None:
        """Places a run on an agent."""

        def assign(connection: Connection) -> AttemptKey | None:
            return attempts.assign(connection, run_id, agent.facts.agent_id, token, {}, Epochs(0, 1), NOW)

        return await self.store.write(assign)

    async def assigned(self) -> tuple[AgentRow, AttemptKey]:
        """Stores an agent and a run that is placed on it."""
        agent = await self.agent()
        key = await self.assign(await self.run(), agent)
        assert key is not None
        return agent, key

    async def apply(self, agent: AgentRow, events: Sequence[AttemptEvent], now: int = NOW) -> Effects:
        """Applies events that came on the agent's session at `now` by the control plane's clock."""

        def apply(connection: Connection) -> Effects:
            epochs = Epochs(session=agent.session_epoch, leader=1)
            return apply_events(connection, agent.facts, events, epochs, MAX_PLACEMENTS, now)

        return await self.store.write(apply)

    async def cancel(self, run_id: str) -> Cancelled:
        """Asks a run to stop."""
        return await self.store.write(lambda connection: runs.cancel(connection, run_id, NOW, 10_000_000))

    async def lose(self, agent: AgentRow) -> list[LostAttempt]:
        """Declares the agent's attempts lost."""
        epochs = Epochs(session=0, leader=1)
        return await self.store.write(
            lambda connection: lose_all(connection, agent.facts.agent_id, "away", epochs, NOW)
        )

    async def seal(self, key: AttemptKey) -> str:
        """Notes that the attempt's log is whole."""

        def seal(connection: Connection) -> str:
            note(connection, key, {"log_sealed": True, "log_bytes": 7})
            return attempts.settle(connection, key)

        return await self.store.write(seal)

    async def finished(self) -> str:
        """Stores a run that succeeded, with a whole log."""
        agent, key = await self.assigned()
        journal = Journal(key)
        await self.apply(agent, [journal.moved(RunState.PREPARING), journal.moved(RunState.RUNNING)])
        await self.apply(agent, [journal.ended(RunState.SUCCEEDED), journal.gone()])
        await self.seal(key)
        return key.run_id

    async def view(self, run_id: str) -> RunView:
        """Reads a run."""
        return await self.store.read(lambda connection: runs.read_run(connection, run_id))

    async def newest(self, run_id: str) -> AttemptView:
        """Reads a run's newest attempt."""
        return (await self.view(run_id)).attempts[-1]

    async def desired(self, agent: AgentRow) -> dict[AttemptKey, str]:
        """Reads what the agent shall do."""
        from fastflow_controlplane.store.queries import desired

        state = await self.store.read(lambda connection: desired.read_since(connection, agent.facts.agent_id, 0))
        return {row.key: row.action for row in state.rows}


class Journal:
    """The events of one attempt, numbered as an agent numbers them."""

    def __init__(self, key: AttemptKey) -> None:
        self.key = key
        self._numbers = itertools.count(1)

    def event(self, fact: Fact) -> AttemptEvent:
        """The next event."""
        return AttemptEvent(self.key, next(self._numbers), NOW, fact)

    def moved(self, state: RunState, reason: Reason = Reason.NONE, message: str = "") -> AttemptEvent:
        """The attempt is in `state` now."""
        return self.event(StateChanged(state, reason, message, slot="0123456789abcdef"))

    def ended(self, state: RunState, reason: Reason = Reason.NONE, exit_code: int | None = 0) -> AttemptEvent:
        """The attempt ended."""
        return self.event(Ended(state, reason, "over", exit_code, None, None, None))

    def gone(self) -> AttemptEvent:
        """The container is gone."""
        return self.event(ContainerGone())

    def with_token(self, token: str) -> "Journal":
        """A journal of the same attempt that claims another assignment."""
        return Journal(replace(self.key, claim_token=token))
