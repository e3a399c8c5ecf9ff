"""What agents prepare ahead: which environments, on which agents, and what is shown of them."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from fastflow.agent.v1 import gateway_pb2, preheat_pb2
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.metadata import Limits, Metadata
from fastflow.v1 import pipelines_pb2
from fastflow_controlplane.agents.model import AgentFacts, Capacity, EnvironmentResult, RuntimeFacts
from fastflow_controlplane.agents.preheat import WantedEnvironment, wanted_environments
from fastflow_controlplane.agents.preheat_pages import PAGE_ITEMS, preheat_pages, read_results
from fastflow_controlplane.sources.model import PipelineView

from tests.unit.agents.streams import Peer, World

GIB = 1024**3
FACTS = AgentFacts("id", "w", "i", capacity=Capacity(4000, 8 * GIB), runtime=RuntimeFacts(python_versions=("3.11.7",)))


def pipeline(
    code: str, *, requirements: bool = True, header: bool = False, python: str = "", cpu: int = 1000, size: int = 10
) -> PipelineView:
    return PipelineView(
        name=code,
        state=PipelineState.READY,
        problems=(),
        metadata=Metadata(limits=Limits(cpu, GIB), python_version=python),
        metadata_file="",
        has_requirements=requirements,
        source="source",
        path=code,
        tree="",
        commit="",
        bundle_digest=f"sha256:{code}",
        bundle_size=size,
        has_header=header,
    )


def codes(wanted: Iterable[WantedEnvironment]) -> list[str]:
    return [each.bundle_digest.removeprefix("sha256:") for each in wanted]


def test_each_environment_is_wanted_once() -> None:
    found = wanted_environments([pipeline("a"), pipeline("b", requirements=False, header=True), pipeline("a")])
    assert codes(found) == ["a", "b"]


def test_what_can_not_run_is_not_prepared() -> None:
    invalid = replace(pipeline("a"), metadata=None, state=PipelineState.INVALID)
    disabled = replace(pipeline("b"), state=PipelineState.DISABLED)
    unreadable = replace(pipeline("c"), bundle_digest="")
    assert wanted_environments([invalid, disabled, unreadable]) == ()


def test_one_small_pipeline_stands_for_all_that_need_no_packages() -> None:
    large, small = (pipeline(name, requirements=False, size=size) for name, size in (("large", 99), ("small", 9)))
    assert codes(wanted_environments([large, small])) == ["small"]
    assert codes(wanted_environments([large, small, pipeline("a")])) == ["a"]
    assert codes(wanted_environments([large, pipeline("a", python="3.12")])) == ["large", "a"]


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
    (found,) = wanted_environments([wanted])
    assert found.may_run_on(FACTS) is fits


def test_the_least_demanding_of_pipelines_with_the_same_code_counts() -> None:
    (found,) = wanted_environments([pipeline("a", cpu=9000), pipeline("a", cpu=500)])
    assert found.may_run_on(FACTS)


def test_the_set_is_cut_into_pages_and_an_empty_one_is_one_page() -> None:
    wanted = wanted_environments([pipeline(str(number)) for number in range(PAGE_ITEMS + 1)])
    pages = [page.preheat for page in preheat_pages(wanted)]
    assert [(len(page.items), page.last_page) for page in pages] == [(PAGE_ITEMS, False), (1, True)]
    (empty,) = preheat_pages(())
    assert empty.preheat.last_page


def test_results_are_read_and_states_of_a_later_protocol_passed_over() -> None:
    report = preheat_pb2.PreheatReport()
    known = report.results.add(bundle_digest="sha256:a", python_version="3.11").environment
    known.state = pipelines_pb2.ENVIRONMENT_STATE_READY
    known.packages.append("alpha==1.0")
    known.duration.FromSeconds(2)
    report.results.add(bundle_digest="sha256:b").environment.MergeFromString(b"\x10\x63")
    assert read_results(report) == {
        ("sha256:a", "3.11"): EnvironmentResult("READY", duration_usec=2_000_000, packages=("alpha==1.0",))
    }


async def hears_of(world: World, peer: Peer, sets: int) -> list[str]:
    """What is wanted in the last of so many sets."""
    for _ in range(200):
        if len(peer.preheat) == sets:
            return [item.bundle_digest.removeprefix("sha256:") for item in peer.preheat[-1].items]
        await world.clock.advance(0.001)
    raise AssertionError(f"{len(peer.preheat)} sets came, not {sets}")


async def test_an_agent_is_told_what_to_prepare_after_its_desired_state_and_whenever_that_changes(
    world: World,
) -> None:
    async with world.preheating() as preheat:
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == []
        world.pipelines += [pipeline("a"), pipeline("b", python="3.12")]
        preheat.pipelines_changed()
        assert await hears_of(world, peer, 2) == ["a"]
        # Nothing that matters to it: nothing is said.
        world.pipelines[0] = replace(world.pipelines[0], state=PipelineState.READY, path="elsewhere")
        preheat.pipelines_changed()
        await world.clock.advance(1)
        newer = gateway_pb2.RuntimeFacts(python_versions=["3.11.7", "3.12.1"])
        peer.say(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(runtime=newer)))
        assert await hears_of(world, peer, 3) == ["a", "b"]
        peer.say(None)
        await peer.served


async def test_what_an_agent_tells_is_shown_with_the_pipeline(world: World) -> None:
    async with world.preheating() as preheat:
        world.pipelines.append(pipeline("a"))
        preheat.pipelines_changed()
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == ["a"]
        (shown,) = preheat.environments(world.pipelines[0])
        assert (shown.agent, shown.result.state) == ("w", "WAITING")
        failed = pipelines_pb2.PipelineEnvironment(state="ENVIRONMENT_STATE_FAILED", message="no such package")
        result = preheat_pb2.PreheatResult(bundle_digest="sha256:a", environment=failed)
        peer.say(gateway_pb2.ConnectRequest(preheat=preheat_pb2.PreheatReport(results=[result], full=True)))
        await world.clock.advance(1)
        (shown,) = preheat.environments(world.pipelines[0])
        assert (shown.result.state, shown.result.message) == ("FAILED", "no such package")
        assert preheat.environments(pipeline("b", requirements=False)) == []
        peer.say(None)
        await peer.served


async def test_nothing_is_prepared_ahead_where_that_is_off(world: World) -> None:
    world.pipelines.append(pipeline("a"))
    async with world.preheating(enabled=False) as preheat:
        preheat.pipelines_changed()
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == []
        assert preheat.environments(world.pipelines[0]) == []
        peer.say(None)
        await peer.served
