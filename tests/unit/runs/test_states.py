"""The table of states, read as a person would."""

import pytest
from fastflow.v1 import runs_pb2
from fastflow_controlplane.runs.states import LIVE, TERMINAL, TRANSITIONS, Actor, Reason, RunState, allowed, sources


def test_states_and_reasons_are_those_of_the_protocol() -> None:
    states = {name.removeprefix("RUN_STATE_") for name in runs_pb2.RunState.keys()}  # noqa: SIM118 - no mapping
    reasons = {name.removeprefix("REASON_") for name in runs_pb2.Reason.keys()}  # noqa: SIM118 - no mapping
    assert states - {"UNSPECIFIED"} == set(RunState)
    assert reasons - {"UNSPECIFIED"} == set(Reason) - {""}


def test_every_state_is_waiting_live_or_terminal() -> None:
    assert {RunState.QUEUED, *LIVE, *TERMINAL} == set(RunState)


def test_nothing_but_a_retry_leaves_a_terminal_state() -> None:
    assert {mover for (source, _), mover in TRANSITIONS.items() if source in TERMINAL} == {Actor.RETRY}


@pytest.mark.parametrize("target", sorted({*LIVE, RunState.QUEUED} - {RunState.ASSIGNED}))
def test_an_agents_events_never_go_back(target: RunState) -> None:
    order = [RunState.QUEUED, *LIVE]
    if target is RunState.QUEUED:
        assert sources(Actor.AGENT, target) == (RunState.ASSIGNED, RunState.PREPARING)
    else:
        assert all(order.index(source) <= order.index(target) for source in sources(Actor.AGENT, target))


def test_only_what_is_prepared_says_again_what_it_does() -> None:
    assert [state for state in RunState if allowed(Actor.AGENT, state, state)] == [RunState.PREPARING]


def test_an_agents_events_may_skip_states() -> None:
    assert allowed(Actor.AGENT, RunState.ASSIGNED, RunState.RUNNING)
    assert allowed(Actor.AGENT, RunState.RUNNING, RunState.CANCELLED)
    assert allowed(Actor.AGENT, RunState.STOPPING, RunState.SUCCEEDED)


def test_a_program_that_ran_is_never_put_back_into_the_queue_by_its_agent() -> None:
    assert not allowed(Actor.AGENT, RunState.RUNNING, RunState.QUEUED)
    assert not allowed(Actor.AGENT, RunState.STOPPING, RunState.QUEUED)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_only_the_reaper_declares_a_run_lost(state: RunState) -> None:
    assert {actor for actor in Actor if allowed(actor, state, RunState.LOST)} == {Actor.REAPER}


def test_a_live_run_is_not_cancelled_behind_its_agents_back() -> None:
    assert sources(Actor.API, RunState.CANCELLED) == (RunState.QUEUED,)
