"""All agents: who has a stream, who is alive, what each said last. Belongs to the event loop.

Liveness is decided by the control plane's monotonic clock alone; what agents call the time is a label.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import structlog

from fastflow_controlplane import pages
from fastflow_controlplane.agents.live import AgentStream, LiveAgent, Placing, keep_since
from fastflow_controlplane.agents.model import (
    AgentFacts,
    AgentPage,
    AgentState,
    AgentView,
    Condition,
    EnvironmentKey,
    EnvironmentReport,
    EnvironmentResult,
    ReportedAttempt,
    RuntimeFacts,
)
from fastflow_controlplane.agents.wanted import Before
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.conditions import is_told
from fastflow_controlplane.errors import Unavailable, not_found
from fastflow_controlplane.runs.model import AttemptKey, Usage
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.unknown import read_unknown

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
"""How often liveness is looked at: fine enough beside heartbeats of seconds, and next to no work."""

STALL_SECONDS = 5.0
"""A look that comes this much too late means that the control plane itself stood still, for example under SIGSTOP."""
ENGINE_AWAY = frozenset({"DockerUnavailable", "RuntimeUnavailable"})
"""Conditions in which an agent can neither end nor judge what runs there."""
REFUSAL_SECONDS = 60.0
"""How long a refused newcomer is shown with the agent whose place it wanted; it comes again more often than that."""
DUPLICATE = "DuplicateAgent"
"""Condition of an agent under whose id or name another process dials in."""
SEEN_SECONDS = 60.0
"""How often the moment an agent was last heard of is stored: a label for people, so seldom."""


class AgentRegistry:
    """Knows every agent that ever dialled in, and which of them live."""

    def __init__(self, store: Store, clock: Clock, settings: ControlPlaneSettings, placing: Placing) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._placing = placing
        self._agents: dict[str, LiveAgent] = {}
        self._recovering_since = self._checked = clock.monotonic()

    async def restore(self) -> None:
        """Reads all agents; until they dial in they count as OFFLINE since now."""
        started = self._recovering_since = self._checked = self._clock.monotonic()
        for row in await self._store.read(agents.read_agents):
            agent = LiveAgent(
                row,
                broke=started,
                restored=True,
                awaited=self._settings.recovery_window > 0,
                last_seen_time=row.last_seen_time,
                offline_since=started,
                conditions=row.conditions,
            )
            self._agents[row.facts.agent_id] = agent
            self._offer(agent)

    def connected(self) -> frozenset[str]:
        """Returns the ids of agents that have a stream."""
        return frozenset(agent_id for agent_id, agent in self._agents.items() if agent.stream is not None)

    def away(self) -> Mapping[str, int]:
        """Returns the ids of agents that have no stream, each with the epoch of its last session."""
        return {agent_id: agent.row.session_epoch for agent_id, agent in self._agents.items() if agent.stream is None}

    def attach(self, row: AgentRow, stream: AgentStream) -> None:
        """A session begins; an older one of the same agent is told that it is superseded."""
        agent_id = row.facts.agent_id
        former = self._agents.get(agent_id)
        if former is not None and former.stream is not None:
            former.stream.supersede()
        agent = LiveAgent(row, stream=stream, conditions=row.conditions)
        if former is not None:
            agent.environments = former.environments
            # Until the agent tells anew, which it does soon, placement goes by what it told last.
            agent.results = former.results
        self._agents[agent_id] = agent
        self._hear(agent)
        for other in self._agents.values():
            if other is not agent and other.facts.name == row.facts.name:
                # It left its name to this one, see `register`.
                name = agents.former_name(row.facts.name, other.facts.agent_id)
                other.row = replace(other.row, facts=replace(other.facts, name=name))
                self._offer(other)
        self._judge(agent)
        self._offer(agent)

    def refused(self, agent_id: str, why: str) -> None:
        """An agent that dialled in can not be talked to; `why` is shown for as long as it does not connect."""
        agent = self._agents.get(agent_id)
        if agent is not None and agent.stream is None and agent.refusal != why:
            agent.refusal = why
            self._offer(agent)

    def rivals(self, newcomer: AgentFacts) -> list[LiveAgent]:
        """Returns connected agents whose place another process wants: same id, or same name."""
        return [
            agent
            for agent in self._agents.values()
            if agent.stream is not None
            and (
                agent.facts.instance_id != newcomer.instance_id
                if agent.facts.agent_id == newcomer.agent_id
                else agent.facts.name == newcomer.name
            )
        ]

    def give_up(self, agent: LiveAgent) -> None:
        """Lets go of an agent that answers no more: its stream is cut and counts no longer."""
        if agent.stream is not None:
            agent.stream.cut()
            self.detach(agent.facts.agent_id, agent.stream)

    def note_refusal(self, newcomer: AgentFacts, message: str) -> None:
        """Shows for a while, with the agent that stays, that a newcomer under its id or name was refused."""
        for agent in self._agents.values():
            if agent.facts.agent_id == newcomer.agent_id or agent.facts.name == newcomer.name:
                text = f'a process on host "{newcomer.host_name}" was refused, and told: {message}'
                since = next((shown.since for shown in self._duplicates(agent)), self._clock.now())
                agent.duplicate = Condition(DUPLICATE, text, blocks_placement=False, since=since)
                agent.duplicate_seen = self._clock.monotonic()

    def _duplicates(self, agent: LiveAgent) -> tuple[Condition, ...]:
        fresh = self._clock.monotonic() - agent.duplicate_seen < REFUSAL_SECONDS
        return (agent.duplicate,) if agent.duplicate is not None and fresh else ()

    def detach(self, agent_id: str, stream: AgentStream) -> None:
        """A session ended; nothing if a newer one took over, of which the agent may be removed since."""
        agent = self._agents.get(agent_id)
        if agent is not None and agent.stream is stream:
            agent.stream = None
            agent.broke = self._clock.monotonic()
            self._judge(agent)

    def heard(self, agent_id: str, stream: AgentStream) -> None:
        """A message came in on this stream."""
        agent = self._agents[agent_id]
        if agent.stream is stream:
            self._hear(agent)
            if agent.state is not AgentState.ACTIVE:
                self._judge(agent)

    def report(
        self,
        agent_id: str,
        stream: AgentStream,
        conditions: Sequence[Condition],
        runtime: RuntimeFacts | None,
        environments: Sequence[str],
    ) -> bool:
        """A heartbeat brought conditions, environments and perhaps runtime facts; True = `store_report` is due.

        Nothing here waits: a database that stalls must not make an agent look silent.
        """
        agent = self._agents[agent_id]
        if agent.stream is not stream:
            return False
        agent.environments = tuple(environments)
        facts = replace(agent.facts, runtime=runtime or agent.facts.runtime)
        reported = keep_since(conditions, agent.conditions, self._clock.now())
        if facts == agent.facts and reported == agent.conditions:
            return False
        for condition in reported:
            if condition not in agent.conditions:
                log.warning("agent reports", agent=facts.name, condition=condition.type, why=condition.message)
        agent.row = replace(agent.row, facts=facts)
        agent.conditions = reported
        self._offer(agent)
        return True

    async def store_report(self, agent_id: str, stream: AgentStream) -> None:
        """Stores what the agent reported last. Raises Unavailable."""
        agent = self._agents[agent_id]
        if agent.stream is not stream:
            return
        conditions, runtime = agent.conditions, agent.facts.runtime

        def note(connection: Connection) -> None:
            agents.note_report(connection, agent_id, stream.epoch, conditions, runtime)

        await self._store.write(note)

    def telemetry(self, agent_id: str, stream: AgentStream, usage: Mapping[AttemptKey, Usage]) -> None:
        """Measured use came in; only the newest counts."""
        agent = self._agents[agent_id]
        if agent.stream is stream:
            agent.usage = {(key.run_id, key.attempt): used for key, used in usage.items()}

    def prepared(self, agent_id: str, stream: AgentStream, report: EnvironmentReport) -> None:
        """An agent told how far environments are."""
        agent = self._agents[agent_id]
        if agent.stream is stream:
            agent.note_environments(report)
            self._offer(agent)

    def reported(self, agent_id: str, stream: AgentStream, attempts: Sequence[ReportedAttempt]) -> None:
        """An agent in quarantine told which attempts it has."""
        agent = self._agents[agent_id]
        if agent.stream is stream:
            agent.reported = tuple(attempts)

    def environment_results(self, key: EnvironmentKey) -> Iterator[tuple[AgentFacts, EnvironmentResult | None]]:
        """Gives what each connected agent told of an environment, None = nothing."""
        for agent in self._agents.values():
            if agent.stream is not None:
                yield agent.facts, agent.results.get(key)

    def accepted(self, row: AgentRow) -> None:
        """An operator accepted an agent: what was stored of it changed, and it shall dial in anew."""
        agent = self._agents[row.facts.agent_id]
        agent.row = row
        agent.duplicate = None
        if agent.stream is not None:
            agent.stream.cut()

    def changed(self, row: AgentRow) -> None:
        """An operator changed what the agent shall do; call it after the commit, with the row as it is then."""
        agent = self._agents.get(row.facts.agent_id)
        if agent is not None:
            agent.row = replace(agent.row, draining=row.draining, drain_deadline_time=row.drain_deadline_time)
            self._offer(agent)
            self.desired_changed(row.facts.agent_id)

    def removed(self, agent_id: str) -> None:
        """The agent is off the list; call it after the commit."""
        if self._agents.pop(agent_id, None) is not None:
            self._placing.agent_removed(agent_id)

    def drains(self) -> list[AgentRow]:
        """Returns the agents that are drained until a deadline."""
        rows = (agent.row for agent in self._agents.values())
        return [row for row in rows if row.draining and row.drain_deadline_time is not None]

    def facts(self, agent_id: str) -> AgentFacts:
        """Returns what an agent that ever dialled in said of itself last."""
        return self._agents[agent_id].facts

    def preheat_changed(self, before: Before) -> None:
        """Agents shall prepare other environments than `before`."""
        for agent in self._agents.values():
            if agent.stream is not None:
                agent.stream.preheat_changed(before)

    def usage(self, agent_id: str, run_id: str, attempt: int) -> Usage | None:
        """Returns what an attempt used when last measured; None = unknown."""
        agent = self._agents.get(agent_id)
        return None if agent is None else agent.usage.get((run_id, attempt))

    def desired_changed(self, agent_id: str) -> None:
        """Something the agent shall do changed; call it after the commit."""
        agent = self._agents.get(agent_id)
        if agent is not None and agent.stream is not None:
            agent.stream.desired_changed()

    def applied(self, agent_id: str, stream: AgentStream, revision: int) -> None:
        """The agent has taken over what it shall do as of `revision`."""
        agent = self._agents[agent_id]
        if agent.stream is stream:
            agent.applied_revision = revision

    def is_told(self, agent_id: str, revision: int) -> bool:
        """Returns whether the agent has taken over `revision`; of one that is away for long nobody waits for that."""
        agent = self._agents.get(agent_id)
        if agent is None or self._is_lost(agent):
            return True
        return agent.stream is not None and agent.applied_revision >= revision

    def trouble(self, agent_id: str) -> str:
        """Returns in one sentence what it means for runs of an agent that it, or its engine, is away; "" = neither is.

        Nothing is told of a restart: of the agent's, or within the time after our own in which agents dial in.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            return ""
        if agent.state is not AgentState.OFFLINE:
            away = next((held for held in agent.conditions if held.type in ENGINE_AWAY), None)
            told = f'agent "{agent.facts.name}", {away.type}: {away.message}' if away else ""
            return told and f"{told} The program goes on, and its end is told once the engine is back"
        if agent.restored and self._clock.monotonic() - agent.broke < self._settings.offline_after:
            return ""
        return (
            f'agent "{agent.facts.name}" is out of reach: the program may well go on there, and its output follows; '
            f"an agent that stays away for {self._settings.lost_after:g} s loses its runs"
        )

    def lost(self) -> list[AgentRow]:
        """Returns agents that are OFFLINE for so long that their runs are LOST."""
        return [agent.row for agent in self._agents.values() if self._is_lost(agent)]

    def recovering(self) -> bool:
        """Returns whether agents still have time to return, before it means anything that they did not."""
        now = self._clock.monotonic()
        return now - self._recovery_begins(now) < self._settings.recovery_window

    def _is_lost(self, agent: LiveAgent) -> bool:
        if agent.offline_since is None or self.recovering():
            return False
        return self._clock.monotonic() - agent.offline_since >= self._settings.lost_after

    def _recovery_begins(self, now: float) -> float:
        """From when on agents are waited for: we began, were stopped, or could register nobody, no fault of theirs.

        Whoever asks first after a stop may come before `check`.
        """
        return now if now - self._checked > STALL_SECONDS or self._store.problem else self._recovering_since

    async def watch(self) -> None:
        """Judges who lives, until cancelled."""
        noted = self._clock.monotonic()
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            self.check()
            if self._clock.monotonic() - noted >= SEEN_SECONDS:
                noted = self._clock.monotonic()
                await self._note_seen()

    async def _note_seen(self) -> None:
        seen = {agent_id: self._agents[agent_id].last_seen_time for agent_id in self.connected()}
        if not seen:
            return
        try:
            await self._store.write(lambda connection: agents.note_seen(connection, seen))
        except Unavailable as error:
            if not is_told(error):
                log.warning("agents' times could not be stored", why=error.message)

    def check(self) -> None:
        """Judges who lives; a silent agent's stream is cut."""
        now = self._clock.monotonic()
        self._recovering_since, self._checked = self._recovery_begins(now), now
        for agent in self._agents.values():
            self._judge(agent)
            if agent.awaited and now - self._recovering_since >= self._settings.recovery_window:
                agent.awaited = False
                self._offer(agent)
            if agent.stream is not None and agent.state is AgentState.OFFLINE:
                log.warning("agent is silent, its stream is cut", agent=agent.facts.name)
                agent.stream.cut()

    def close(self) -> None:
        """Ends all streams, at shutdown; agents dial in again later."""
        for agent in self._agents.values():
            if agent.stream is not None:
                agent.stream.cut()

    async def get(self, name: str) -> AgentView:
        """Returns one agent by name; raises NotFound with the nearest names."""
        rows = await self._store.read(lambda connection: agents.read_agents(connection, name=name))
        views = await self._views(rows)
        if not views:
            raise not_found("agent", name, await self._store.read(agents.read_names))
        return await self._with_unknown(rows[0], views[0])

    async def list(self, page_size: int = 100, page_token: str = "") -> AgentPage:
        """Returns a page of agents by name; raises InvalidArgument for a page token that is none of ours."""
        after = pages.key_of(page_token)
        rows = await self._store.read(
            lambda connection: agents.read_agents(connection, after=after, limit=page_size + 1)
        )
        page = rows[:page_size]
        token = pages.token_after(page[-1].facts.name) if len(rows) > page_size else ""
        return AgentPage(tuple(await self._views(page)), token)

    async def _views(self, rows: Sequence[AgentRow]) -> Sequence[AgentView]:
        ids = [row.facts.agent_id for row in rows]
        holds = await self._store.read(lambda connection: agents.read_holds(connection, ids))
        views = []
        for row in rows:
            agent = self._agents.get(row.facts.agent_id)
            if agent is None:
                continue  # removed since it was read
            hold = holds.get(row.facts.agent_id, agents.NOTHING_HELD)
            views.append(agent.view(row, hold, self._duplicates(agent)))
        return views

    async def _with_unknown(self, row: AgentRow, view: AgentView) -> AgentView:
        agent = self._agents.get(row.facts.agent_id)
        reported = agent.reported if agent is not None and row.quarantine_reason else None
        if reported is None:
            return view
        unknown = await self._store.read(partial(read_unknown, agent_id=row.facts.agent_id, reported=reported))
        return replace(view, unknown_attempts=tuple(unknown))

    def _hear(self, agent: LiveAgent) -> None:
        agent.heard = self._clock.monotonic()
        agent.last_seen_time = self._clock.now()

    def _judge(self, agent: LiveAgent) -> None:
        now = self._clock.monotonic()
        state = agent.judged(now, self._settings)
        if state is AgentState.OFFLINE:
            agent.offline_since = now if agent.offline_since is None else agent.offline_since
        else:
            agent.offline_since = None
        if state is not agent.state:
            log.info("agent is " + state.lower(), agent=agent.facts.name)
            agent.state = state
            self._offer(agent)

    def _offer(self, agent: LiveAgent) -> None:
        self._placing.agent_changed(agent.offer())
