"""Agents that say Hello: known again, refused, put into quarantine, and accepted out of it by an operator."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from shlex import quote
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from fastflow_controlplane.agents.model import AgentFacts
from fastflow_controlplane.errors import AlreadyExists
from fastflow_controlplane.store.models import agents
from fastflow_controlplane.store.queries.agents import AgentRow, former_name, read_agents

_COPIED = (
    "if that data folder is a copy, stop the agent there, delete the folder (setting data_dir) and start it again with "
    "a name of its own (FASTFLOW_AGENT_NAME)"
)


@dataclass(frozen=True, slots=True)
class Belonging:
    """Where an agent says it belongs: a cluster ("" = none yet), and the highest revision it saw there."""

    cluster_id: str = ""
    revision: int = 0


def register(
    connection: Connection,
    facts: AgentFacts,
    connected: Collection[str],
    belonging: Belonging,
    cluster_id: str,
    now: int,
) -> AgentRow:
    """Stores what an agent says of itself and raises its session epoch; in quarantine where the two contradict.

    `connected` are the agents that have a stream, `cluster_id` is this database's own cluster. An agent without any
    memory that has name and machine of a silent one *is* that one: its data folder was lost, and it gets its id back,
    under which its containers are found. From another machine it is a new agent, and the silent one leaves it the name.
    Raises AlreadyExists where another connected agent has the name, or the id belongs to another machine.
    """
    facts = _known_again(connection, facts, connected, belonging)
    _claim_name(connection, facts, connected)
    known = connection.execute(select(agents).where(agents.c.agent_id == facts.agent_id)).one_or_none()
    if known is not None:
        _check_machine(known, facts)
    values = {
        "name": facts.name,
        "instance_id": facts.instance_id,
        "boot_id": facts.boot_id,
        "machine_id": facts.machine_id,
        "host_name": facts.host_name,
        "kernel": facts.kernel,
        "version": facts.version,
        "labels": dict(facts.labels),
        "cpu_milli_cores": facts.capacity.cpu_milli_cores,
        "memory_bytes": facts.capacity.memory_bytes,
        "slots": facts.capacity.slots,
        "runtime": asdict(facts.runtime),
        "conditions": [],
        "quarantine_reason": _contradiction(known, facts.name, belonging, cluster_id),
        "hello_cluster_id": belonging.cluster_id,
        "hello_revision": belonging.revision,
        "told_revision": None,
        "connect_time": now,
        "last_seen_time": now,
        "message": "",
        "remove_time": None,
    }
    if known is None:
        connection.execute(
            insert(agents).values(agent_id=facts.agent_id, session_epoch=1, revision=0, create_time=now, **values)
        )
    else:
        connection.execute(
            update(agents)
            .where(agents.c.agent_id == facts.agent_id, agents.c.session_epoch == known.session_epoch)
            .values(session_epoch=known.session_epoch + 1, **values)
        )
    return read_agents(connection, agent_id=facts.agent_id)[0]


def accept(connection: Connection, agent_id: str, cluster_id: str) -> None:
    """Lets this database hold: ends a quarantine, and lets the agent come from another machine next time.

    Revisions go on above what the agent saw. An attempt from before then may have begun without this database knowing.
    """
    row = connection.execute(select(agents).where(agents.c.agent_id == agent_id)).one()
    ours = row.hello_cluster_id in ("", cluster_id)
    revision = max(row.revision, row.hello_revision) if ours else row.revision
    accepted: dict[str, Any] = {"machine_id": ""}
    if row.quarantine_reason:
        accepted |= {
            "quarantine_reason": "",
            "revision": revision,
            "told_revision": None,
            "doubtful_revision": revision,
            "accepted_cluster_id": "" if ours else row.hello_cluster_id,
        }
    connection.execute(update(agents).where(agents.c.agent_id == agent_id).values(**accepted))


def _known_again(
    connection: Connection, facts: AgentFacts, connected: Collection[str], belonging: Belonging
) -> AgentFacts:
    """The agent under the id it had before its data folder was lost."""
    if belonging.cluster_id or not facts.machine_id:
        return facts
    known = connection.execute(select(agents.c.agent_id).where(agents.c.agent_id == facts.agent_id)).one_or_none()
    owner = connection.execute(
        select(agents.c.agent_id, agents.c.machine_id).where(agents.c.name == facts.name)
    ).one_or_none()
    if known or owner is None or owner.agent_id in connected or owner.machine_id != facts.machine_id:
        return facts
    return replace(facts, agent_id=owner.agent_id)


def _claim_name(connection: Connection, facts: AgentFacts, connected: Collection[str]) -> None:
    owner = connection.execute(
        select(agents.c.agent_id, agents.c.host_name).where(
            agents.c.name == facts.name, agents.c.agent_id != facts.agent_id
        )
    ).one_or_none()
    if owner is None:
        return
    if owner.agent_id in connected:
        raise AlreadyExists(name_taken(facts.name, owner.host_name), reason="AGENT_NAME_TAKEN")
    left = former_name(facts.name, owner.agent_id)
    connection.execute(update(agents).where(agents.c.agent_id == owner.agent_id).values(name=left))


def _check_machine(known: Row[Any], facts: AgentFacts) -> None:
    if known.machine_id and facts.machine_id and known.machine_id != facts.machine_id:
        raise AlreadyExists(
            f'agent "{known.name}" belongs to another machine, host "{known.host_name}": {_COPIED}; if the folder was '
            f"moved for good, run: ffctl agents accept {quote(known.name)}",
            reason="AGENT_OF_ANOTHER_MACHINE",
        )


def name_taken(name: str, host: str) -> str:
    """Returns what the second agent of one name is told."""
    return (
        f'another agent is connected under the name "{name}", on host "{host}": set agent_name '
        "(FASTFLOW_AGENT_NAME) of this one to another name"
    )


def id_in_use(name: str, host: str) -> str:
    """Returns what the second process under one agent id is told."""
    return f'agent "{name}" is connected already, from host "{host}", with the id of this data folder: {_COPIED}'


def _contradiction(known: Row[Any] | None, name: str, belonging: Belonging, cluster_id: str) -> str:
    """Why the agent must keep still; "" = it need not."""
    accepted = "" if known is None else known.accepted_cluster_id
    if belonging.cluster_id not in ("", cluster_id, accepted):
        return (
            f"it belongs to cluster {belonging.cluster_id}, this control plane to {cluster_id}: connect it to its own; "
            f"or, to take it over, run: ffctl agents accept {quote(name)}"
        )
    if _is_doubted(known, cluster_id) or (belonging.cluster_id != accepted and belonging.revision > _told(known)):
        return (
            "it was told more of what it shall do than the database knows: an older copy of the database was restored. "
            "Put the newer one back; or, if this one is to hold from now on, run: "
            f"ffctl agents accept {quote(name)}"
        )
    return ""


def _is_doubted(known: Row[Any] | None, cluster_id: str) -> bool:
    """Whether this database was found to be an older copy, and nobody has accepted it since.

    What it knows goes on rising, so what its agents say next tells nothing any more.
    """
    return known is not None and bool(known.quarantine_reason) and known.hello_cluster_id in ("", cluster_id)


def _told(known: Row[Any] | None) -> int:
    """The highest revision that this database can have told the agent."""
    if known is None:
        return 0
    return int(known.revision if known.told_revision is None else known.told_revision)
