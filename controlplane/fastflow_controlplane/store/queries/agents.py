"""Agents: fenced by their session epoch, listed with what they hold; `registration` has their coming."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastflow.ids import short
from sqlalchemy import Connection, Row, bindparam, select, update

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


NOTHING_HELD = Hold(Capacity(), ())

# Built once: putting a statement together costs SQLAlchemy more than SQLite needs to answer it.
_HEARD = (
    update(agents)
    .where(agents.c.agent_id == bindparam("agent"), agents.c.session_epoch == bindparam("epoch"))
    .values(last_seen_time=bindparam("now"))
)
_RAISE = update(agents).where(agents.c.agent_id == bindparam("agent")).values(revision=agents.c.revision + 1)
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


def raise_revision(connection: Connection, agent_id: str) -> int:
    """Counts one more change of what the agent shall do; returns the new revision."""
    connection.execute(_RAISE, {"agent": agent_id})
    return int(connection.execute(_REVISION, {"agent": agent_id}).scalar_one())


def read_agents(
    connection: Connection, *, agent_id: str = "", name: str = "", after: str = "", limit: int | None = None
) -> list[AgentRow]:
    """Returns agents by name, all or those asked for."""
    query = select(agents).order_by(agents.c.name)
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
    return list(connection.execute(select(agents.c.name).order_by(agents.c.name)).scalars())


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
    return holds


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
        drain_deadline_time=row.drain_deadline_time,
        quarantine_reason=row.quarantine_reason,
        hello_cluster_id=row.hello_cluster_id,
        accepted_cluster_id=row.accepted_cluster_id,
        doubtful_revision=row.doubtful_revision,
        connect_time=row.connect_time,
        last_seen_time=row.last_seen_time,
    )
