"""The life of attempts in rows: every write compares-and-sets, so nothing late can undo an end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
from fastflow_controlplane.agents.events import (
    AttemptEvent,
    Effects,
    LogLossFound,
    ProvenanceKnown,
    SessionSuperseded,
    SoftLimitCrossed,
    Unrecognized,
)
from fastflow_controlplane.runs.model import AttemptKey, LateResult, LogLoss, Provenance, SoftLimitWarning
from fastflow_controlplane.runs.states import LIVE, TERMINAL, Reason, RunState
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import attempt_events
from fastflow_controlplane.store.queries import attempts, desired, events
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.lost_attempts import LostAttempt
from sqlalchemy import select

from tests.contract.rows import MAX_PLACEMENTS, NOW, Journal, Rows

PREPARING, RUNNING, STOPPING = RunState.PREPARING, RunState.RUNNING, RunState.STOPPING
SUCCEEDED, FAILED, CANCELLED, LOST = RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


def answers(effects: Effects) -> list[tuple[int, str]]:
    return [(ack.sequence, ack.rejection) for ack in effects.acknowledgements]


async def history(store: Store, key: AttemptKey) -> list[tuple[int, str, str]]:
    query = (
        select(attempt_events.c.sequence, attempt_events.c.kind, attempt_events.c.rejection)
        .where(attempt_events.c.run_id == key.run_id, attempt_events.c.attempt == key.attempt)
        .order_by(attempt_events.c.sequence)
    )
    return await store.read(lambda connection: [(row[0], row[1], row[2]) for row in connection.execute(query)])


async def test_a_run_mirrors_its_attempt_from_placement_to_the_end(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    seen = [(await rows.view(key.run_id)).state]
    for event in (
        journal.moved(PREPARING),
        journal.moved(RUNNING),
        journal.ended(FAILED, Reason.EXIT_CODE, exit_code=7),
    ):
        await rows.apply(agent, [event])
        run = await rows.view(key.run_id)
        assert (run.state, run.reason, run.exit_code) == (
            run.attempts[-1].state,
            run.attempts[-1].reason,
            run.attempts[-1].exit_code,
        )
        seen.append(run.state)
    assert seen == [RunState.ASSIGNED, PREPARING, RUNNING, FAILED]
    assert (run.exit_code, run.reason, run.start_time, run.end_time) == (7, Reason.EXIT_CODE, NOW, NOW)


async def test_a_run_that_is_prepared_says_what_it_waits_for_until_it_runs(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    said = []
    for event in (
        journal.moved(PREPARING),
        journal.moved(PREPARING, message="it waits for a place"),
        journal.moved(PREPARING, message="its environment is being prepared"),
        journal.moved(RUNNING),
        journal.moved(PREPARING, message="too late"),
    ):
        effects = await rows.apply(agent, [event])
        assert effects.changed_runs == {key.run_id}, "who watches it is told"
        run = await rows.view(key.run_id)
        assert run.attempts[-1].message == run.message
        said.append(run.message)
    assert said == ["", "it waits for a place", "its environment is being prepared", "", ""]
    assert run.state is RUNNING


async def test_a_run_is_placed_once_however_often_placement_is_tried(rows: Rows) -> None:
    agent, run_id = await rows.agent(), await rows.run()
    keys = await asyncio.gather(*(rows.assign(run_id, agent, f"token {n}") for n in range(5)))
    assert [key is not None for key in keys] == [True, False, False, False, False]
    assert len((await rows.view(run_id)).attempts) == 1


@pytest.mark.parametrize("first", sorted(TERMINAL - {LOST}))
@pytest.mark.parametrize("second", sorted(TERMINAL - {LOST}))
async def test_an_end_is_final(rows: Rows, first: RunState, second: RunState) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING), journal.ended(first, exit_code=1)])
    effects = await rows.apply(agent, [journal.ended(second, exit_code=2)])
    assert answers(effects) == [(3, "ALREADY_TERMINAL")]
    run = await rows.view(key.run_id)
    assert (run.state, run.exit_code) == (first, 1)
    assert await history(rows.store, key) == [
        (1, "state_changed", ""),
        (2, "ended", ""),
        (3, "ended", "ALREADY_TERMINAL"),
    ]


async def test_events_never_go_back(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    effects = await rows.apply(
        agent,
        [journal.moved(RUNNING), journal.moved(PREPARING), journal.moved(RunState.QUEUED), journal.moved(RUNNING)],
    )
    assert answers(effects) == [(4, "")]
    assert (await rows.view(key.run_id)).state is RUNNING
    assert [rejection for *_, rejection in await history(rows.store, key)] == [
        "",
        "BACKWARDS",
        "BACKWARDS",
        "BACKWARDS",
    ]


@pytest.mark.parametrize("state", [PREPARING, RUNNING, RunState.QUEUED, RunState.LOST])
async def test_nothing_ends_in_a_state_that_is_no_end_or_not_the_agents_to_say(rows: Rows, state: RunState) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    assert answers(await rows.apply(agent, [journal.ended(state)])) == [(1, "")]
    assert ((await rows.view(key.run_id)).state, (await rows.newest(key.run_id)).end_time) == (RunState.ASSIGNED, None)
    await rows.apply(agent, [journal.ended(RunState.FAILED, exit_code=3)])
    assert (await rows.view(key.run_id)).exit_code == 3


async def test_a_repeated_batch_is_acknowledged_and_changes_nothing(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    batch = [journal.moved(PREPARING), journal.moved(RUNNING)]
    await rows.apply(agent, batch)
    before = await rows.view(key.run_id)
    effects = await rows.apply(agent, batch)
    assert answers(effects) == [(2, "")]
    assert await rows.view(key.run_id) == before


async def test_a_gap_is_told_and_what_lies_behind_it_waits(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    first, second, third = journal.moved(PREPARING), journal.moved(RUNNING), journal.ended(SUCCEEDED)
    assert answers(await rows.apply(agent, [first, third])) == [(1, "GAP")]
    assert (await rows.view(key.run_id)).state is PREPARING
    assert answers(await rows.apply(agent, [third, second])) == [(3, "")]
    assert (await rows.view(key.run_id)).state is SUCCEEDED


async def test_another_token_another_agent_and_an_unknown_attempt_change_nothing(rows: Rows) -> None:
    agent, key = await rows.assigned()
    stranger = await rows.agent("stranger")
    unknown = AttemptKey(key.run_id, 9, key.claim_token)
    forged = Journal(key).with_token("forged").moved(RUNNING)
    assert answers(await rows.apply(agent, [forged])) == [(1, "BAD_TOKEN")]
    assert answers(await rows.apply(stranger, [Journal(key).moved(RUNNING)])) == [(1, "BAD_TOKEN")]
    assert answers(await rows.apply(agent, [Journal(unknown).moved(RUNNING)])) == [(1, "UNKNOWN_ATTEMPT")]
    assert (await rows.view(key.run_id)).state is RunState.ASSIGNED


async def test_a_superseded_session_writes_nothing_any_more(rows: Rows) -> None:
    agent, key = await rows.assigned()
    await rows.agent()
    with pytest.raises(SessionSuperseded):
        await rows.apply(agent, [Journal(key).moved(RUNNING)])
    assert (await rows.view(key.run_id)).state is RunState.ASSIGNED


async def test_a_run_that_could_not_start_waits_again_with_the_reason(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    effects = await rows.apply(
        agent, [journal.moved(PREPARING), journal.moved(RunState.QUEUED, Reason.IMAGE, "the image is missing")]
    )
    run = await rows.view(key.run_id)
    assert (run.state, run.reason) == (RunState.QUEUED, Reason.IMAGE)
    assert "the image is missing" in run.message
    assert (run.attempts[0].state, run.attempts[0].reason) == (FAILED, Reason.IMAGE)
    (waiting,) = effects.waiting_again
    assert waiting.run_id == key.run_id
    assert waiting.failed_on[agent.facts.agent_id].count == 1


async def test_a_run_that_never_starts_fails_after_a_bounded_number_of_placements(rows: Rows) -> None:
    agent, run_id = await rows.agent(), await rows.run()
    for number in range(1, MAX_PLACEMENTS + 1):
        key = await rows.assign(run_id, agent)
        assert key is not None
        assert key.attempt == number
        effects = await rows.apply(agent, [Journal(key).moved(RunState.QUEUED, message="no room")])
    assert effects.waiting_again == []
    run = await rows.view(run_id)
    assert (run.state, run.reason, run.attempt) == (FAILED, Reason.REJECTED, MAX_PLACEMENTS)
    assert f"on {MAX_PLACEMENTS} placements" in run.message


async def test_a_cancelled_run_that_could_not_start_is_not_placed_again(rows: Rows) -> None:
    agent, key = await rows.assigned()
    await rows.cancel(key.run_id)
    effects = await rows.apply(agent, [Journal(key).moved(RunState.QUEUED)])
    assert effects.waiting_again == []
    assert (await rows.view(key.run_id)).state is CANCELLED


async def test_a_waiting_run_is_cancelled_at_once(rows: Rows) -> None:
    agent, run_id = await rows.agent(), await rows.run()
    done = await rows.cancel(run_id)
    assert (done.changed, done.agent_id) == (True, "")
    assert (await rows.view(run_id)).state is CANCELLED
    assert await rows.assign(run_id, agent) is None


async def test_a_live_run_is_cancelled_by_its_agent(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING)])
    done = await rows.cancel(key.run_id)
    assert (done.changed, done.agent_id) == (True, agent.facts.agent_id)
    assert (await rows.view(key.run_id)).state is RUNNING
    assert await rows.desired(agent) == {key: "STOP"}
    assert not (await rows.cancel(key.run_id)).changed

    await rows.apply(agent, [journal.moved(STOPPING), journal.ended(CANCELLED, Reason.CANCEL_REQUESTED, 143)])
    assert (await rows.view(key.run_id)).state is CANCELLED


async def test_a_cancel_that_loses_to_the_exit_keeps_the_real_result(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING)])
    await rows.cancel(key.run_id)
    await rows.apply(agent, [journal.moved(STOPPING), journal.ended(SUCCEEDED)])
    assert (await rows.view(key.run_id)).state is SUCCEEDED


async def test_a_cancel_after_the_end_changes_nothing(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING), journal.ended(FAILED, Reason.EXIT_CODE, 1)])
    before = await rows.view(key.run_id)
    assert not (await rows.cancel(key.run_id)).changed
    assert await rows.view(key.run_id) == before


@pytest.mark.parametrize("state", [state for state in LIVE if state is not RunState.ASSIGNED])
async def test_a_lost_attempt_is_to_stop_and_its_late_result_is_history(rows: Rows, state: RunState) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(state)])
    assert await rows.lose(agent) == [LostAttempt(key, agent.facts.agent_id, retried=False)]
    assert await rows.desired(agent) == {key: "STOP"}
    run = await rows.view(key.run_id)
    assert (run.state, run.reason) == (LOST, Reason.AGENT_LOST)

    effects = await rows.apply(agent, [journal.ended(SUCCEEDED)])
    assert answers(effects) == [(2, "ALREADY_TERMINAL")]
    run = await rows.view(key.run_id)
    assert run.state is LOST
    assert run.attempts[0].late_result == LateResult(SUCCEEDED, Reason.NONE, "over", 0, None, NOW)
    assert await rows.lose(agent) == []


async def test_capacity_is_held_until_the_container_is_gone_even_of_a_lost_attempt(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING)])
    await rows.lose(agent)
    assert not (await rows.newest(key.run_id)).released
    effects = await rows.apply(agent, [journal.gone()])
    assert effects.released == [key]
    assert (await rows.newest(key.run_id)).released


@pytest.mark.parametrize("last", ["end", "gone", "sealed"])
async def test_an_attempt_is_forgotten_once_it_ended_its_log_is_whole_and_its_container_gone(
    rows: Rows, last: str
) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING)])
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "end": lambda: rows.apply(agent, [journal.ended(SUCCEEDED)]),
        "gone": lambda: rows.apply(agent, [journal.gone()]),
        "sealed": lambda: rows.seal(key),
    }
    final = steps.pop(last)
    for step in steps.values():
        await step()
        assert await rows.desired(agent) == {key: "RUN"}
    await final()
    assert await rows.desired(agent) == {key: "FORGET"}


async def test_revisions_rise_with_each_change_of_what_is_desired(rows: Rows) -> None:
    agent, key = await rows.assigned()
    other = await rows.assign(await rows.run(), agent)
    assert other is not None
    await rows.cancel(key.run_id)

    from fastflow_controlplane.store.queries import desired

    state = await rows.store.read(lambda connection: desired.read_since(connection, agent.facts.agent_id, 1))
    assert [(row.key, row.revision) for row in state.rows] == [(other, 2), (key, 3)]
    assert state.revision == 3


async def test_warnings_losses_and_provenance_are_kept_also_when_they_come_late(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    raised = SoftLimitWarning("MEMORY", 100, 120, NOW, None, 1.0)
    cleared = replace(raised, peak=150, clear_time=NOW + 5, seconds_above=5.5)
    loss = LogLoss("DROPPED", 4096, None, NOW, "the spool was full")
    provenance = Provenance(image="runner", uv_version="0.9", packages=("a==1", "b==2"))
    await rows.apply(
        agent,
        [
            journal.moved(RUNNING),
            journal.event(SoftLimitCrossed(1, raised)),
            journal.ended(SUCCEEDED),
            journal.event(SoftLimitCrossed(1, cleared)),
            journal.event(LogLossFound(loss)),
            journal.event(ProvenanceKnown(provenance)),
        ],
    )
    attempt = await rows.newest(key.run_id)
    assert attempt.warnings == (cleared,)
    assert attempt.log_losses == (loss,)
    assert attempt.provenance == provenance


async def test_a_loss_that_the_control_plane_finds_again_is_stored_once(rows: Rows) -> None:
    _, key = await rows.assigned()
    for offset in (5, 5, 9):
        loss = LogLoss("DISK", offset, None, NOW, "lost")
        await rows.store.write(partial(events.add_own_loss, key=key, loss=loss))
    assert [loss.offset for loss in (await rows.newest(key.run_id)).log_losses] == [5, 9]


async def test_a_fact_of_a_later_protocol_is_acknowledged_and_kept(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    effects = await rows.apply(agent, [journal.event(Unrecognized()), journal.moved(RUNNING)])
    assert answers(effects) == [(2, "")]
    assert (await rows.view(key.run_id)).state is RUNNING


async def test_the_agents_clock_is_a_label_that_can_not_lie_before_the_assignment_or_in_the_future(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal = Journal(key)
    early: AttemptEvent = replace(journal.moved(RUNNING), time=NOW - 10**12)
    late: AttemptEvent = replace(journal.ended(SUCCEEDED), time=NOW + 10**12)
    await rows.apply(agent, [early, late])
    run = await rows.view(key.run_id)
    assert (run.start_time, run.end_time) == (NOW, NOW)


async def test_times_keep_their_order_when_the_agents_clock_or_ours_is_set_back(rows: Rows) -> None:
    agent, key = await rows.assigned()
    journal, hour = Journal(key), 3600 * 10**6
    await rows.apply(agent, [replace(journal.moved(RUNNING), time=NOW + 60 * 10**6)], now=NOW + 60 * 10**6)
    ended = replace(journal.ended(SUCCEEDED), time=NOW + 90 * 10**6 - hour)
    await rows.apply(agent, [ended], now=NOW + 90 * 10**6)
    run = await rows.view(key.run_id)
    assert (run.start_time, run.end_time) == (NOW + 60 * 10**6, NOW + 90 * 10**6)

    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [replace(journal.moved(RUNNING), time=NOW + 10**6)], now=NOW - hour)
    await rows.apply(agent, [replace(journal.ended(SUCCEEDED), time=NOW + 2 * 10**6)], now=NOW - hour)
    run = await rows.view(key.run_id)
    assert run.start_time is not None
    assert run.end_time is not None
    assert NOW <= run.start_time <= run.end_time


async def test_a_wrong_attempt_harms_no_other_in_the_same_batch(rows: Rows) -> None:
    agent, key = await rows.assigned()
    effects = await rows.apply(agent, [Journal(key).with_token("forged").moved(RUNNING), Journal(key).moved(RUNNING)])
    assert answers(effects) == [(1, "BAD_TOKEN"), (1, "")]
    assert (await rows.view(key.run_id)).state is RUNNING


async def drained(rows: Rows) -> tuple[AgentRow, AttemptKey]:
    """A run on an agent that is drained, and is to stop it now."""
    agent, key = await rows.assigned()
    await rows.store.write(lambda connection: attempts.stop_all(connection, agent.facts.agent_id, "DRAIN", 0))
    return agent, key


async def test_what_an_agent_that_knows_no_drain_cancels_before_it_began_waits_again(rows: Rows) -> None:
    agent, key = await drained(rows)
    journal = Journal(key)
    told = [journal.moved(PREPARING), journal.ended(CANCELLED, Reason.CANCEL_REQUESTED, None), journal.gone()]
    effects = await rows.apply(agent, told)
    assert answers(effects) == [(3, "")]
    assert [run.run_id for run in effects.waiting_again] == [key.run_id]
    run = await rows.view(key.run_id)
    assert (run.state, run.reason) == (RunState.QUEUED, Reason.AGENT_DRAINED)
    assert (run.attempts[-1].state, run.attempts[-1].reason) == (CANCELLED, Reason.AGENT_DRAINED)


async def test_what_an_agent_that_knows_no_drain_cancels_says_that_it_was_drained(rows: Rows) -> None:
    agent, key = await drained(rows)
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RUNNING), journal.moved(STOPPING, Reason.CANCEL_REQUESTED)])
    assert (await rows.view(key.run_id)).reason is Reason.AGENT_DRAINED
    await rows.apply(agent, [journal.ended(CANCELLED, Reason.CANCEL_REQUESTED)])
    run = await rows.view(key.run_id)
    assert (run.state, run.reason) == (CANCELLED, Reason.AGENT_DRAINED)
    assert "drained" in run.message


async def test_a_cancel_of_what_a_drain_stops_stays_a_cancel(rows: Rows) -> None:
    agent, key = await drained(rows)
    await rows.cancel(key.run_id)
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(PREPARING), journal.ended(CANCELLED, Reason.CANCEL_REQUESTED, None)])
    run = await rows.view(key.run_id)
    assert (run.state, run.reason) == (CANCELLED, Reason.CANCEL_REQUESTED)


async def test_what_an_agent_shall_do_comes_in_the_order_in_which_that_changed(rows: Rows) -> None:
    agent = await rows.agent()
    first, second, third = sorted([await rows.run() for _ in range(3)])
    for run_id in (third, first, second):
        assert await rows.assign(run_id, agent)
    assert await told_at_once(rows, agent) == [third, first, second]
    await rows.cancel(third)
    assert await told_at_once(rows, agent) == [first, second, third]


async def told_at_once(rows: Rows, agent: AgentRow) -> list[str]:
    """The runs in the full set for a new session of the agent."""
    state = await rows.store.read(lambda connection: desired.read_all(connection, agent.facts.agent_id, ()))
    return [row.key.run_id for row in state.rows]
