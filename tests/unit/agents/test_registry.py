"""Who lives, by the control plane's own clock."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.model import (
    AgentFacts,
    AgentState,
    Capacity,
    Condition,
    EnvironmentKey,
    EnvironmentReport,
    EnvironmentResult,
    RuntimeFacts,
)
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.wanted import Before
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import NotFound
from fastflow_controlplane.scheduler.placement import Offer
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.registration import Belonging, register


class Stream:
    """A stream that remembers what it was told."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.told: list[str] = []

    def supersede(self) -> None:
        self.told.append("superseded")

    def cut(self) -> None:
        self.told.append("cut")

    def desired_changed(self) -> None:
        self.told.append("desired changed")

    def preheat_changed(self, before: Before) -> None:
        self.told.append("preheat changed")


@dataclass
class Offers:
    """What the scheduler was told last, by agent."""

    blocked: dict[str, str] = field(default_factory=dict)
    environments: dict[str, frozenset[EnvironmentKey]] = field(default_factory=dict)
    offline: dict[str, bool] = field(default_factory=dict)

    def agent_removed(self, agent_id: str) -> None:
        pass

    def agent_changed(self, offer: Offer) -> None:
        self.blocked[offer.name] = offer.blocked
        self.environments[offer.name] = offer.environments
        self.offline[offer.name] = offer.offline


@dataclass
class World:
    store: Store
    clock: ManualClock
    settings: ControlPlaneSettings
    offers: Offers
    registry: AgentRegistry

    async def connect(self, name: str = "w", agent_id: str = "", revision: int = 0) -> tuple[str, Stream]:
        facts = AgentFacts(agent_id or f"id of {name}", name, new_id(), capacity=Capacity(4000, 2**33))
        row = await self.store.write(
            lambda connection: register(
                connection, facts, self.registry.connected(), Belonging("c", revision), "c", self.clock.now()
            )
        )
        stream = Stream(row.session_epoch)
        self.registry.attach(row, stream)
        return facts.agent_id, stream

    async def state(self, name: str = "w") -> AgentState:
        return (await self.registry.get(name)).state

    async def pass_by(self, seconds: float) -> None:
        """Time passes while liveness is looked at each second."""
        for _ in range(round(seconds)):
            await self.clock.advance(1)
            self.registry.check()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store(f"sqlite:///{tmp_path}/fastflow.db")
    store.open()
    await store.start()
    clock, offers = ManualClock(), Offers()
    settings = ControlPlaneSettings(data_dir=tmp_path, recovery_window=0)
    yield World(store, clock, settings, offers, AgentRegistry(store, clock, settings, offers))
    await store.close()


async def test_nobody_waits_for_what_an_agent_in_quarantine_is_to_stop(world: World) -> None:
    await world.connect()
    assert not world.offers.offline["w"]
    await world.connect(revision=7)
    assert "is in quarantine" in world.offers.blocked["w"]
    assert world.offers.offline["w"]


async def test_what_an_agent_is_to_stop_is_waited_for_until_it_had_the_time_to_dial_in(world: World) -> None:
    await world.connect()
    settings = world.settings.model_copy(update={"recovery_window": 60.0})
    registry = world.registry = AgentRegistry(world.store, world.clock, settings, world.offers)
    await registry.restore()
    assert world.offers.blocked["w"] == "is offline"
    assert not world.offers.offline["w"]
    await world.pass_by(59)
    assert not world.offers.offline["w"]
    await world.pass_by(2)
    assert world.offers.offline["w"]


async def test_an_agent_that_left_after_a_restart_is_waited_for_no_longer(world: World) -> None:
    await world.connect()
    settings = world.settings.model_copy(update={"recovery_window": 60.0})
    registry = world.registry = AgentRegistry(world.store, world.clock, settings, world.offers)
    await registry.restore()
    agent_id, stream = await world.connect()
    registry.detach(agent_id, stream)
    await world.pass_by(11)
    assert world.offers.offline["w"]


async def test_a_superseded_stream_may_end_after_its_agent_was_removed(world: World) -> None:
    agent_id, old = await world.connect()
    _, new = await world.connect()
    world.registry.detach(agent_id, new)
    world.registry.removed(agent_id)
    world.registry.detach(agent_id, old)


async def test_three_missed_heartbeats_make_an_agent_suspect_and_four_cut_its_stream(world: World) -> None:
    agent_id, stream = await world.connect()
    await world.pass_by(14)
    assert await world.state() is AgentState.ACTIVE
    await world.pass_by(1)
    assert await world.state() is AgentState.SUSPECT
    assert "has not been heard of" in world.offers.blocked["w"]
    world.registry.heard(agent_id, stream)
    assert await world.state() is AgentState.ACTIVE
    assert world.offers.blocked["w"] == ""
    await world.pass_by(20)
    assert await world.state() is AgentState.OFFLINE
    assert "cut" in stream.told


async def test_a_broken_stream_makes_an_agent_suspect_at_once_and_offline_later(world: World) -> None:
    agent_id, stream = await world.connect()
    world.registry.detach(agent_id, stream)
    assert await world.state() is AgentState.SUSPECT
    await world.pass_by(10)
    assert await world.state() is AgentState.OFFLINE
    assert world.offers.blocked["w"] == "is offline"
    await world.connect()
    assert await world.state() is AgentState.ACTIVE


async def test_an_agent_is_lost_only_long_after_it_went_offline(world: World) -> None:
    agent_id, stream = await world.connect()
    world.registry.detach(agent_id, stream)
    await world.pass_by(69)
    assert world.registry.lost() == []
    await world.pass_by(2)
    assert [row.facts.agent_id for row in world.registry.lost()] == [agent_id]


async def test_an_agent_is_told_once_it_has_taken_over_the_revision_on_its_present_stream(world: World) -> None:
    agent_id, stream = await world.connect()
    assert not world.registry.is_told(agent_id, 3)
    world.registry.applied(agent_id, stream, 2)
    assert not world.registry.is_told(agent_id, 3)
    world.registry.applied(agent_id, stream, 3)
    assert world.registry.is_told(agent_id, 3)
    _, newer = await world.connect()
    world.registry.applied(agent_id, stream, 9)
    assert not world.registry.is_told(agent_id, 3)
    world.registry.applied(agent_id, newer, 9)
    assert world.registry.is_told(agent_id, 3)


async def test_nobody_waits_to_tell_an_agent_that_is_away_for_long_or_was_removed(world: World) -> None:
    agent_id, stream = await world.connect()
    world.registry.applied(agent_id, stream, 3)
    world.registry.detach(agent_id, stream)
    await world.pass_by(69)
    assert not world.registry.is_told(agent_id, 3)
    await world.pass_by(2)
    assert world.registry.is_told(agent_id, 9)
    assert world.registry.is_told("removed", 9)


async def test_time_in_which_the_control_plane_stood_still_is_no_agents_fault(world: World) -> None:
    world.registry._settings = world.settings.model_copy(update={"recovery_window": 60.0})
    agent_id, stream = await world.connect()
    world.registry.detach(agent_id, stream)
    await world.pass_by(15)
    await world.clock.advance(3600)  # nobody looks: the process was stopped
    world.registry.check()
    assert world.registry.lost() == []
    await world.pass_by(59)
    assert world.registry.lost() == []
    await world.pass_by(2)
    assert world.registry.lost() != []


async def test_who_asks_first_after_the_control_plane_stood_still_hears_of_no_lost_agent(world: World) -> None:
    world.registry._settings = world.settings.model_copy(update={"recovery_window": 60.0})
    agent_id, stream = await world.connect()
    world.registry.detach(agent_id, stream)
    await world.pass_by(65)
    await world.clock.advance(3600)  # nobody looks: the process was stopped
    assert world.registry.lost() == []
    assert not world.registry.is_told(agent_id, 9)
    await world.pass_by(59)
    assert world.registry.lost() == []
    await world.pass_by(2)
    assert world.registry.lost() != []


async def test_time_in_which_nobody_can_be_registered_is_no_agents_fault(world: World) -> None:
    world.registry._settings = world.settings.model_copy(update={"recovery_window": 60.0})
    agent_id, stream = await world.connect()
    world.registry.detach(agent_id, stream)
    world.store.writer.problem = Problem("DISK_FULL", "the disk is full")
    await world.pass_by(200)
    world.store.writer.problem = None
    await world.pass_by(59)
    assert world.registry.lost() == []


async def test_a_newer_stream_takes_over_at_once_and_the_older_ones_end_is_ignored(world: World) -> None:
    agent_id, old = await world.connect()
    _, new = await world.connect()
    assert old.told == ["superseded"]
    world.registry.detach(agent_id, old)
    assert await world.state() is AgentState.ACTIVE
    world.registry.desired_changed(agent_id)
    assert (old.told, new.told) == (["superseded"], ["desired changed"])


async def test_a_condition_that_blocks_keeps_runs_away_and_remembers_since_when(world: World) -> None:
    agent_id, stream = await world.connect()
    condition = Condition("DockerUnavailable", "no answer", blocks_placement=True, since=0)
    harmless = Condition("ClockSkew", "3 s", blocks_placement=False, since=0)
    assert world.registry.report(agent_id, stream, [condition, harmless], None, ["env"])
    assert world.offers.blocked["w"] == "DockerUnavailable: no answer"
    first = (await world.registry.get("w")).conditions
    await world.clock.advance(5)
    assert not world.registry.report(agent_id, stream, [condition, harmless], None, ["env"])
    assert (await world.registry.get("w")).conditions == first
    assert world.registry.report(agent_id, stream, [], None, [])
    assert world.offers.blocked["w"] == ""


async def test_what_an_agent_reported_outlives_a_restart(world: World) -> None:
    agent_id, stream = await world.connect()
    condition = Condition("DiskFull", "/var", blocks_placement=True, since=0)
    world.registry.report(agent_id, stream, [condition], RuntimeFacts(python_versions=("3.12.1",)), [])
    await world.registry.store_report(agent_id, stream)

    restarted = AgentRegistry(world.store, world.clock, world.settings, world.offers)
    await restarted.restore()
    view = await restarted.get("w")
    assert (view.state, view.facts.runtime.python_versions) == (AgentState.OFFLINE, ("3.12.1",))
    assert [known.type for known in view.conditions] == ["DiskFull"]


async def test_an_agent_with_a_new_data_folder_takes_the_name_of_its_former_self(world: World) -> None:
    agent_id, stream = await world.connect("w", "11111111-first")
    world.registry.detach(agent_id, stream)
    await world.connect("w", "22222222-other")
    page = await world.registry.list()
    assert [(view.name, view.facts.agent_id) for view in page.agents] == [
        ("w", "22222222-other"),
        ("w~11-first", "11111111-first"),
    ]


async def test_an_unknown_agent_is_named_with_the_nearest(world: World) -> None:
    await world.connect("worker-1")
    with pytest.raises(NotFound, match='did you mean "worker-1"'):
        await world.registry.get("worker-2")


async def test_agents_are_listed_in_pages(world: World) -> None:
    for name in ("c", "a", "b"):
        await world.connect(name)
    first = await world.registry.list(2)
    second = await world.registry.list(2, first.next_page_token)
    assert [view.name for view in (*first.agents, *second.agents)] == ["a", "b", "c"]
    assert second.next_page_token == ""


async def test_placement_learns_which_environments_are_ready_and_keeps_that_over_a_reconnect(world: World) -> None:
    agent_id, stream = await world.connect()
    one, two, three = (("sha256:" + name, "") for name in ("one", "two", "three"))
    ready, failed = EnvironmentResult("READY"), EnvironmentResult("FAILED", "no such package")
    world.registry.prepared(agent_id, stream, EnvironmentReport({one: ready, two: failed}, full=True))
    assert world.offers.environments["w"] == {one}
    world.registry.prepared(agent_id, stream, EnvironmentReport({two: ready}))
    assert world.offers.environments["w"] == {one, two}
    world.registry.prepared(agent_id, stream, EnvironmentReport({three: ready}, gone=[one, three]))
    assert world.offers.environments["w"] == {two}
    world.registry.prepared(agent_id, stream, EnvironmentReport({one: ready}))
    agent_id, newer = await world.connect()
    assert world.offers.environments["w"] == {one, two}
    world.registry.prepared(agent_id, stream, EnvironmentReport({}, full=True))
    assert world.offers.environments["w"] == {one, two}
    world.registry.prepared(agent_id, newer, EnvironmentReport({three: ready}, full=True))
    assert world.offers.environments["w"] == {three}
    assert [result for _, result in world.registry.environment_results(three)] == [ready]
    world.registry.detach(agent_id, newer)
    assert list(world.registry.environment_results(three)) == []


async def test_a_silent_agent_is_offline_in_time_although_its_stream_is_seen_to_break_late(world: World) -> None:
    agent_id, stream = await world.connect()
    await world.pass_by(15)
    world.registry.detach(agent_id, stream)
    assert await world.state() is AgentState.SUSPECT
    await world.pass_by(4)
    assert await world.state() is AgentState.SUSPECT
    await world.pass_by(1)
    assert await world.state() is AgentState.OFFLINE


async def test_what_it_means_for_runs_that_their_agent_is_away_is_told(world: World) -> None:
    agent_id, stream = await world.connect()
    assert world.registry.trouble(agent_id) == ""
    world.registry.detach(agent_id, stream)
    assert world.registry.trouble(agent_id) == ""
    await world.pass_by(10)
    assert 'agent "w" is out of reach' in world.registry.trouble(agent_id)
    assert "stays away for 60 s loses its runs" in world.registry.trouble(agent_id)
    assert "look whether its host is up" in (await world.registry.get("w")).message


async def test_agents_have_a_moment_after_a_restart_before_they_are_called_out_of_reach(world: World) -> None:
    agent_id, _ = await world.connect()
    restarted = AgentRegistry(world.store, world.clock, world.settings, world.offers)
    await restarted.restore()
    assert restarted.trouble(agent_id) == ""
    await world.clock.advance(10)
    assert "out of reach" in restarted.trouble(agent_id)


async def test_what_it_means_for_runs_that_an_engine_is_away_is_told(world: World) -> None:
    agent_id, stream = await world.connect()
    away = Condition("DockerUnavailable", "The engine can not be reached.", blocks_placement=True, since=1)
    world.registry.report(agent_id, stream, [away], None, [])
    assert world.registry.trouble(agent_id) == (
        'agent "w", DockerUnavailable: The engine can not be reached. '
        "The program goes on, and its end is told once the engine is back"
    )
    world.registry.report(agent_id, stream, [], None, [])
    assert world.registry.trouble(agent_id) == ""
