"""What retention reads and removes, in rows; on every database."""

from functools import partial

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.logs.retention import StoredLog
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import attempt_events, attempts, run_parameters
from fastflow_controlplane.store.queries import agents, requests, retention
from fastflow_controlplane.store.queries.retention import WHOLE_RUN
from sqlalchemy import select

from tests.contract.rows import NOW, Journal, Rows


async def settled(rows: Rows, pipeline: str = "hello") -> AttemptKey:
    """A run that ended with a log of 7 bytes, and is to be forgotten by its agent."""
    agent = await rows.agent()
    key = await rows.assign(await rows.run(pipeline, parameters=b"sealed"), agent)
    assert key is not None
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RunState.RUNNING), journal.ended(RunState.SUCCEEDED), journal.gone()])
    assert await rows.seal(key)
    return key


async def test_the_newest_run_of_each_pipeline_is_found(store: Store) -> None:
    rows = Rows(store)
    newest = {name: max([await rows.run(name) for _ in range(3)]) for name in ("a", "b", "ü")}
    assert await store.read(retention.read_newest) == newest


async def test_runs_are_read_oldest_first_from_behind_one_on(store: Store) -> None:
    rows = Rows(store)
    ids = sorted([await rows.run() for _ in range(4)])
    found = await store.read(partial(retention.read_oldest, pipeline="hello", after=ids[0], limit=2))
    assert [run.id for run in found] == ids[1:3]
    assert await store.read(partial(retention.read_first_beyond, pipeline="hello", count=3)) == ids[0]
    assert await store.read(partial(retention.read_first_beyond, pipeline="hello", count=4)) == ""


async def test_a_settled_run_is_removed_with_its_rows_and_its_logs_are_due(store: Store) -> None:
    rows = Rows(store)
    key, live = await settled(rows), await rows.run("other")
    (before,) = await store.read(partial(retention.read_oldest, pipeline="hello", after="", limit=1))
    assert [attempt.settled for attempt in before.attempts] == [True]
    assert await store.write(partial(retention.remove_runs, run_ids=[key.run_id, live])) == [key.run_id]
    assert await store.read(retention.read_newest) == {"other": live}
    for table in (attempts, attempt_events, run_parameters):
        assert await store.read(lambda each, table=table: each.execute(select(table.c.run_id)).all()) == []
    due = [LogKey(key.run_id, WHOLE_RUN)]
    assert await store.read(partial(retention.read_due, after=LogKey("", 0), limit=9)) == due
    await store.write(partial(retention.forget_due, keys=due))
    assert await store.read(partial(retention.read_due, after=LogKey("", 0), limit=9)) == []


async def test_a_run_whose_agent_may_not_forget_it_yet_is_not_removed(store: Store) -> None:
    rows = Rows(store)
    agent, key = await rows.assigned()
    journal = Journal(key)
    await rows.apply(agent, [journal.moved(RunState.RUNNING), journal.ended(RunState.SUCCEEDED)])
    assert await store.write(partial(retention.remove_runs, run_ids=[key.run_id])) == []


async def test_a_run_that_was_lost_with_an_agent_that_an_operator_removed_can_be_removed(store: Store) -> None:
    rows = Rows(store)
    agent, key = await rows.assigned()
    await rows.lose(agent)
    remove = partial(retention.remove_runs, run_ids=[key.run_id])
    assert await store.write(remove) == []
    await store.write(lambda each: agents.remove(each, agent.facts.agent_id, NOW))
    (run,) = await store.read(partial(retention.read_oldest, pipeline="hello", after="", limit=9))
    assert [attempt.settled for attempt in run.attempts] == [True]
    assert await store.write(remove) == [key.run_id]


async def test_the_log_of_an_attempt_is_looked_at_until_its_agent_delivered_it(store: Store) -> None:
    rows = Rows(store)
    agent, live = await rows.assigned()
    unsealed = partial(retention.read_unsealed_logs, after=LogKey("", 0), limit=9)
    assert await store.read(unsealed) == []
    await rows.lose(agent)
    log = LogKey(live.run_id, 1)
    assert await store.read(unsealed) == [StoredLog(log, 0)]
    etag = (await rows.view(live.run_id)).etag
    await store.write(partial(retention.note_log_bytes, logs=[StoredLog(log, 5)]))
    assert await store.read(unsealed) == [StoredLog(log, 5)]
    assert await store.read(retention.read_log_bytes) == 5
    assert (await rows.view(live.run_id)).etag != etag
    await rows.seal(live)
    # Looked at before, noted after.
    await store.write(partial(retention.note_log_bytes, logs=[StoredLog(log, 6)]))
    assert await store.read(unsealed) == []
    assert (await rows.newest(live.run_id)).log_bytes == 7


@pytest.mark.parametrize("gone", ["before", "after"])
async def test_an_agent_that_returns_forgets_what_was_lost_with_it_though_the_log_was_removed(
    store: Store, gone: str
) -> None:
    rows = Rows(store)
    agent, key = await rows.assigned()
    journal, log = Journal(key), LogKey(key.run_id, 1)
    await rows.apply(agent, [journal.moved(RunState.RUNNING)])
    await rows.lose(agent)
    if gone == "before":
        await rows.apply(agent, [journal.gone()])
    remove = partial(retention.remove_logs, keys=[log], setting="s", now=NOW)
    assert await store.write(remove) == []
    await store.write(lambda each: agents.remove(each, agent.facts.agent_id, NOW))
    assert [
        stored.key for stored in await store.read(partial(retention.read_oldest_logs, after=LogKey("", 0), limit=9))
    ] == [log]
    assert await store.write(remove) == [log]
    back = await rows.agent()
    if gone == "after":
        await rows.apply(back, [journal.gone()])
    assert await rows.desired(back) == {key: "FORGET"}


async def test_logs_are_summed_and_removed_once_and_their_run_changes_its_etag(store: Store) -> None:
    rows = Rows(store)
    keys = [LogKey(key.run_id, key.attempt) for key in [await settled(rows) for _ in range(3)]]
    keys.sort()
    assert await store.read(retention.read_log_bytes) == 21
    found = await store.read(partial(retention.read_oldest_logs, after=keys[0], limit=9))
    assert [(log.key, log.bytes) for log in found] == [(key, 7) for key in keys[1:]]
    etag = (await rows.view(keys[0].run_id)).etag
    for removed in ([keys[0]], []):
        assert await store.write(partial(retention.remove_logs, keys=keys[:1], setting="s", now=NOW)) == removed
    assert await store.read(retention.read_log_bytes) == 14
    attempt = await rows.newest(keys[0].run_id)
    assert (attempt.log_remove_time, attempt.log_removed_by, attempt.log_bytes) == (NOW, "s", 7)
    assert (await rows.view(keys[0].run_id)).etag != etag
    assert await store.read(partial(retention.read_due, after=LogKey("", 0), limit=9)) == [keys[0]]


async def test_a_run_whose_log_is_due_already_can_be_removed(store: Store) -> None:
    key = await settled(Rows(store))
    log = LogKey(key.run_id, key.attempt)
    await store.write(partial(retention.remove_logs, keys=[log], setting="s", now=NOW))
    await store.write(partial(retention.remove_runs, run_ids=[key.run_id]))
    assert await store.read(partial(retention.read_due, after=LogKey("", 0), limit=9)) == [
        LogKey(key.run_id, WHOLE_RUN)
    ]


async def test_old_answers_are_forgotten_in_portions(store: Store) -> None:
    ids = [new_id() for _ in range(5)]
    for age, request_id in enumerate(ids):
        await store.write(lambda each, i=request_id, t=NOW - age: requests.remember(each, "K", i, "f", "a", t))
    remove = partial(retention.remove_requests, before=NOW - 1, limit=2)
    assert [await store.write(remove) for _ in range(3)] == [2, 1, 0]
    known = [await store.read(lambda each, i=i: requests.answered(each, "K", i, "f")) for i in ids]
    assert known == ["a", "a", None, None, None]


async def test_the_code_that_kept_runs_were_made_of_is_listed_once(store: Store) -> None:
    rows = Rows(store)
    for _ in range(2):
        await rows.run()
    code = await store.read(retention.read_code)
    assert (code.bundles, code.trees) == ({"sha256:" + "0" * 64}, frozenset())
