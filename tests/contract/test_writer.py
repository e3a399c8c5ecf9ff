"""What every database must do under the one writer."""

import asyncio
from functools import partial

import pytest
from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import NotFound, Unavailable
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import requests
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError


def add(connection: Connection, name: str) -> str:
    connection.execute(
        insert(requests).values(kind="test", request_id=name, fingerprint="", answer_id="", create_time=0)
    )
    return name


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(requests)).scalar_one()


def add_and_count(connection: Connection, name: str) -> int:
    add(connection, name)
    return count(connection)


async def test_a_result_comes_back_once_others_can_read_what_was_written(store: Store) -> None:
    assert await store.write(partial(add, name="a")) == "a"
    assert await store.read(count) == 1


async def test_an_operation_that_fails_changes_nothing_and_harms_no_other_of_its_group(store: Store) -> None:
    def add_then_fail(connection: Connection) -> None:
        add(connection, "half")
        raise NotFound("no such thing")

    good, failed, duplicate, last = await asyncio.gather(
        store.write(partial(add, name="a")),
        store.write(add_then_fail),
        store.write(partial(add, name="a")),
        store.write(partial(add, name="b")),
        return_exceptions=True,
    )

    assert (good, last) == ("a", "b")
    assert isinstance(failed, NotFound)
    assert isinstance(duplicate, IntegrityError)
    assert await store.read(count) == 2


async def test_a_lone_operation_that_fails_changes_nothing_and_harms_no_later_one(store: Store) -> None:
    def add_then_fail(connection: Connection) -> None:
        add(connection, "half")
        raise NotFound("no such thing")

    with pytest.raises(NotFound):
        await store.write(add_then_fail)
    assert await store.read(count) == 0
    assert await store.write(partial(add_and_count, name="whole")) == 1
    with pytest.raises(IntegrityError):
        await store.write(partial(add, name="whole"))
    assert await store.write(partial(add_and_count, name="next")) == 2


async def test_operations_take_effect_in_the_order_they_were_given(store: Store) -> None:
    counts = await asyncio.gather(*(store.write(partial(add_and_count, name=str(n))) for n in range(250)))
    assert counts == list(range(1, 251))


async def test_listeners_hear_of_commits_in_order_even_when_the_caller_has_gone(store: Store) -> None:
    heard: list[str] = []
    waiting = [asyncio.create_task(store.write(partial(add, name=name), heard.append)) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await store.write(partial(add, name="d"), heard.append)
    assert heard == ["a", "b", "c", "d"]


async def test_writing_that_works_again_is_noticed_without_a_caller_and_leaves_no_trace(store: Store) -> None:
    store.writer.problem = Problem("DISK_FULL", "the disk is full")
    await store.recheck()
    assert store.problem is None
    assert await store.read(count) == 0


async def test_a_closing_store_finishes_what_waits_and_refuses_what_comes_later(database_url: str) -> None:
    store = Store(database_url)
    store.open()
    await store.start()
    waiting = [asyncio.create_task(store.write(partial(add, name=str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*waiting)) == 20
    with pytest.raises(Unavailable):
        await store.write(count)

    reopened = Store(database_url)
    reopened.open()
    await reopened.start()
    assert await reopened.read(count) == 20
    await reopened.close()
