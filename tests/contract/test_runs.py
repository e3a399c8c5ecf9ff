"""Runs and agents found again: short ids, pages, requests, names, the cluster."""

from dataclasses import replace
from functools import partial

import pytest
from fastflow.pipelines.bundle import Bundle
from fastflow_controlplane.errors import AlreadyExists, InvalidArgument, NotFound
from fastflow_controlplane.runs.model import Rerun
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.sources.model import RunCode
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, requests, runs
from fastflow_controlplane.store.queries.cluster import take_over

from tests.contract.rows import NOW, Rows, new_run

ID = "01890000-0000-7000-8000-0000{:08x}"


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)


async def test_a_short_id_is_the_end_of_the_whole_one(rows: Rows) -> None:
    run_id = await rows.run()
    for given in (run_id, run_id.upper(), run_id.replace("-", ""), run_id[-8:], run_id[-12:], run_id[-17:]):
        assert await rows.store.read(partial(runs.resolve, given=given)) == run_id


async def test_an_ambiguous_short_id_lists_the_candidates(rows: Rows) -> None:
    first = await rows.run(run_id="01890000-0000-7000-8000-aaaa00000001")
    second = await rows.run(run_id="01890000-0000-7000-8000-bbbb00000001")
    with pytest.raises(InvalidArgument) as caught:
        await rows.store.read(lambda connection: runs.resolve(connection, "00000001"))
    assert first in caught.value.message
    assert second in caught.value.message
    assert caught.value.reason == "AMBIGUOUS_RUN_ID"
    assert await rows.store.read(lambda connection: runs.resolve(connection, "a00000001")) == first


@pytest.mark.parametrize("given", ["", "1234567", "not an id", "0" * 33, "' OR 1=1 --"])
async def test_what_can_be_no_id_is_refused_with_the_rule(rows: Rows, given: str) -> None:
    with pytest.raises(InvalidArgument, match="at least its last 8 hexadecimal digits"):
        await rows.store.read(lambda connection: runs.resolve(connection, given))


async def test_an_unknown_run_is_named(rows: Rows) -> None:
    with pytest.raises(NotFound, match="deadbeef"):
        await rows.store.read(lambda connection: runs.resolve(connection, "deadbeef"))


async def test_a_run_is_read_back_as_it_was_stored(rows: Rows) -> None:
    stored = replace(
        new_run(ID.format(1), parameters=b"sealed"),
        environment_names=("DAY",),
        default_environment={"REGION": "north"},
        commit_author="Ada <ada@example.org>",
        commit_subject="Round down",
        ref="topic",
        rerun=Rerun(ID.format(2), latest=False, packages=("numpy==2.1.0",)),
    )
    plain = new_run(ID.format(3))
    for run in (stored, plain):
        await rows.store.write(partial(runs.insert_run, run=run, now=NOW))
        assert await rows.store.read(partial(runs.read_stored, run_id=run.id)) == run
    view = await rows.view(stored.id)
    assert (view.rerun, view.ref, view.commit_subject) == (stored.rerun, "topic", "Round down")
    with pytest.raises(NotFound):
        await rows.store.read(partial(runs.read_stored, run_id=ID.format(4)))


async def test_pages_of_runs_go_from_the_newest_to_the_oldest_without_gap_or_repeat(rows: Rows) -> None:
    ids = [await rows.run(pipeline="even" if n % 2 == 0 else "odd", run_id=ID.format(n)) for n in range(7)]

    async def page(before: str, limit: int, pipeline: str = "", states: tuple[RunState, ...] = ()) -> list[str]:
        found = await rows.store.read(
            lambda connection: runs.list_runs(connection, pipeline=pipeline, states=states, before=before, limit=limit)
        )
        return [run.id for run in found]

    first = await page("", 3)
    await rows.run(run_id=ID.format(99))
    assert first + await page(first[-1], 9) == ids[::-1]
    assert await page("", 9, pipeline="odd") == ids[1::2][::-1]
    assert await page("", 9, states=(RunState.RUNNING,)) == []


async def test_a_request_id_answers_once_and_refuses_another_content(store: Store) -> None:
    await store.write(lambda connection: requests.remember(connection, "KIND", "id", "body", "answer", NOW))
    known = await store.read(lambda connection: requests.answered(connection, "KIND", "id", "body"))
    assert known == "answer"
    assert await store.read(lambda connection: requests.answered(connection, "OTHER", "id", "body")) is None
    with pytest.raises(AlreadyExists, match='"id"'):
        await store.read(lambda connection: requests.answered(connection, "KIND", "id", "other body"))


async def test_each_hello_raises_the_session_epoch(rows: Rows) -> None:
    assert [(await rows.agent()).session_epoch for _ in range(3)] == [1, 2, 3]


async def test_a_name_is_taken_only_while_its_agent_is_connected(rows: Rows) -> None:
    await rows.agent("w", agent_id="00000000-first")
    with pytest.raises(AlreadyExists, match="set agent_name"):
        await rows.agent("w", agent_id="second", connected=["00000000-first"])
    await rows.agent("w", agent_id="second")
    names = await rows.store.read(agents.read_names)
    assert names == ["w", "w~00-first"]


async def test_a_control_plane_that_takes_over_keeps_the_cluster_and_raises_the_epoch(store: Store) -> None:
    first = await store.write(lambda connection: take_over(connection, NOW))
    second = await store.write(lambda connection: take_over(connection, NOW))
    assert first.cluster_id == second.cluster_id
    assert second.leader_epoch == first.leader_epoch + 1


async def test_an_agent_is_shown_with_what_its_attempts_hold(rows: Rows) -> None:
    agent, key = await rows.assigned()
    holds = await rows.store.read(lambda connection: agents.read_holds(connection, [agent.facts.agent_id]))
    hold = holds[agent.facts.agent_id]
    assert (hold.reserved.cpu_milli_cores, hold.reserved.slots) == (1000, 1)
    assert [held.run_id for held in hold.attempts] == [key.run_id]


async def test_the_code_that_runs_were_made_of_is_found_by_its_bundle(store: Store) -> None:
    digests = [f"sha256:{number:064x}" for number in range(3)]
    for number, tree in enumerate(("a" * 40, "")):
        run = replace(new_run(ID.format(number)), bundle_digest=digests[number], bundle_size=7, tree=tree)
        await store.write(lambda connection, run=run: runs.insert_run(connection, run, NOW))
    found = [await store.read(partial(runs.code_with_bundle, digest=digest)) for digest in digests]
    assert found == [RunCode(Bundle(digests[0], 7), "a" * 40), None, None]
