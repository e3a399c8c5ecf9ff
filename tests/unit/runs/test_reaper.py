"""Runs that nobody else will end."""

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.model import AgentFacts, Capacity
from fastflow_controlplane.runs.model import AttemptKey, NewRun, RunView
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.queries import attempts
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs

from tests.contract.databases import DATABASES
from tests.unit.runs.conftest import World


@pytest.fixture(params=DATABASES)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def live_run(world: World) -> tuple[AgentFacts, RunView]:
    """A run that is placed on an agent which is away; the registry is told of it as after a restart."""
    facts = AgentFacts(new_id(), "w", new_id(), capacity=Capacity(4000, 2**33))
    await world.store.write(lambda connection: register(connection, facts, [], Belonging(), "c", world.clock.now()))
    run = await world.service.create(NewRun("hello"))
    await world.store.write(
        lambda connection: attempts.assign(
            connection, run.id, facts.agent_id, "token", {}, Epochs(0, 1), world.clock.now()
        )
    )
    await world.registry.restore()
    return facts, run


async def pass_by(world: World, seconds: int) -> None:
    """Time passes in which the registry looks each second, as it does while the control plane is not stopped."""
    for _ in range(seconds):
        await world.clock.advance(1)
        world.registry.check()


async def test_runs_of_an_agent_that_stays_away_are_lost(world: World) -> None:
    world.configure(lost_after=60.0, recovery_window=0.0)
    _, run = await live_run(world)
    reaper = world.reaper
    await world.clock.advance(59)
    await reaper.tick()
    assert (await world.service.get(run.id)).state is RunState.ASSIGNED
    await world.clock.advance(2)
    await reaper.tick()
    lost = await world.service.get(run.id)
    assert (lost.state, lost.reason) == (RunState.LOST, Reason.AGENT_LOST)
    assert '"w" was out of reach' in lost.message


async def test_a_cancel_that_an_agent_out_of_reach_does_not_know_yet_is_told(world: World) -> None:
    world.configure(offline_after=10.0)
    _, run = await live_run(world)
    await world.clock.advance(11)
    assert "asked to stop" not in (await world.service.get(run.id)).message
    cancelled = await world.service.cancel(run.id)
    assert cancelled.state is RunState.ASSIGNED
    assert "out of reach" in cancelled.message
    assert cancelled.message.endswith("; the run is asked to stop, and its agent is told so as soon as it is back")


async def test_nothing_is_lost_before_the_recovery_window_is_over(world: World) -> None:
    world.configure(lost_after=1.0, recovery_window=60.0)
    _, run = await live_run(world)
    reaper = world.reaper
    await pass_by(world, 59)
    await reaper.tick()
    assert (await world.service.get(run.id)).state is RunState.ASSIGNED
    await pass_by(world, 2)
    await reaper.tick()
    assert (await world.service.get(run.id)).state is RunState.LOST


async def test_an_agent_that_returns_in_the_last_moment_loses_nothing(world: World) -> None:
    world.configure(lost_after=60.0, recovery_window=0.0)
    facts, run = await live_run(world)
    await world.clock.advance(61)
    assert world.registry.lost() != []
    await world.store.write(lambda connection: register(connection, facts, [], Belonging(), "c", world.clock.now()))
    await world.reaper.tick()
    assert (await world.service.get(run.id)).state is RunState.ASSIGNED


async def test_a_run_placed_in_the_last_moment_on_a_lost_agent_is_found_too(world: World) -> None:
    world.configure(lost_after=60.0, recovery_window=0.0)
    facts, _ = await live_run(world)
    reaper = world.reaper
    await world.clock.advance(61)
    await reaper.tick()
    late = await world.service.create(NewRun("hello"))
    await world.store.write(
        lambda connection: attempts.assign(
            connection, late.id, facts.agent_id, "token", {}, Epochs(0, 1), world.clock.now()
        )
    )
    await world.clock.advance(61)
    await reaper.tick()
    assert (await world.service.get(late.id)).state is RunState.LOST


async def look_on(world: World, reaper: Reaper, seconds: int) -> None:
    """Time passes in which the control plane works."""
    for _ in range(seconds):
        await pass_by(world, 1)
        await reaper.tick()


async def start_anew(world: World) -> Reaper:
    """The control plane begins, as far as waiting runs are concerned."""
    world.configure()
    await world.registry.restore()
    return world.reaper


async def test_a_run_that_waits_past_the_deadline_fails(world: World) -> None:
    world.configure(queue_deadline=100.0)
    reaper = await start_anew(world)
    await look_on(world, reaper, 1)
    run = await world.service.create(NewRun("hello"))
    await look_on(world, reaper, 99)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 12)
    failed = await world.service.get(run.id)
    assert (failed.state, failed.reason) == (RunState.FAILED, Reason.QUEUE_DEADLINE)
    assert world.scheduler.explain(run.id) == ()


async def test_time_on_an_agent_that_could_not_start_it_is_no_waiting(world: World) -> None:
    world.configure(queue_deadline=100.0, lost_after=1000.0)
    reaper = await start_anew(world)
    _, run = await live_run(world)
    await look_on(world, reaper, 90)
    key = AttemptKey(run.id, 1, "token")
    assert await world.store.write(
        lambda connection: attempts.give_back_untold(
            connection, key, Reason.ENVIRONMENT, "no index", Epochs(0, 1), world.clock.now()
        )
    )
    await look_on(world, reaper, 90)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 22)
    assert (await world.service.get(run.id)).reason is Reason.QUEUE_DEADLINE


async def test_a_clock_that_is_set_forward_ends_no_waiting_run_too_early(world: World) -> None:
    world.configure(queue_deadline=300.0)
    reaper = await start_anew(world)
    await look_on(world, reaper, 1)
    run = await world.service.create(NewRun("hello"))
    await look_on(world, reaper, 100)
    world.clock.jump(3600)
    await look_on(world, reaper, 190)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 31)
    assert (await world.service.get(run.id)).reason is Reason.QUEUE_DEADLINE


async def test_a_clock_that_was_set_back_while_nobody_looked_ends_no_waiting_run_too_early(world: World) -> None:
    world.configure(queue_deadline=100.0)
    await look_on(world, await start_anew(world), 200)
    world.clock.jump(-3600)
    reaper = await start_anew(world)
    await look_on(world, reaper, 1)
    run = await world.service.create(NewRun("hello"))
    await look_on(world, reaper, 90)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 21)
    assert (await world.service.get(run.id)).reason is Reason.QUEUE_DEADLINE


async def test_time_without_a_control_plane_is_no_waiting_however_often_it_starts(world: World) -> None:
    world.configure(queue_deadline=300.0, recovery_window=10.0)
    reaper = await start_anew(world)
    await look_on(world, reaper, 1)
    run = await world.service.create(NewRun("hello"))
    await look_on(world, reaper, 60)
    for away in (1000, 20, 3000):
        await world.clock.advance(away)
        reaper = await start_anew(world)
        await look_on(world, reaper, 60)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 100)
    assert (await world.service.get(run.id)).reason is Reason.QUEUE_DEADLINE


async def test_no_run_has_waited_too_long_before_all_agents_could_return(world: World) -> None:
    world.configure(queue_deadline=30.0, recovery_window=60.0)
    reaper = await start_anew(world)
    run = await world.service.create(NewRun("hello"))
    await look_on(world, reaper, 59)
    assert (await world.service.get(run.id)).state is RunState.QUEUED
    await look_on(world, reaper, 12)
    assert (await world.service.get(run.id)).reason is Reason.QUEUE_DEADLINE


async def test_no_clock_makes_a_run_lost(world: World) -> None:
    facts = AgentFacts("id of w", "w", "process", capacity=Capacity(4000, 2**33))
    await world.store.write(lambda connection: register(connection, facts, [], Belonging(), "c", world.clock.now()))
    await world.registry.restore()
    world.clock.jump(24 * 3600)
    await world.reaper.tick()
    assert world.registry.lost() == []


async def test_runs_wait_for_ever_without_a_deadline(world: World) -> None:
    run = await world.service.create(NewRun("hello"))
    await world.clock.advance(10**7)
    await world.reaper.tick()
    assert (await world.service.get(run.id)).state is RunState.QUEUED
