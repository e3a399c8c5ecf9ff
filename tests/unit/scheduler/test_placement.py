"""Which agent a run goes to, and what is said where it goes to none."""

import pytest
from fastflow_controlplane.agents.model import Capacity, EnvironmentKey
from fastflow_controlplane.scheduler.explain import explain
from fastflow_controlplane.scheduler.placement import Offer, Shape, choose, obstacle

GIB = 1024**3


def offer(
    name: str,
    cpu: int = 4000,
    memory: int = 8 * GIB,
    *,
    used_cpu: int = 0,
    used_memory: int = 0,
    used_slots: int = 0,
    slots: int = 0,
    blocked: str = "",
    connected: bool = True,
    python: tuple[str, ...] = ("3.11.7",),
    environments: frozenset[EnvironmentKey] = frozenset(),
) -> Offer:
    return Offer(
        agent_id=f"id of {name}",
        name=name,
        capacity=Capacity(cpu, memory, slots),
        reserved=Capacity(used_cpu, used_memory, used_slots),
        blocked=blocked,
        connected=connected,
        python_versions=python,
        environments=environments,
    )


def test_a_run_goes_where_it_leaves_the_least_free() -> None:
    tight, wide = offer("tight", 1000, GIB), offer("wide", 8000, 32 * GIB)
    assert choose(Shape(1000, GIB), [wide, tight]) is tight
    assert choose(Shape(2000, GIB), [wide, tight]) is wide


def test_of_agents_that_are_alike_one_that_has_the_environment_is_chosen() -> None:
    key = ("sha256:code", "3.11")
    cold, warm = offer("a"), offer("b", environments=frozenset({key}))
    assert choose(Shape(1000, GIB), [cold, warm], key) is warm
    assert choose(Shape(1000, GIB), [cold, warm], ("sha256:other", "3.11")) is cold
    assert choose(Shape(1000, GIB), [offer("tight", 1000, GIB), warm], key).name == "tight"
    assert choose(Shape(1000, GIB), [cold, offer("b", environments=frozenset({key}), blocked="no")], key) is cold


def test_capacity_may_be_used_to_the_last_byte_and_not_beyond() -> None:
    full = offer("full", 1000, GIB, used_cpu=500, used_memory=GIB // 2, used_slots=1)
    assert obstacle(Shape(500, GIB // 2), full) == ""
    assert obstacle(Shape(501, GIB // 2), full) != ""
    assert obstacle(Shape(500, GIB // 2 + 1), full) != ""


@pytest.mark.parametrize(
    ("shape", "one", "says"),
    [
        (Shape(1000, 64 * GIB), offer("w"), "needs 64 GiB; w has 8 GiB in all"),
        (Shape(16000, GIB), offer("w"), "needs 16 cores; w has 4 cores in all"),
        (Shape(1000, GIB, "3.13"), offer("w"), "needs Python 3.13; the image of w has 3.11.7"),
        (Shape(1000, GIB), offer("w", slots=2, used_slots=2), "all 2 slots of w are taken"),
        (Shape(1000, 4 * GIB), offer("w", used_memory=6 * GIB), "needs 4 GiB; w has 2 GiB free at present"),
        (Shape(1000, GIB), offer("w", used_cpu=3500), "needs 1 core; w has 0.5 cores free at present"),
        (Shape(1000, GIB), offer("w", blocked="DockerUnavailable: no answer"), "DockerUnavailable: no answer"),
        (Shape(1, 1, excluded=frozenset({"id of w"})), offer("w"), "could not start this run a moment ago"),
    ],
)
def test_an_obstacle_is_said_with_both_sides_of_the_comparison(shape: Shape, one: Offer, says: str) -> None:
    assert says in obstacle(shape, one)


def test_a_minor_python_version_means_any_patch_of_it() -> None:
    assert obstacle(Shape(1, 1, "3.11"), offer("w", python=("3.11.7",))) == ""
    assert obstacle(Shape(1, 1, "3.1"), offer("w", python=("3.11.7",))) != ""


def test_without_an_agent_the_way_to_get_one_is_told() -> None:
    (only,) = explain(Shape(1, 1), [])
    assert only.explanation == "no agent is connected: start one with `fastflow-agent run`"
    away, row = explain(Shape(1, 1), [offer("w", connected=False, blocked="is offline")])
    assert away.explanation == only.explanation
    assert (row.agent, row.fits, row.explanation) == ("w", False, "is offline")


def test_a_run_too_large_for_all_is_told_of_the_largest_agent() -> None:
    summary, *rows = explain(Shape(1000, 64 * GIB), [offer("worker-2"), offer("worker-1", memory=24 * GIB)])
    assert summary.explanation == "needs 64 GiB; largest agent worker-1 has 24 GiB"
    assert [row.agent for row in rows] == ["worker-1", "worker-2"]


def test_an_agent_that_is_gone_is_not_the_largest() -> None:
    summary, *_ = explain(
        Shape(1000, 64 * GIB), [offer("near"), offer("far", memory=99 * GIB, connected=False, blocked="is offline")]
    )
    assert "near" in summary.explanation
