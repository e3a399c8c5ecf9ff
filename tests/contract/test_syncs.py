"""What is kept of syncs: one row each, but for those that only repeat the one before."""

from dataclasses import replace

import pytest
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import syncs
from fastflow_controlplane.store.queries.syncs import SyncRecord, SyncTrigger


def sync(number: int, **values: object) -> SyncRecord:
    record = SyncRecord(f"{number:036d}", "main", SyncTrigger.INTERVAL, number * 10, number * 10 + 5)
    return replace(record, **values)


async def store_all(store: Store, *records: SyncRecord) -> list[SyncRecord]:
    for record in records:
        await store.write(lambda connection, record=record: syncs.record(connection, record))
    return await store.read(lambda connection: syncs.list_syncs(connection, "main", "", 100))


async def test_a_sync_is_kept_as_it_was(store: Store) -> None:
    record = sync(1, from_commit="a" * 40, to_commit="b" * 40, added=("x", "ü"), invalid=("x",), error="late")
    assert await store_all(store, record) == [record]
    assert await store.read(lambda connection: syncs.get(connection, record.id)) == record
    assert await store.read(lambda connection: syncs.get(connection, "?")) is None


async def test_repeats_by_interval_are_counted_in_the_row_they_repeat(store: Store) -> None:
    found = await store_all(store, sync(1, added=("x",)), sync(2), sync(3), sync(4, error="off"), sync(5, error="off"))
    assert [(each.id[-1], each.repeat_count, each.end_time) for each in found] == [
        ("4", 1, 55),
        ("2", 1, 35),
        ("1", 0, 15),
    ]


async def test_repeats_that_were_counted_before_they_could_be_stored_count_on(store: Store) -> None:
    (found,) = await store_all(store, sync(1), sync(2, repeat_count=3), sync(6))
    assert (found.id[-1], found.repeat_count, found.end_time) == ("1", 5, 65)


async def test_what_somebody_asked_for_is_a_row_of_its_own(store: Store) -> None:
    request = sync(2, trigger=SyncTrigger.REQUEST)
    assert await store_all(store, sync(1), request) == [request, sync(1)]


async def test_another_source_s_syncs_are_its_own(store: Store) -> None:
    await store_all(store, sync(2, source="other"))
    assert await store_all(store, sync(1)) == [sync(1)]


async def test_pages_go_from_new_to_old(store: Store) -> None:
    await store_all(store, *(sync(number, trigger=SyncTrigger.REQUEST) for number in range(1, 6)))
    page = await store.read(lambda connection: syncs.list_syncs(connection, "main", sync(4).id, 2))
    assert [each.id[-1] for each in page] == ["3", "2"]


async def test_the_oldest_go_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncs, "KEPT", 3)
    found = await store_all(store, *(sync(number, trigger=SyncTrigger.REQUEST) for number in range(1, 9)))
    assert [each.id[-1] for each in found] == ["8", "7", "6"]
