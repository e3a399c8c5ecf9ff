"""Agents: fenced by their session epoch, listed with what they hold; `registration` has their coming."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastflow.ids import short
from sqlalchemy import Connection, Row, bindparam, func, select, update

from fastflow_controlplane.agents.model import AgentAttempt, AgentFacts, Capacity, Condition, RuntimeFacts
from fastflow_controlplane.store.models import agents, attempts, runs


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent as stored. `conditions` are those it reported last."""

    facts: AgentFacts
    session_epoch: int
    revision: int
    conditions: tuple[Condition, ...]
    draining: bool
    drain_time: int | None
    drain_deadline_time: int | None
    quarantine_reason: str
    hello_cluster_id: str
    accepted_cluster_id: str
    doubtful_revision: int
    connect_time: int
    last_seen_time: int


@dataclass(frozen=True, slots=True)
class Hold:
    """What the attempts of one agent hold until their containers are gone."""

    reserved: Capacity
    attempts: tuple[AgentAttempt, ...]

    logs: int = 0
    """Ended attempts whose containers are gone and whose logs are not whole."""


NOTHING_HELD = Hold(Capacity(), ())

# Built once: putting a statement together costs SQLAlchemy more than SQLite needs to answer it.
_HEARD = (
    update(agents)
    .where(agents.c.agent_id == bindparam("agent"), agents.c.session_epoch == bindparam("epoch"))
    .values(last_seen_time=bindparam("now"))
)
_RAISE = update(agents).where(agents.c.agent_id == bindparam("agent")).values(revision=agents.c.revision + 1)
_TAKES_RUNS = select(agents.c.agent_id).where(
    agents.c.agent_id == bindparam("agent"),
    ~agents.c.draining,
    agents.c.remove_time.is_(None),
    agents.c.quarantine_reason == "",
)
_REVISION = select(agents.c.revision).where(agents.c.agent_id == bindparam("agent"))


def former_name(name: str, agent_id: str) -> str:
    """Returns the name of an agent that left its own to another one."""
    return f"{name}~{short(agent_id)}"


def is_current(connection: Connection, agent_id: str, session_epoch: int, now: int) -> bool:
    """Notes a sign of life and returns whether `session_epoch` is still the agent's newest session.

    Being written, the row stays locked until the operation ends: no newer session comes in between.
    """
    parameters = {"agent": agent_id, "epoch": session_epoch, "now": now}
    return bool(connection.execute(_HEARD, parameters).rowcount)


def is_current_session(connection: Connection, agent_id: str, session_epoch: int) -> bool:
    """Returns whether no newer session of the agent began; locks the row where the database has row locks."""
    query = (
        select(agents.c.session_epoch)
        .where(agents.c.agent_id == agent_id, agents.c.session_epoch == session_epoch)
        .with_for_update()
    )
    return connection.execute(query).one_or_none() is not None


def note_seen(connection: Connection, seen: Mapping[str, int]) -> None:
    """Stores when agents were last heard of: agent id → microseconds UTC."""
    for agent_id, time in seen.items():
        connection.execute(update(agents).where(agents.c.agent_id == agent_id).values(last_seen_time=time))


def note_report(
    connection: Connection,
    agent_id: str,
    session_epoch: int,
    conditions: Sequence[Condition],
    runtime: RuntimeFacts,
) -> None:
    """Stores the conditions and runtime facts an agent reported; nothing if a newer session took over."""
    connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id, agents.c.session_epoch == session_epoch)
        .values(conditions=[asdict(condition) for condition in conditions], runtime=asdict(runtime))
    )


def drain(connection: Connection, agent_id: str, deadline_time: int | None, now: int) -> None:
    """Lets an agent take no more runs; one that is drained already only gets the deadline (None = none)."""
    connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id)
        .values(
            draining=True,
            drain_time=func.coalesce(agents.c.drain_time, now),
            drain_deadline_time=deadline_time,
            revision=agents.c.revision + 1,
        )
    )


def resume(connection: Connection, agent_id: str) -> None:
    """Lets an agent take runs again."""
    connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id)
        .values(draining=False, drain_time=None, drain_deadline_time=None, revision=agents.c.revision + 1)
    )


def remove(connection: Connection, agent_id: str, now: int) -> None:
    """Takes an agent off the list; should it come back, it is not drained."""
    connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id)
        .values(remove_time=now, draining=False, drain_time=None, drain_deadline_time=None)
    )


def is_drained_until(connection: Connection, agent_id: str, deadline_time: int | None) -> bool:
    """Returns whether the agent is drained until just this time; locks the row where the database has row locks."""
    query = (
        select(agents.c.agent_id)
        .where(agents.c.agent_id == agent_id, agents.c.draining, agents.c.drain_deadline_time == deadline_time)
        .with_for_update()
    )
    return connection.execute(query).one_or_none() is not None


def takes_runs(connection: Connection, agent_id: str) -> bool:
    """Returns whether runs may be placed on the agent: it is neither drained, nor removed, nor in quarantine."""
    return connection.execute(_TAKES_RUNS, {"agent": agent_id}).one_or_none() is not None


def raise_revision(connection: Connection, agent_id: str) -> int:
    """Counts one more change of what the agent shall do; returns the new revision."""
    connection.execute(_RAISE, {"agent": agent_id})
    return int(connection.execute(_REVISION, {"agent": agent_id}).scalar_one())


def read_agents(
    connection: Connection, *, agent_id: str = "", name: str = "", after: str = "", limit: int | None = None
) -> list[AgentRow]:
    """Returns agents by name, all or those asked for; those removed are none."""
    query = select(agents).where(agents.c.remove_time.is_(None)).order_by(agents.c.name)
    if agent_id:
        query = query.where(agents.c.agent_id == agent_id)
    if name:
        query = query.where(agents.c.name == name)
    if after:
        query = query.where(agents.c.name > after)
    if limit is not None:
        query = query.limit(limit)
    return [_agent(row) for row in connection.execute(query)]


def read_names(connection: Connection) -> list[str]:
    """Returns the names of all agents."""
    query = select(agents.c.name).where(agents.c.remove_time.is_(None)).order_by(agents.c.name)
    return list(connection.execute(query).scalars())


def read_holds(connection: Connection, agent_ids: Collection[str]) -> Mapping[str, Hold]:
    """Returns what each agent's attempts hold; agents without any are missing."""
    query = (
        select(
            attempts.c.agent_id,
            attempts.c.run_id,
            attempts.c.number,
            attempts.c.cpu_milli_cores,
            attempts.c.memory_bytes,
            runs.c.pipeline,
        )
        .join(runs, runs.c.id == attempts.c.run_id)
        .where(attempts.c.desired != "FORGET", ~attempts.c.released, attempts.c.agent_id.in_(agent_ids))
        .order_by(attempts.c.run_id)
    )
    holds: dict[str, Hold] = {}
    for row in connection.execute(query):
        held = holds.get(row.agent_id, NOTHING_HELD)
        holds[row.agent_id] = Hold(
            Capacity(
                held.reserved.cpu_milli_cores + row.cpu_milli_cores,
                held.reserved.memory_bytes + row.memory_bytes,
                held.reserved.slots + 1,
            ),
            (*held.attempts, AgentAttempt(row.run_id, row.number, row.pipeline)),
        )
    for agent in _awaited_logs(connection, agent_ids):
        holds[agent.agent_id] = replace(holds.get(agent.agent_id, NOTHING_HELD), logs=agent.logs)
    return holds


def _awaited_logs(connection: Connection, agent_ids: Collection[str]) -> Iterable[Row[Any]]:
    query = (
        select(attempts.c.agent_id, func.count().label("logs"))
        .where(attempts.c.desired != "FORGET", attempts.c.released, attempts.c.agent_id.in_(agent_ids))
        .group_by(attempts.c.agent_id)
    )
    return connection.execute(query)


def _agent(row: Row[Any]) -> AgentRow:
    return AgentRow(
        facts=AgentFacts(
            agent_id=row.agent_id,
            name=row.name,
            instance_id=row.instance_id,
            boot_id=row.boot_id,
            machine_id=row.machine_id,
            version=row.version,
            host_name=row.host_name,
            kernel=row.kernel,
            capacity=Capacity(row.cpu_milli_cores, row.memory_bytes, row.slots),
            labels=row.labels,
            runtime=RuntimeFacts(**{**row.runtime, "python_versions": tuple(row.runtime["python_versions"])}),
        ),
        session_epoch=row.session_epoch,
        revision=row.revision,
        conditions=tuple(Condition(**condition) for condition in row.conditions),
        draining=row.draining,
        drain_time=row.drain_time,
        drain_deadline_time=row.drain_deadline_time,
        quarantine_reason=row.quarantine_reason,
        hello_cluster_id=row.hello_cluster_id,
        accepted_cluster_id=row.accepted_cluster_id,
        doubtful_revision=row.doubtful_revision,
        connect_time=row.connect_time,
        last_seen_time=row.last_seen_time,
    )
