"""A seed is a whole chaos run: who is hurt, when, and what is asked for meanwhile."""

import pytest

from tests.chaos.script import AGENTS, CONTROLPLANE, ENDLESS, KINDS, UNDOES, WHOLE, Act, Script, layer

MINUTES = 10 * 60.0
FIRST_OF_SEED_7 = [
    (0.997, "SUBMIT", "s7-1"),
    (1.047, "SUBMIT", "s7-1"),
    (1.812, "SUBMIT", "s7-2"),
    (2.024, "CUT", "plain-2"),
    (2.727, "CANCEL", "s7-1"),
]


@pytest.fixture(scope="module", params=[1, 2, 3])
def script(request: pytest.FixtureRequest) -> Script:
    return Script.of(request.param, MINUTES)


def test_the_same_seed_is_the_same_script_and_another_is_another(script: Script) -> None:
    assert Script.of(script.seed, MINUTES) == script
    assert Script.of(script.seed + 1, MINUTES).steps != script.steps


def test_the_script_of_a_seed_stays_the_same_from_version_to_version() -> None:
    first = [(round(step.at, 3), str(step.act), step.target) for step in Script.of(7, 60.0).steps[:5]]
    assert first == FIRST_OF_SEED_7


def test_everything_that_can_happen_happens(script: Script) -> None:
    assert {step.act for step in script.steps} == set(Act)
    assert {step.target for step in script.steps if step.act is Act.KILL} == {CONTROLPLANE, *AGENTS}


def test_hundreds_of_runs_are_asked_for_some_of_them_twice(script: Script) -> None:
    requests = [step.target for step in script.steps if step.act is Act.SUBMIT]
    assert len(set(requests)) > 300
    assert len(requests) > len(set(requests)) + 50


def test_each_outage_ends_and_no_program_is_in_two_of_them_at_once(script: Script) -> None:
    hurt: dict[tuple[str, str], Act] = {}
    for step in script.steps:
        place = step.target, layer(step.act)
        if step.act in UNDOES:
            assert place not in hurt
            hurt[place] = UNDOES[step.act]
        elif step.act in UNDOES.values():
            assert hurt.pop(place) is step.act
    assert not hurt
    assert all(step.at <= MINUTES for step in script.steps if step.act in UNDOES.values())


def test_what_does_not_end_by_itself_is_cancelled(script: Script) -> None:
    cancelled = {step.target for step in script.steps if step.act is Act.CANCEL}
    assert {key for key, kind in script.keys().items() if kind in ENDLESS} <= cancelled


@pytest.mark.parametrize("seed", range(1, 30))
def test_a_short_script_too_has_a_run_of_each_kind_that_is_not_just_cancelled(seed: int) -> None:
    script = Script.of(seed, 60.0)
    cancelled = {step.target for step in script.steps if step.act is Act.CANCEL}
    seen = {step.kind for step in script.steps if step.act is Act.SUBMIT and step.target not in cancelled}
    assert seen | ENDLESS == set(KINDS)
    assert {kind for key, kind in script.keys().items() if key in cancelled} >= ENDLESS


def test_agents_are_drained_without_a_deadline_with_one_and_at_once(script: Script) -> None:
    for agent in AGENTS:
        drains = [step.deadline for step in script.steps if (step.act, step.target) == (Act.DRAIN, agent)]
        assert None in drains
        assert 0.0 in drains
        assert any(drains)


def test_at_the_end_each_agent_gets_a_run_that_takes_all_of_it(script: Script) -> None:
    asked = [step.target for step in script.filling if step.act is Act.SUBMIT]
    assert {script.keys()[key] for key in asked} == {WHOLE}
    assert len(set(asked)) == len(AGENTS)
    assert [step.target for step in script.filling if step.act is Act.CANCEL] == asked
