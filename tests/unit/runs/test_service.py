"""What callers may ask of runs."""

import asyncio

import pytest
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.agents.model import Capacity
from fastflow_controlplane.errors import AlreadyExists, InvalidArgument, NotFound
from fastflow_controlplane.runs.model import NewRun
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.scheduler.placement import Offer

from tests.unit.runs.conftest import World


async def test_a_run_is_stored_before_the_answer_and_waits_with_its_reason(world: World) -> None:
    run = await world.service.create(NewRun("hello", {"B": "2", "A": "1"}, priority=3))
    assert (run.state, run.priority, run.trigger, run.environment_names) == (RunState.QUEUED, 3, "api", ("A", "B"))
    assert "no agent is connected" in run.placements[0].explanation
    assert await world.service.get(run.id[-8:]) == run


async def test_the_same_request_gives_the_same_run_and_no_second_one(world: World) -> None:
    new = NewRun("hello", {"A": "1"}, request_id="once")
    first, second = await asyncio.gather(world.service.create(new), world.service.create(new))
    assert first.id == second.id == (await world.service.create(new)).id
    assert len((await world.service.list()).runs) == 1


async def test_a_repeated_request_is_answered_though_the_pipeline_is_gone_meanwhile(world: World) -> None:
    new = NewRun("hello", request_id="once")
    first = await world.service.create(new)
    world.catalog.fail_with = NotFound("gone")
    assert (await world.service.create(new)).id == first.id


@pytest.mark.parametrize(
    "other",
    [
        NewRun("other", {"A": "1"}, request_id="once"),
        NewRun("hello", {"A": "2"}, request_id="once"),
        NewRun("hello", {"B": "1"}, request_id="once"),
        NewRun("hello", {}, request_id="once"),
        NewRun("hello", {"A": "1"}, request_id="once", priority=1),
    ],
    ids=["pipeline", "value", "name", "nothing", "priority"],
)
async def test_a_request_id_with_another_content_is_refused(world: World, other: NewRun) -> None:
    world.catalog.metadata["other"] = world.catalog.metadata["hello"]
    await world.service.create(NewRun("hello", {"A": "1"}, request_id="once"))
    with pytest.raises(AlreadyExists, match='request_id "once"'):
        await world.service.create(other)


async def test_everything_that_is_wrong_with_a_request_is_told_at_once(world: World) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.service.create(NewRun("hello", {"1A": "", "FASTFLOW_X": ""}, "x" * 300, 5000, "r" * 300))
    assert {violation.field for violation in caught.value.violations} == {
        "environment[1A]",
        "environment[FASTFLOW_X]",
        "request_id",
        "priority",
        "ref",
    }


async def test_a_caller_that_hangs_up_leaves_a_run_that_is_known_to_placement(world: World) -> None:
    call = asyncio.create_task(world.service.create(NewRun("hello")))
    await world.store.writer._arrived.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await world.store.write(lambda connection: None)
    (run,) = (await world.service.list()).runs
    assert world.scheduler.explain(run.id) != ()


async def test_a_waiting_run_is_cancelled_at_once_and_only_once(world: World) -> None:
    run = await world.service.create(NewRun("hello"))
    cancelled = await world.service.cancel(run.id[-8:])
    assert (cancelled.state, cancelled.placements) == (RunState.CANCELLED, ())
    assert world.scheduler.explain(run.id) == ()
    assert await world.service.cancel(run.id) == cancelled


async def test_pages_show_every_run_once_from_the_newest(world: World) -> None:
    ids = [(await world.service.create(NewRun("hello"))).id for _ in range(5)]
    first = await world.service.list(page_size=2)
    second = await world.service.list(page_size=2, page_token=first.next_page_token)
    third = await world.service.list(page_size=2, page_token=second.next_page_token)
    assert [run.id for page in (first, second, third) for run in page.runs] == sorted(ids, reverse=True)
    assert third.next_page_token == ""
    with pytest.raises(InvalidArgument, match="page_token"):
        await world.service.list(page_token="made up!")


async def test_a_watcher_sees_each_change_and_the_end(world: World) -> None:
    run = await world.service.create(NewRun("hello"))
    seen: list[RunState] = []

    async def watch() -> None:
        seen.extend([view.state async for view in world.service.watch(run.id)])

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await world.service.cancel(run.id)
    await watching
    assert seen[-1] is RunState.CANCELLED
    assert len(seen) == len(set(seen))


async def test_a_watcher_of_a_waiting_run_learns_when_the_reason_changes(world: World) -> None:
    world.limits("large", Limits(1000, 64 * 2**30))
    run = await world.service.create(NewRun("large"))
    watching = world.service.watch(run.id)
    assert "no agent is connected" in (await anext(watching)).placements[0].explanation
    following = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    world.scheduler.agent_changed(Offer("a", "worker-1", Capacity(4000, 8 * 2**30)))
    assert "largest agent worker-1 has 8 GiB" in (await following).placements[0].explanation
    await watching.aclose()


async def test_a_watcher_of_an_ended_run_gets_it_once(world: World) -> None:
    run = await world.service.create(NewRun("hello"))
    await world.service.cancel(run.id)
    assert [view.state async for view in world.service.watch(run.id)] == [RunState.CANCELLED]


async def test_a_run_that_does_not_exist_is_named(world: World) -> None:
    for given in ("01890000-0000-7000-8000-0000deadbeef", "deadbeef"):
        with pytest.raises(NotFound, match=given):
            await world.service.get(given)
        with pytest.raises(NotFound, match=given):
            await world.service.cancel(given)
