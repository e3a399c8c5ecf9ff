"""What an agent has that this database does not know."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.model import ReportedAttempt, UnknownAttempt
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.unknown import PORTION, read_unknown

from tests.contract.rows import Rows


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


def reported(key: AttemptKey, state: RunState = RunState.RUNNING, pipeline: str = "") -> ReportedAttempt:
    return ReportedAttempt(key, state, pipeline)


async def unknown(rows: Rows, has: Sequence[ReportedAttempt], agent_id: str = "id of w") -> list[UnknownAttempt]:
    return await rows.store.read(lambda connection: read_unknown(connection, agent_id=agent_id, reported=has))


async def test_an_attempt_of_a_run_that_is_not_there_is_told_as_the_agent_knows_it(rows: Rows) -> None:
    _, known = await rows.assigned()
    stranger = reported(AttemptKey(new_id(), 2, "token"), RunState.STOPPING, "etl")
    assert await unknown(rows, [reported(known), stranger]) == [
        UnknownAttempt(stranger.key.run_id, 2, "etl", RunState.STOPPING, None)
    ]
    assert await unknown(rows, []) == []


async def test_of_a_run_that_is_there_its_state_is_told(rows: Rows) -> None:
    await rows.agent()
    queued = await rows.run("hello")
    has = reported(AttemptKey(queued, 1, "token"), pipeline="as the agent says")
    assert await unknown(rows, [has]) == [UnknownAttempt(queued, 1, "hello", RunState.RUNNING, RunState.QUEUED)]


async def test_an_attempt_under_another_token_or_on_another_agent_is_another_one(rows: Rows) -> None:
    _, key = await rows.assigned()
    assert [each.run_id for each in await unknown(rows, [reported(replace(key, claim_token="other"))])] == [key.run_id]
    assert [each.run_id for each in await unknown(rows, [reported(key)], "id of another")] == [key.run_id]


async def test_what_had_not_ended_comes_first_however_much_there_is(rows: Rows) -> None:
    has = [reported(AttemptKey(new_id(), 1, ""), RunState.SUCCEEDED) for _ in range(2 * PORTION)]
    lives = reported(AttemptKey(new_id(), 1, ""))
    found = await unknown(rows, [*has, lives])
    assert [each.run_id for each in found] == [lives.key.run_id, *sorted(each.key.run_id for each in has)]
