"""A lost run is queued again where its policy says so, in the transaction that writes the loss."""

import pytest
from fastflow_controlplane.runs.model import AttemptKey, LateResult, WaitingRun
from fastflow_controlplane.runs.retry import RetryPolicy
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import runs
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.lost_attempts import LostAttempt

from tests.contract.rows import NOW, Journal, Rows

TWICE = RetryPolicy(frozenset({RunState.LOST}), 2)


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


async def placed(rows: Rows, run_id: str, agent: AgentRow) -> Journal:
    """Places a run and lets it begin."""
    key = await rows.assign(run_id, agent)
    assert key is not None
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RunState.RUNNING)])
    return journal


async def waiting(rows: Rows) -> list[WaitingRun]:
    return await rows.store.read(runs.read_waiting)


async def test_it_waits_again_and_the_lost_attempt_stays_lost(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    journal = await placed(rows, run_id, agent)
    assert await rows.lose(agent) == [LostAttempt(journal.key, agent.facts.agent_id, retried=True)]
    run = await rows.view(run_id)
    assert (run.state, run.reason, run.end_time, run.start_time) == (RunState.QUEUED, Reason.AGENT_LOST, None, None)
    assert run.message == "attempt 1 is lost, away; this is retry 1 of 2"
    assert [attempt.state for attempt in run.attempts] == [RunState.LOST]
    assert await rows.desired(agent) == {journal.key: "STOP"}


async def test_a_retry_is_another_attempt_with_its_own_result(rows: Rows) -> None:
    lost, other = await rows.agent("lost"), await rows.agent("other")
    run_id = await rows.run(retry=TWICE)
    first = await placed(rows, run_id, lost)
    await rows.lose(lost)
    second = await placed(rows, run_id, other)
    assert second.key.attempt == 2
    late = await rows.apply(lost, [first.ended(RunState.FAILED, Reason.EXIT_CODE, 7)])
    assert [ack.rejection for ack in late.acknowledgements] == ["STALE_ATTEMPT"]
    assert (await rows.view(run_id)).state is RunState.RUNNING
    await rows.apply(other, [second.ended(RunState.SUCCEEDED)])
    run = await rows.view(run_id)
    assert (run.state, run.exit_code) == (RunState.SUCCEEDED, 0)
    assert [attempt.late_result for attempt in run.attempts] == [
        LateResult(RunState.FAILED, Reason.EXIT_CODE, "over", 7, None, NOW),
        None,
    ]


async def test_retries_are_bounded(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    for retried in (True, True, False):
        journal = await placed(rows, run_id, agent)
        assert await rows.lose(agent) == [LostAttempt(journal.key, agent.facts.agent_id, retried)]
    run = await rows.view(run_id)
    assert (run.state, run.attempt) == (RunState.LOST, 3)
    assert await waiting(rows) == []


async def test_a_run_that_is_being_cancelled_is_not_started_again(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    journal = await placed(rows, run_id, agent)
    await rows.cancel(run_id)
    assert await rows.lose(agent) == [LostAttempt(journal.key, agent.facts.agent_id, retried=False)]
    assert (await rows.view(run_id)).state is RunState.LOST


async def test_only_what_the_policy_names_is_retried(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    journal = await placed(rows, run_id, agent)
    await rows.apply(agent, [journal.ended(RunState.FAILED, Reason.EXIT_CODE, 1)])
    assert (await rows.view(run_id)).state is RunState.FAILED


async def test_placement_knows_where_a_lost_attempt_may_still_run(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    journal = await placed(rows, run_id, agent)
    await rows.lose(agent)
    assert [run.lost_on for run in await waiting(rows)] == [{1: agent.facts.agent_id}]
    await rows.apply(agent, [journal.gone()])
    assert [run.lost_on for run in await waiting(rows)] == [{}]


async def test_a_run_keeps_its_policy_however_it_is_read(rows: Rows) -> None:
    run_id = await rows.run(retry=TWICE)
    assert (await rows.view(run_id)).retry == TWICE
    stored = await rows.store.read(lambda connection: runs.read_stored(connection, run_id))
    assert stored.retry == TWICE


async def test_a_waiting_retry_is_cancelled_at_once(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    await placed(rows, run_id, agent)
    await rows.lose(agent)
    assert (await rows.cancel(run_id)).changed
    assert (await rows.view(run_id)).state is RunState.CANCELLED


async def test_the_next_attempt_has_another_key(rows: Rows) -> None:
    agent = await rows.agent()
    run_id = await rows.run(retry=TWICE)
    first = await placed(rows, run_id, agent)
    await rows.lose(agent)
    assert await rows.assign(run_id, agent, "other") == AttemptKey(run_id, 2, "other")
    assert first.key == AttemptKey(run_id, 1, "token")
