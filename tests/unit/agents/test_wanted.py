"""Which environments pipelines need: each once, on agents that may run them, and what changes with a pipeline."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from fastflow.pipelines.discovery import PipelineState
from fastflow_controlplane.agents.wanted import Before, WantedEnvironment, WantedSet, need_of
from fastflow_controlplane.sources.model import PipelineView
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agents.needs import FACTS, GIANT, pipeline, wanted_by


def codes(wanted: Iterable[WantedEnvironment]) -> list[str]:
    return [each.bundle_digest.removeprefix("sha256:") for each in wanted]


def test_each_environment_is_wanted_once() -> None:
    found = wanted_by(pipeline("a"), pipeline("b", requirements=False, header=True), pipeline("a"))
    assert codes(found) == ["a", "b"]


def test_what_can_not_run_is_not_prepared() -> None:
    invalid = replace(pipeline("a"), metadata=None, state=PipelineState.INVALID)
    disabled = replace(pipeline("b"), state=PipelineState.DISABLED)
    unreadable = replace(pipeline("c"), bundle_digest="")
    assert wanted_by(invalid, disabled, unreadable) == ()


def test_one_small_pipeline_stands_for_all_that_need_no_packages() -> None:
    large, small = (pipeline(name, requirements=False, size=size) for name, size in (("large", 99), ("small", 9)))
    assert codes(wanted_by(large, small)) == ["small"]
    assert codes(wanted_by(large, small, pipeline("a"))) == ["a"]
    assert codes(wanted_by(large, pipeline("a", python="3.12"))) == ["large", "a"]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (pipeline("a", python="3.11"), True),
        (pipeline("a", python="3.12"), False),
        (pipeline("a", cpu=4000), True),
        (pipeline("a", cpu=4001), False),
    ],
)
def test_only_agents_that_may_run_it_prepare_it(wanted: PipelineView, fits: bool) -> None:
    (found,) = wanted_by(wanted)
    assert found.may_run_on(FACTS) is fits


def test_the_least_demanding_of_pipelines_with_the_same_code_counts() -> None:
    (found,) = wanted_by(pipeline("a", cpu=9000), pipeline("a", cpu=500))
    assert found.may_run_on(FACTS)


def note(wanted: WantedSet, name: str, needs: PipelineView | None) -> Before:
    return wanted.note(name, need_of(needs) if needs else None)


def test_what_an_agent_has_to_do_besides_and_no_longer_is_its_difference() -> None:
    wanted = WantedSet()
    note(wanted, "a", pipeline("a"))
    before = note(wanted, "a", pipeline("new"))
    assert [each.bundle_digest for each in wanted.difference_on(FACTS, before).items] == ["sha256:new"]
    assert wanted.difference_on(FACTS, before).gone == [("sha256:a", "")]
    before = note(wanted, "a", pipeline("new", cpu=9000))
    assert wanted.difference_on(FACTS, before).gone == [("sha256:new", "")]
    assert wanted.difference_on(GIANT, before).items == wanted.difference_on(GIANT, before).gone == []
    assert note(wanted, "a", replace(pipeline("new", cpu=9000), path="elsewhere")) == {}


@pytest.mark.parametrize("order", [("modest", "greedy"), ("greedy", "modest")])
def test_of_equal_code_the_one_that_asks_for_less_stands_in(order: tuple[str, str]) -> None:
    wanted = WantedSet()
    for name in order:
        note(wanted, name, pipeline("same", requirements=False, cpu={"modest": 500, "greedy": 9000}[name]))
    assert codes(wanted.all_on(FACTS)) == ["same"]


def test_another_stands_in_where_the_smallest_without_packages_goes() -> None:
    wanted = WantedSet()
    for name, size in (("large", 99), ("small", 9), ("middle", 50)):
        note(wanted, name, pipeline(name, requirements=False, size=size))
    assert codes(wanted.all_on(FACTS)) == ["small"]
    note(wanted, "small", pipeline("grown", requirements=False, size=60))
    assert codes(wanted.all_on(FACTS)) == ["middle"]
    note(wanted, "middle", None)
    assert codes(wanted.all_on(FACTS)) == ["grown"]
    note(wanted, "a", pipeline("a"))
    assert codes(wanted.all_on(FACTS)) == ["a"]
    note(wanted, "a", None)
    assert codes(wanted.all_on(FACTS)) == ["grown"]


PIPELINES = st.none() | st.builds(
    lambda code, has_packages, python, cpu: pipeline(
        # The same code has packages wherever it stands.
        f"{code} {has_packages}",
        requirements=has_packages,
        python=python,
        cpu=cpu,
        size=ord(code),
    ),
    st.sampled_from("abcd"),
    st.booleans(),
    st.sampled_from(["", "3.11", "3.12"]),
    st.sampled_from([500, 1000, 9000]),
)


@given(st.lists(st.tuples(st.sampled_from("uvwxyz"), PIPELINES), max_size=30))
def test_whatever_way_pipelines_went_what_is_wanted_rests_on_those_there_are(
    changes: list[tuple[str, PipelineView | None]],
) -> None:
    wanted = WantedSet()
    there: dict[str, PipelineView] = {}
    told = set(codes_and_pythons(wanted.all_on(FACTS)))
    for name, needs in changes:
        difference = wanted.difference_on(FACTS, note(wanted, name, needs))
        told = told - set(difference.gone) | set(codes_and_pythons(difference.items))
        there.pop(name, None)
        if needs is not None:
            there[name] = needs
        assert told == set(codes_and_pythons(wanted.all_on(FACTS)))
    fresh = WantedSet()
    for name, needs in there.items():
        note(fresh, name, needs)
    for facts in (FACTS, GIANT):
        sizes = [
            sorted((each.bundle_size, each.python_version, each.cpu_milli_cores) for each in each_set.all_on(facts))
            for each_set in (wanted, fresh)
        ]
        assert sizes[0] == sizes[1]


def codes_and_pythons(wanted: Iterable[WantedEnvironment]) -> list[tuple[str, str]]:
    return [each.key for each in wanted]
