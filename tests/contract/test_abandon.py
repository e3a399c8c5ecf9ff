"""Runs that an operator gives up: lost at once, whatever their agent does, and what it still tells is history."""

import asyncio
from pathlib import Path

import pytest
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import LateResult
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.retry import RetryPolicy
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.engine import Store

from tests.contract.rows import NOW, Journal, Rows

ONCE = RetryPolicy(frozenset({RunState.LOST}), 1)


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


@pytest.fixture
def reaper(store: Store, tmp_path: Path) -> Reaper:
    clock, changes, settings = ManualClock(), Changes(), ControlPlaneSettings(data_dir=tmp_path)
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    registry = AgentRegistry(store, clock, settings, scheduler)
    return Reaper(store, clock, settings, changes, scheduler, registry, 1)


async def test_the_agent_is_to_stop_what_was_given_up_and_what_it_tells_of_its_end_is_history(
    rows: Rows, reaper: Reaper
) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RunState.RUNNING)])
    assert await reaper.abandon(key.run_id[-8:]) == key.run_id
    assert await rows.desired(agent) == {key: "STOP"}
    late = await rows.apply(agent, [journal.ended(RunState.SUCCEEDED), journal.gone()])
    assert [ack.rejection for ack in late.acknowledgements] == ["ALREADY_TERMINAL", ""]
    run = await rows.view(key.run_id)
    assert (run.state, run.reason, run.exit_code) == (RunState.LOST, Reason.ABANDONED, None)
    assert (await rows.newest(key.run_id)).late_result == LateResult(
        RunState.SUCCEEDED, Reason.NONE, "over", 0, None, NOW
    )


async def test_an_end_that_came_first_stands(rows: Rows, reaper: Reaper) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RunState.RUNNING), journal.ended(RunState.FAILED, Reason.EXIT_CODE, 7)])
    with pytest.raises(FailedPrecondition, match="FAILED"):
        await reaper.abandon(key.run_id)
    assert (await rows.view(key.run_id)).exit_code == 7


async def test_an_end_and_giving_up_at_the_same_time_make_one_end(rows: Rows, reaper: Reaper) -> None:
    for number in range(20):
        agent = await rows.agent(f"w{number}")
        key = await rows.assign(await rows.run(), agent)
        assert key is not None
        journal = Journal(key)
        await rows.apply(agent, [journal.moved(RunState.RUNNING)])
        ending = rows.apply(agent, [journal.ended(RunState.SUCCEEDED)])
        first, second = (ending, reaper.abandon(key.run_id)) if number % 2 else (reaper.abandon(key.run_id), ending)
        results = await asyncio.gather(first, second, return_exceptions=True)
        run = await rows.view(key.run_id)
        refused = any(isinstance(result, FailedPrecondition) for result in results)
        assert run.state is (RunState.SUCCEEDED if refused else RunState.LOST)
        assert (run.attempts[-1].late_result is None) == refused


async def test_a_repeat_gives_up_no_retry(rows: Rows, reaper: Reaper) -> None:
    lost, other = await rows.agent("lost"), await rows.agent("other")
    run_id = await rows.run(retry=ONCE)
    first = await rows.assign(run_id, lost)
    assert first is not None
    await rows.apply(lost, [Journal(first).moved(RunState.RUNNING)])
    await reaper.abandon(run_id, "r1")
    assert (await rows.view(run_id)).state is RunState.QUEUED
    second = await rows.assign(run_id, other)
    assert second is not None
    await rows.apply(other, [Journal(second).moved(RunState.RUNNING)])
    assert await reaper.abandon(run_id, "r1") == run_id
    run = await rows.view(run_id)
    assert (run.state, [attempt.state for attempt in run.attempts]) == (
        RunState.RUNNING,
        [RunState.LOST, RunState.RUNNING],
    )
    await reaper.abandon(run_id, "r2")
    assert (await rows.view(run_id)).state is RunState.LOST
