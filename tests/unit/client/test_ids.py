"""Ids sort by time and are told apart by their last digits."""

import uuid

from fastflow.ids import new_id, short


def test_an_id_is_a_version_7_uuid() -> None:
    value = uuid.UUID(new_id())
    assert value.version == 7
    assert value.variant == uuid.RFC_4122


def test_ids_sort_by_the_time_they_were_made() -> None:
    earlier = new_id(lambda: 1_700_000_000_000)
    later = new_id(lambda: 1_700_000_000_001)
    assert earlier < later


def test_short_ids_made_in_the_same_millisecond_differ() -> None:
    assert len({short(new_id(lambda: 1_700_000_000_000)) for _ in range(100)}) == 100
