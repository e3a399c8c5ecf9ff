"""Agents that say Hello to a database that knows something else than they do."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fastflow_controlplane.agents.model import AgentFacts, Condition, RuntimeFacts
from fastflow_controlplane.errors import AlreadyExists
from fastflow_controlplane.store import models
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, retention
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.cluster import take_over
from fastflow_controlplane.store.queries.desired import read_doubtful
from fastflow_controlplane.store.queries.registration import Belonging, accept, register
from sqlalchemy import select, update

from tests.contract.rows import NOW, Rows

OURS = "our cluster"
FACTS = AgentFacts(agent_id="id-1", name="w", instance_id="process 1", machine_id="machine 1", host_name="host-1")


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


async def hello(rows: Rows, facts: AgentFacts, *, cluster: str = "", revision: int = 0) -> AgentRow:
    """Registers the agent while nobody is connected."""
    belonging = Belonging(cluster, revision)
    return await rows.store.write(lambda connection: register(connection, facts, [], belonging, OURS, NOW))


async def accepted(rows: Rows, agent_id: str = "id-1") -> None:
    """What an operator does."""
    await rows.store.write(lambda connection: accept(connection, agent_id, OURS))


async def test_an_agent_that_saw_more_than_the_database_is_in_quarantine_until_it_is_accepted(rows: Rows) -> None:
    await hello(rows, FACTS)
    restored = await hello(rows, FACTS, cluster=OURS, revision=41)
    assert "ffctl agents accept w" in restored.quarantine_reason
    assert "older copy" in restored.quarantine_reason
    assert restored.revision == 0
    assert (await hello(rows, FACTS, cluster=OURS, revision=41)).quarantine_reason
    await started(rows)

    await accepted(rows)
    row = await hello(rows, FACTS, cluster=OURS, revision=41)
    assert (row.quarantine_reason, row.revision) == ("", 41)
    await rows.assign(await rows.run(), row)
    assert (await hello(rows, FACTS, cluster=OURS, revision=42)).quarantine_reason == ""


async def test_no_run_is_assigned_to_an_agent_that_came_into_quarantine_meanwhile(rows: Rows) -> None:
    # It would count as assigned before the acceptance, and so as one that may have begun.
    await hello(rows, FACTS)
    assert await rows.store.read(lambda connection: agents.takes_runs(connection, "id-1"))
    await hello(rows, FACTS, cluster=OURS, revision=41)
    assert not await rows.store.read(lambda connection: agents.takes_runs(connection, "id-1"))


async def copied(rows: Rows) -> Mapping[str, Any]:
    """The agent as a copy of the database has it."""
    row = await rows.store.read(lambda connection: connection.execute(select(models.agents)).one())
    return row._mapping


async def put_in_place(rows: Rows, copy: Mapping[str, Any]) -> None:
    """The database is replaced by a copy, and a control plane starts with it."""
    await rows.store.write(lambda connection: connection.execute(update(models.agents).values(**copy)))
    await started(rows)


async def started(rows: Rows) -> None:
    """A control plane takes the database over."""
    await rows.store.write(lambda connection: take_over(connection, NOW))


async def test_a_quarantine_ends_by_itself_with_the_newer_database(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    older = await copied(rows)
    await rows.assign(await rows.run(), agent)
    newer = await copied(rows)
    await put_in_place(rows, older)
    assert (await hello(rows, FACTS, cluster=OURS, revision=1)).quarantine_reason
    await put_in_place(rows, newer)
    assert (await hello(rows, FACTS, cluster=OURS, revision=1)).quarantine_reason == ""


async def test_nothing_that_is_done_to_an_agent_in_quarantine_ends_it(rows: Rows) -> None:
    await hello(rows, FACTS)
    quarantined = await hello(rows, FACTS, cluster=OURS, revision=2)
    for change in (partial(agents.drain, deadline_time=None, now=NOW), agents.resume, agents.raise_revision):
        await rows.store.write(partial(change, agent_id="id-1"))
        again = await hello(rows, FACTS, cluster=OURS, revision=2)
        assert again.quarantine_reason == quarantined.quarantine_reason
    assert again.revision > 2
    # Nor does that the agent has lost its memory of it.
    assert (await hello(rows, FACTS)).quarantine_reason
    assert (await hello(rows, FACTS, cluster=OURS)).quarantine_reason
    await accepted(rows)
    assert (await hello(rows, FACTS, cluster=OURS, revision=2)).quarantine_reason == ""


async def test_what_an_older_copy_does_while_an_agent_is_away_is_nothing_that_the_agent_has_seen(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    older = await copied(rows)
    await rows.assign(await rows.run(), agent)
    await put_in_place(rows, older)
    # It takes what ran there for lost, and is started once more.
    for _ in range(2):
        await rows.store.write(lambda connection: agents.raise_revision(connection, "id-1"))
        await started(rows)
    assert (await hello(rows, FACTS, cluster=OURS, revision=1)).quarantine_reason


async def test_what_changed_while_an_agent_was_away_puts_it_in_no_quarantine(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    await rows.assign(await rows.run(), agent)
    for _ in range(2):
        await started(rows)
        await rows.store.write(lambda connection: agents.raise_revision(connection, "id-1"))
    assert (await hello(rows, FACTS, cluster=OURS, revision=1)).quarantine_reason == ""
    # Told all of it, and then more.
    assert (await hello(rows, FACTS, cluster=OURS, revision=3)).quarantine_reason == ""
    await rows.store.write(lambda connection: agents.raise_revision(connection, "id-1"))
    assert (await hello(rows, FACTS, cluster=OURS, revision=4)).quarantine_reason == ""


async def test_a_member_of_the_cluster_that_the_database_never_saw_is_in_quarantine(rows: Rows) -> None:
    assert (await hello(rows, FACTS, cluster=OURS, revision=3)).quarantine_reason


async def test_an_agent_that_was_removed_long_ago_is_no_stranger(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    run = await rows.run()
    await rows.assign(run, agent)
    await rows.lose(agent)
    await rows.store.write(lambda connection: agents.remove(connection, "id-1", NOW))
    assert await rows.store.write(lambda connection: retention.remove_runs(connection, [run])) == [run]
    assert (await hello(rows, FACTS, cluster=OURS, revision=2)).quarantine_reason == ""


async def test_what_an_agent_reports_is_stored_unless_a_newer_session_took_over(rows: Rows) -> None:
    former, now = await hello(rows, FACTS), await hello(rows, FACTS)
    conditions = [Condition("DISK", "is nearly full", blocks_placement=False, since=NOW)]
    runtime = RuntimeFacts(runtime="docker", python_versions=("3.11", "3.13"))

    async def report(session: int) -> None:
        await rows.store.write(lambda connection: agents.note_report(connection, "id-1", session, conditions, runtime))

    async def stored() -> AgentRow:
        (row,) = await rows.store.read(agents.read_agents)
        return row

    await report(former.session_epoch)
    assert ((await stored()).conditions, (await stored()).facts.runtime) == ((), RuntimeFacts())
    await report(now.session_epoch)
    assert ((await stored()).conditions, (await stored()).facts.runtime) == (tuple(conditions), runtime)

    await rows.store.write(lambda connection: agents.note_seen(connection, {"id-1": NOW + 7, "nobody": NOW}))
    assert (await stored()).last_seen_time == NOW + 7


async def test_an_agent_of_another_cluster_is_in_quarantine_until_it_is_accepted(rows: Rows) -> None:
    row = await hello(rows, FACTS, cluster="theirs", revision=99)
    assert "cluster theirs" in row.quarantine_reason
    await accepted(rows)
    row = await hello(rows, FACTS, cluster="theirs", revision=99)
    assert (row.quarantine_reason, row.accepted_cluster_id, row.revision) == ("", "theirs", 0)
    assert (await hello(rows, FACTS, cluster=OURS)).quarantine_reason == ""
    assert (await hello(rows, FACTS, cluster="a third one")).quarantine_reason


async def test_what_was_assigned_before_an_acceptance_and_is_not_there_may_have_begun(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    before, held = [await rows.assign(await rows.run(), agent) for _ in range(2)]
    await hello(rows, FACTS, cluster=OURS, revision=7)
    await accepted(rows)
    await rows.assign(await rows.run(), agent)
    doubtful = await rows.store.read(lambda connection: read_doubtful(connection, "id-1", [held]))
    assert doubtful == [before]


async def test_an_agent_that_lost_its_data_folder_is_known_again_by_name_and_machine(rows: Rows) -> None:
    agent = await hello(rows, FACTS)
    wiped = replace(FACTS, agent_id="id-2", instance_id="process 2")
    again = await hello(rows, wiped)
    assert (again.facts.agent_id, again.session_epoch) == ("id-1", agent.session_epoch + 1)
    assert again.quarantine_reason == ""


@pytest.mark.parametrize("other", [{"machine_id": "machine 2"}, {"machine_id": ""}, {"name": "v"}], ids=str)
async def test_an_agent_from_elsewhere_or_of_another_name_is_a_new_one(rows: Rows, other: dict[str, str]) -> None:
    await hello(rows, FACTS)
    assert (await hello(rows, replace(FACTS, agent_id="id-2", **other))).facts.agent_id == "id-2"


async def test_a_data_folder_on_another_machine_is_refused_until_it_is_accepted(rows: Rows) -> None:
    await hello(rows, FACTS)
    moved = replace(FACTS, machine_id="machine 2", host_name="host-2")
    with pytest.raises(AlreadyExists, match=r'host "host-1".*ffctl agents accept w'):
        await hello(rows, moved, cluster=OURS)
    assert (await rows.store.read(agents.read_agents))[0].facts.host_name == "host-1"
    await accepted(rows)
    assert (await hello(rows, moved, cluster=OURS)).facts.machine_id == "machine 2"
    with pytest.raises(AlreadyExists):
        await hello(rows, FACTS, cluster=OURS)
