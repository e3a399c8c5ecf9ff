"""What agents prepare ahead: what they are told, and what is shown of it."""

from dataclasses import replace

from fastflow.agent.v1 import gateway_pb2, preheat_pb2
from fastflow.protocol import PREHEAT_DIFFERENCES
from fastflow.v1 import pipelines_pb2
from fastflow_controlplane.agents.model import EnvironmentReport, EnvironmentResult
from fastflow_controlplane.agents.preheat_pages import PAGE_ITEMS, difference_pages, full_pages, read_report
from fastflow_controlplane.agents.wanted import Difference
from fastflow_controlplane.sources.model import Changes

from tests.unit.agents.needs import pipeline, wanted_by
from tests.unit.agents.streams import Peer, World


def test_the_set_is_cut_into_pages_and_an_empty_one_is_one_page() -> None:
    wanted = wanted_by(*(pipeline(str(number)) for number in range(PAGE_ITEMS + 1)))
    pages = list(full_pages(wanted))
    assert [(len(page.items), page.last_page) for page in pages] == [(PAGE_ITEMS, False), (1, True)]
    (empty,) = full_pages(())
    assert empty.last_page


def test_a_difference_is_cut_into_pages_and_none_is_no_page() -> None:
    wanted = wanted_by(*(pipeline(str(number)) for number in range(PAGE_ITEMS + 1)))
    pages = list(difference_pages(Difference(wanted, [("sha256:gone", "3.11")])))
    assert [(len(page.items), len(page.gone)) for page in pages] == [(PAGE_ITEMS, 1), (1, 0)]
    assert all(page.difference and page.last_page for page in pages)
    assert list(difference_pages(Difference([], []))) == []


def test_results_are_read_and_states_of_a_later_protocol_passed_over() -> None:
    report = preheat_pb2.PreheatReport()
    known = report.results.add(bundle_digest="sha256:a", python_version="3.11").environment
    known.state = pipelines_pb2.ENVIRONMENT_STATE_READY
    known.packages.append("alpha==1.0")
    known.duration.FromSeconds(2)
    report.results.add(bundle_digest="sha256:b").environment.MergeFromString(b"\x10\x63")
    report.gone.add(bundle_digest="sha256:c", python_version="3.12")
    known = EnvironmentResult("READY", duration_usec=2_000_000, packages=("alpha==1.0",))
    assert read_report(report) == EnvironmentReport({("sha256:a", "3.11"): known}, gone=[("sha256:c", "3.12")])


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
        world.pipelines |= {"a": pipeline("a"), "b": pipeline("b", python="3.12")}
        preheat.pipelines_changed(Changes(added=("a", "b")))
        assert await hears_of(world, peer, 2) == ["a"]
        # Nothing that matters to it: nothing is said.
        world.pipelines["a"] = replace(world.pipelines["a"], path="elsewhere")
        preheat.pipelines_changed(Changes(changed=("a",)))
        await world.clock.advance(1)
        newer = gateway_pb2.RuntimeFacts(python_versions=["3.11.7", "3.12.1"])
        peer.say(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(runtime=newer)))
        assert await hears_of(world, peer, 3) == ["a", "b"]
        peer.say(None)
        await peer.served


async def test_an_agent_that_can_follow_is_told_differences(world: World) -> None:
    world.pipelines |= {"a": pipeline("a"), "b": pipeline("b")}
    async with world.preheating() as preheat:
        preheat.pipelines_changed(Changes(added=("a", "b")))
        peer = world.dial()
        await peer.greets(PREHEAT_DIFFERENCES)
        assert await hears_of(world, peer, 1) == ["a", "b"]
        world.pipelines["a"] = pipeline("new")
        preheat.pipelines_changed(Changes(changed=("a",)))
        assert await hears_of(world, peer, 2) == ["new"]
        page = peer.preheat[-1]
        assert ([key.bundle_digest for key in page.gone], page.difference) == (["sha256:a"], True)
        # Of what it can not run it is told nothing, until it can.
        world.pipelines["b"] = pipeline("b", python="3.12")
        preheat.pipelines_changed(Changes(changed=("b",)))
        assert await hears_of(world, peer, 3) == []
        newer = gateway_pb2.RuntimeFacts(python_versions=["3.11.7", "3.12.1"])
        peer.say(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(runtime=newer)))
        assert await hears_of(world, peer, 4) == ["new", "b"]
        assert not peer.preheat[-1].difference
        peer.say(None)
        await peer.served


async def test_what_is_to_be_prepared_keeps_the_order_of_its_pipelines(world: World) -> None:
    names = [f"p{number}" for number in range(20)]
    world.pipelines |= {name: pipeline(name) for name in names}
    async with world.preheating() as preheat:
        preheat.pipelines_changed(Changes(added=tuple(names)))
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == names
        peer.say(None)
        await peer.served


async def test_only_pipelines_that_changed_are_looked_at(world: World) -> None:
    world.pipelines |= {"a": pipeline("a"), "b": pipeline("b")}
    async with world.preheating() as preheat:
        preheat.pipelines_changed(Changes(added=("a", "b")))
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == ["a", "b"]
        # Nobody said so of "b".
        world.pipelines |= {"a": pipeline("new"), "b": pipeline("unseen")}
        preheat.pipelines_changed(Changes(changed=("a",)))
        assert await hears_of(world, peer, 2) == ["b", "new"]
        del world.pipelines["b"]
        preheat.pipelines_changed(Changes(removed=("b",)))
        assert await hears_of(world, peer, 3) == ["new"]
        peer.say(None)
        await peer.served


async def test_what_an_agent_tells_is_shown_with_the_pipeline(world: World) -> None:
    async with world.preheating() as preheat:
        world.pipelines["a"] = pipeline("a")
        preheat.pipelines_changed(Changes(added=("a",)))
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == ["a"]
        (shown,) = preheat.environments(world.pipelines["a"])
        assert (shown.agent, shown.result.state) == ("w", "WAITING")
        assert preheat.counts(world.pipelines["a"]) == {}
        failed = pipelines_pb2.PipelineEnvironment(state="ENVIRONMENT_STATE_FAILED", message="no such package")
        result = preheat_pb2.PreheatResult(bundle_digest="sha256:a", environment=failed)
        peer.say(gateway_pb2.ConnectRequest(preheat=preheat_pb2.PreheatReport(results=[result], full=True)))
        await world.clock.advance(1)
        (shown,) = preheat.environments(world.pipelines["a"])
        assert (shown.result.state, shown.result.message) == ("FAILED", "no such package")
        assert preheat.counts(world.pipelines["a"]) == {"FAILED": 1}
        assert preheat.environments(pipeline("b", requirements=False)) == []
        assert preheat.counts(pipeline("b", requirements=False)) is None
        peer.say(None)
        await peer.served


async def test_an_agent_that_is_away_is_not_counted(world: World) -> None:
    async with world.preheating() as preheat:
        world.pipelines["a"] = pipeline("a")
        preheat.pipelines_changed(Changes(added=("a",)))
        peer = world.dial()
        await peer.greets()
        ready = pipelines_pb2.PipelineEnvironment(state="ENVIRONMENT_STATE_READY")
        result = preheat_pb2.PreheatResult(bundle_digest="sha256:a", environment=ready)
        peer.say(gateway_pb2.ConnectRequest(preheat=preheat_pb2.PreheatReport(results=[result], full=True)))
        await world.clock.advance(1)
        assert preheat.counts(world.pipelines["a"]) == {"READY": 1}
        peer.say(None)
        await peer.served
        assert preheat.counts(world.pipelines["a"]) == {}


async def test_nothing_is_prepared_ahead_where_that_is_off(world: World) -> None:
    world.pipelines["a"] = pipeline("a")
    async with world.preheating(enabled=False) as preheat:
        preheat.pipelines_changed(Changes(added=("a",)))
        peer = world.dial()
        await peer.greets()
        assert await hears_of(world, peer, 1) == []
        assert preheat.environments(world.pipelines["a"]) == []
        assert preheat.counts(world.pipelines["a"]) == {}
        peer.say(None)
        await peer.served
