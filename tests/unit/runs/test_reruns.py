"""Runs that repeat others, and what of them is compared."""

from dataclasses import replace

import pytest
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.agents.events import Fact, ProvenanceKnown, StateChanged
from fastflow_controlplane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from fastflow_controlplane.runs.model import NewRun, Provenance, Rerun, RunView
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.queries import runs

from tests.contract.rows import Journal, Rows
from tests.unit.runs.conftest import World

SECRET_LOOKING = "value-nobody-may-see"
PROVENANCE = Provenance("runner:1", "sha256:1", "0.9", "3.11", ("numpy==2.1.0",))


async def prepare(world: World, run: RunView, provenance: Provenance = PROVENANCE) -> None:
    """Has an agent tell what the run got."""
    rows = Rows(world.store)
    agent = await rows.agent()
    key = await rows.assign(run.id, agent)
    assert key is not None
    journal = Journal(key)
    facts: list[Fact] = [StateChanged(RunState.PREPARING, Reason.NONE, "", ""), ProvenanceKnown(provenance)]
    await rows.apply(agent, [journal.event(fact) for fact in facts])


async def sealed(world: World, run: RunView) -> bytes | None:
    return await world.store.read(lambda connection: runs.read_parameters(connection, run.id))


async def test_a_rerun_has_the_code_limits_and_parameters_of_the_first_though_all_changed_since(world: World) -> None:
    first = await world.service.create(NewRun("hello", {"A": SECRET_LOOKING}, priority=7))
    world.catalog.code = "1"
    world.limits("hello", Limits(250, 2**28))
    again = await world.service.rerun(first.id[-8:])
    for field in ("pipeline", "bundle_digest", "tree", "limits", "environment_names", "priority", "commit_subject"):
        assert getattr(again, field) == getattr(first, field), field
    assert again.id != first.id
    assert again.rerun == Rerun(first.id, latest=False)
    assert await sealed(world, again) == await sealed(world, first)
    assert "no agent is connected" in again.placements[0].explanation


async def test_a_rerun_wants_the_packages_that_the_first_run_had(world: World) -> None:
    first = await world.service.create(NewRun("hello"))
    await prepare(world, first)
    again = await world.service.rerun(first.id)
    assert again.rerun == Rerun(first.id, latest=False, packages=("numpy==2.1.0",))
    third = await world.service.rerun(again.id)
    assert third.rerun == Rerun(again.id, latest=False, packages=("numpy==2.1.0",))


async def test_a_rerun_of_the_latest_has_the_newest_code_and_limits_and_only_the_parameters_of_the_first(
    world: World,
) -> None:
    first = await world.service.create(NewRun("hello", {"A": SECRET_LOOKING}))
    await prepare(world, first)
    world.catalog.code = "1"
    world.limits("hello", Limits(250, 2**28))
    again = await world.service.rerun(first.id, latest=True)
    assert (again.tree, again.limits) == ("tree 1", Limits(250, 2**28))
    assert again.rerun == Rerun(first.id, latest=True)
    assert again.environment_names == ("A",)
    assert await sealed(world, again) == await sealed(world, first)


async def test_a_repeated_request_for_a_rerun_gives_the_same_run_and_another_one_is_refused(world: World) -> None:
    first = await world.service.create(NewRun("hello"))
    again = await world.service.rerun(first.id, request_id="once")
    world.catalog.kept.clear()
    assert (await world.service.rerun(first.id[-8:], request_id="once")).id == again.id
    with pytest.raises(AlreadyExists, match="once"):
        await world.service.rerun(first.id, latest=True, request_id="once")
    assert len((await world.service.list()).runs) == 2


async def test_a_run_whose_code_is_gone_is_not_repeated_but_its_parameters_may_be(world: World) -> None:
    first = await world.service.create(NewRun("hello"))
    world.catalog.kept.clear()
    with pytest.raises(FailedPrecondition, match="--latest"):
        await world.service.rerun(first.id)
    assert (await world.service.rerun(first.id, latest=True)).rerun == Rerun(first.id, latest=True)


async def test_a_rerun_of_no_run_is_told_by_what_is_wrong_with_it(world: World) -> None:
    with pytest.raises(NotFound, match="deadbeef"):
        await world.service.rerun("deadbeef")
    first = await world.service.create(NewRun("hello"))
    with pytest.raises(InvalidArgument, match="request_id"):
        await world.service.rerun(first.id, request_id="x" * 300)


async def test_a_waiting_run_outlives_its_pipeline(world: World) -> None:
    newest = await world.service.create(NewRun("hello"))
    at_ref = await world.service.create(NewRun("hello", ref="topic"))
    repeated = await world.service.rerun(newest.id)
    latest = await world.service.rerun(newest.id, latest=True)
    assert (at_ref.ref, at_ref.commit) == ("topic", "commit at topic")
    world.catalog.metadata.clear()
    await world.clock.advance(3600)
    await world.reaper.tick()
    states = {(await world.service.get(run.id)).state for run in (newest, at_ref, repeated, latest)}
    assert states == {RunState.QUEUED}


async def test_a_run_and_its_repetition_do_not_differ(world: World) -> None:
    first = await world.service.create(NewRun("hello", {"A": SECRET_LOOKING}))
    again = await world.service.rerun(first.id)
    for run in (first, again):
        await prepare(world, run)
    found = await world.service.diff(first.id[-8:], again.id)
    assert (found.a.id, found.b.id) == (first.id, again.id)
    assert found.identical
    assert found.notes == ()


async def test_everything_that_differs_is_told_and_no_value_of_a_parameter(world: World) -> None:
    first = await world.service.create(NewRun("hello", {"A": SECRET_LOOKING, "GONE": SECRET_LOOKING}))
    await prepare(world, first)
    world.catalog.code = "1"
    world.limits("hello", Limits(1000, 2**28))
    second = await world.service.create(NewRun("hello", {"A": "another " + SECRET_LOOKING, "NEW": SECRET_LOOKING}))
    await prepare(world, second, replace(PROVENANCE, packages=("numpy==2.2.0",)))
    found = await world.service.diff(first.id, second.id)
    assert found.code == "- tree 0\n+ tree 1\n"
    assert [(each.name, each.a, each.b) for each in found.packages] == [("numpy", "2.1.0", "2.2.0")]
    assert [(each.name, each.change) for each in found.parameters] == [
        ("A", "VALUE"),
        ("GONE", "REMOVED"),
        ("NEW", "ADDED"),
    ]
    assert [each.field for each in found.values] == ["limits.memory_hard_bytes"]
    assert SECRET_LOOKING not in repr(found)


async def test_code_that_can_not_be_compared_still_differs_and_says_why(world: World) -> None:
    first = await world.service.create(NewRun("hello"))
    world.catalog.code = "1"
    second = await world.service.create(NewRun("hello"))
    world.catalog.fail_with = Unavailable("the disk is away")
    found = await world.service.diff(first.id, second.id)
    assert (found.code, found.identical) == ("", False)
    assert "the disk is away" in found.notes[0]
