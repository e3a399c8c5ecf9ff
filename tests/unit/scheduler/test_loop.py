"""The task that places runs, with a scripted writer of its decisions."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.agents.model import Capacity, EnvironmentKey
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey, FailedPlacements, Held, WaitingRun
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.scheduler.placement import Offer

GIB = 1024**3


class World:
    """A scheduler, and what it decided."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.scheduler = Scheduler(self.clock, Changes(), placement_delay=5.0, priority_aging=300.0)
        self.placed: list[tuple[str, str]] = []
        self.fail_with: Exception | None = None
        self.refuse: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def assign(self, run: WaitingRun, agent_id: str) -> AttemptKey | None:
        await self.gate.wait()
        if self.fail_with:
            raise self.fail_with
        if run.run_id in self.refuse:
            return None
        self.placed.append((run.run_id, agent_id))
        return AttemptKey(run.run_id, 1, "token")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.scheduler.run(self.assign))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def settle(self) -> None:
        await self.clock.advance(0)

    def agent(
        self, name: str, cpu: int = 4000, memory: int = 8 * GIB, blocked: str = "", offline: bool = False
    ) -> None:
        blocked = "is offline" if offline else blocked
        offer = Offer(name, name, Capacity(cpu, memory), ("3.11.7",), blocked, not offline, offline)
        self.scheduler.agent_changed(offer)

    def retry(self, name: str, lost_on: Mapping[int, str]) -> None:
        self.scheduler.add(
            WaitingRun(name, "p", 0, self.clock.now(), Limits(1000, GIB), "", {}, "sha256:code", lost_on)
        )

    def run(
        self, name: str, cpu: int = 1000, memory: int = GIB, failed_on: Mapping[str, FailedPlacements] | None = None
    ) -> None:
        self.scheduler.add(WaitingRun(name, "p", 0, self.clock.now(), Limits(cpu, memory), "", failed_on or {}))

    def why(self, run: str) -> str:
        return " | ".join(row.explanation for row in self.scheduler.explain(run))


async def test_a_run_goes_to_the_agent_that_has_its_packages_where_agents_are_alike() -> None:
    world = World()
    ready = frozenset({("sha256:code", "")})
    for name, environments in (("a", frozenset[EnvironmentKey]()), ("b", ready)):
        world.scheduler.agent_changed(Offer(name, name, Capacity(4000, 8 * GIB), environments=environments))
    async with world.running():
        world.scheduler.add(WaitingRun("run", "p", 0, world.clock.now(), Limits(1000, GIB), "", {}, "sha256:code"))
        await world.settle()
        assert world.placed == [("run", "b")]


async def test_a_run_waits_with_its_reason_until_an_agent_comes() -> None:
    world = World()
    async with world.running():
        world.run("a")
        await world.settle()
        assert "no agent is connected" in world.why("a")
        world.agent("w")
        await world.settle()
        assert world.placed == [("a", "w")]
        assert world.scheduler.explain("a") == ()


async def test_capacity_is_held_until_the_container_is_gone() -> None:
    world = World()
    async with world.running():
        world.agent("w", cpu=1000)
        world.run("a")
        world.run("b")
        await world.settle()
        assert world.placed == [("a", "w")]
        assert "0 cores free" in world.why("b")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        await world.settle()
        assert world.placed == [("a", "w"), ("b", "w")]


async def test_capacity_counts_as_taken_while_the_decision_is_still_being_written() -> None:
    world = World()
    async with world.running():
        world.agent("w", cpu=1000)
        world.gate.clear()
        world.run("a")
        world.run("b")
        await world.settle()
        world.gate.set()
        await world.settle()
        assert world.placed == [("a", "w")]


async def test_what_was_held_before_a_restart_is_held_after_it() -> None:
    world = World()
    world.scheduler.restore([], [Held("old", 1, "w", 1000, GIB)])
    async with world.running():
        world.agent("w", cpu=1000)
        world.run("a")
        await world.settle()
        assert world.placed == []
        world.scheduler.released(AttemptKey("old", 1, "token"))
        await world.settle()
        assert world.placed == [("a", "w")]


async def test_a_blocked_agent_gets_nothing_until_it_is_well() -> None:
    world = World()
    async with world.running():
        world.agent("w", blocked="DockerUnavailable: no answer")
        world.run("a")
        await world.settle()
        assert "DockerUnavailable: no answer" in world.why("a")
        world.agent("w")
        await world.settle()
        assert world.placed == [("a", "w")]


async def test_a_run_that_could_not_start_goes_elsewhere_at_once() -> None:
    world = World()
    async with world.running():
        world.agent("tight", cpu=1000, memory=GIB)
        world.agent("wide")
        world.run("a", failed_on={"tight": FailedPlacements(1, world.clock.now())})
        await world.settle()
        assert world.placed == [("a", "wide")]


async def test_a_run_that_could_not_start_returns_to_the_only_agent_after_a_delay_that_doubles() -> None:
    for count, seconds in ((1, 5.0), (2, 10.0)):
        world = World()
        async with world.running():
            world.agent("w")
            world.run("a", failed_on={"w": FailedPlacements(count, world.clock.now())})
            await world.clock.advance(seconds - 0.1)
            assert world.placed == []
            await world.clock.advance(0.2)
            assert world.placed == [("a", "w")]


async def test_a_decision_that_could_not_be_written_is_taken_anew_and_told() -> None:
    world = World()
    async with world.running():
        world.agent("w", cpu=1000)
        world.fail_with = Unavailable("the disk is full")
        world.run("a")
        await world.settle()
        assert "the disk is full" in world.why("a")
        world.fail_with = None
        await world.clock.advance(2.1)
        assert world.placed == [("a", "w")]


async def test_a_run_cancelled_while_its_placement_is_written_frees_the_capacity() -> None:
    world = World()
    async with world.running():
        world.agent("w", cpu=1000)
        world.refuse.add("a")
        world.gate.clear()
        world.run("a")
        await world.settle()
        world.scheduler.remove("a")
        world.gate.set()
        world.run("b")
        await world.settle()
        assert world.placed == [("b", "w")]


async def test_a_cancelled_run_is_not_tried_again_after_a_failed_write() -> None:
    world = World()
    async with world.running():
        world.agent("w")
        world.fail_with = Unavailable("the disk is full")
        world.gate.clear()
        world.run("a")
        await world.settle()
        world.scheduler.remove("a")
        world.gate.set()
        await world.settle()
        world.fail_with = None
        await world.clock.advance(10)
        assert world.placed == []


async def test_many_runs_are_placed_in_groups_without_overcommitting() -> None:
    world = World()
    async with world.running():
        world.agent("one", cpu=100_000, memory=1000 * GIB)
        world.agent("two", cpu=100_000, memory=1000 * GIB)
        for number in range(500):
            world.run(f"{number:03}")
        for _ in range(20):
            await world.settle()
        assert len(world.placed) == 200
        assert sorted(agent for _, agent in world.placed) == ["one"] * 100 + ["two"] * 100


async def test_a_run_that_comes_back_before_its_placement_was_seen_to_be_written_is_placed_again() -> None:
    world = World()
    async with world.running():
        world.agent("w")
        world.agent("x", cpu=8000)
        world.gate.clear()
        world.run("a")
        await world.settle()
        world.run("a", failed_on={"w": FailedPlacements(1, world.clock.now())})
        world.gate.set()
        await world.settle()
        assert world.placed == [("a", "w"), ("a", "x")]


async def test_a_wall_clock_that_jumped_back_does_not_exclude_an_agent_for_longer() -> None:
    world = World()
    async with world.running():
        world.agent("w")
        an_hour = 3600 * 1_000_000
        world.run("a", failed_on={"w": FailedPlacements(1, world.clock.now() + an_hour)})
        await world.clock.advance(4.9)
        assert world.placed == []
        await world.clock.advance(0.2)
        assert world.placed == [("a", "w")]


async def test_a_retry_goes_elsewhere_while_the_lost_agent_is_out_of_reach() -> None:
    world = World()
    async with world.running():
        world.agent("lost", offline=True)
        world.agent("other")
        world.retry("a", {1: "lost"})
        await world.settle()
        assert world.placed == [("a", "other")]


async def test_a_retry_waits_for_the_end_of_the_lost_attempt_once_its_agent_is_back() -> None:
    world = World()
    async with world.running():
        world.agent("lost", offline=True)
        world.retry("a", {1: "lost"})
        await world.settle()
        assert world.placed == []
        world.agent("lost")
        world.agent("other")
        await world.settle()
        assert world.placed == []
        assert "attempt 1 of this run, which was lost, is being stopped there first" in world.why("a")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        await world.settle()
        assert [run for run, _ in world.placed] == ["a"]


async def test_a_retry_is_placed_when_the_agent_of_the_lost_attempt_goes_away_again() -> None:
    world = World()
    async with world.running():
        world.agent("lost")
        world.retry("a", {1: "lost"})
        world.agent("other")
        await world.settle()
        assert world.placed == []
        world.agent("lost", offline=True)
        await world.settle()
        assert world.placed == [("a", "other")]


async def test_a_retry_is_placed_when_the_agent_of_the_lost_attempt_is_removed() -> None:
    world = World()
    async with world.running():
        world.agent("lost")
        world.retry("a", {1: "lost"})
        world.scheduler.agent_removed("lost")
        assert "no agent is connected" in world.why("a")
        world.agent("other")
        await world.settle()
        assert world.placed == [("a", "other")]


async def test_a_retry_that_was_cancelled_is_not_placed_when_its_lost_attempt_ends() -> None:
    world = World()
    async with world.running():
        world.agent("lost")
        world.retry("a", {1: "lost"})
        world.scheduler.remove("a")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        await world.settle()
        assert world.placed == []
        assert world.scheduler.explain("a") == ()


async def test_a_retry_that_could_not_be_written_goes_by_what_became_of_its_lost_attempt_meanwhile() -> None:
    world = World()
    async with world.running():
        world.agent("lost", offline=True)
        world.agent("other")
        world.fail_with = Unavailable("the disk is full")
        world.retry("a", {1: "lost"})
        await world.settle()
        world.agent("lost")
        await world.clock.advance(2.1)
        assert "attempt 1 of this run, which was lost, is being stopped there first" in world.why("a")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        world.fail_with = None
        await world.clock.advance(2.1)
        assert [run for run, _ in world.placed] == ["a"]


async def test_a_retry_does_not_wait_for_a_lost_attempt_that_ended_between_two_tries_to_write_it() -> None:
    world = World()
    async with world.running():
        world.agent("lost", offline=True)
        world.agent("other")
        world.fail_with = Unavailable("the disk is full")
        world.retry("a", {1: "lost"})
        await world.settle()
        world.agent("lost")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        world.fail_with = None
        await world.clock.advance(2.1)
        assert [run for run, _ in world.placed] == ["a"]


async def test_a_retry_does_not_wait_for_a_lost_attempt_that_ended_while_it_was_written_in_vain() -> None:
    world = World()
    async with world.running():
        world.agent("lost", offline=True)
        world.agent("other")
        world.gate.clear()
        world.fail_with = Unavailable("the disk is full")
        world.retry("a", {1: "lost"})
        await world.settle()
        world.agent("lost")
        world.scheduler.released(AttemptKey("a", 1, "token"))
        world.gate.set()
        await world.settle()
        world.fail_with = None
        await world.clock.advance(2.1)
        assert [run for run, _ in world.placed] == ["a"]
