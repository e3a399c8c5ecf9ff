"""What is held in memory for logs whose files can not be used, and in which order it comes out again."""

import pytest
from fastflow_controlplane.logs.hindered import Hindered, Lane
from fastflow_controlplane.logs.uploads import OVERHEAD_BYTES, Chunk, Seal, Upload, size
from fastflow_controlplane.runs.model import AttemptKey
from google_crc32c import value as crc32c

DATA = b"x" * OVERHEAD_BYTES
CHUNK_BYTES = 2 * OVERHEAD_BYTES
KEY = AttemptKey("one", 1, "token")


def chunk(number: int, key: AttemptKey = KEY) -> Chunk:
    return Chunk(key, number * len(DATA), DATA, crc32c(DATA))


def held(lane: Lane) -> list[Upload]:
    uploads = []
    while lane:
        uploads.append(lane.first)
        lane.done(1)
    return uploads


def test_what_comes_for_a_hindered_log_comes_out_in_its_order() -> None:
    hindered, lane = Hindered(10 * CHUNK_BYTES), Lane(KEY, [chunk(0), chunk(1)])
    hindered.begin(lane)
    assert hindered.holds_back(KEY, [chunk(2), Seal(KEY, 3)])
    hindered.end(lane)
    assert not hindered.holds_back(KEY, [chunk(4)])
    assert held(lane) == [chunk(0), chunk(1), chunk(2), Seal(KEY, 3)]
    assert not lane.missed


def test_nothing_is_held_behind_something_there_was_no_room_for() -> None:
    hindered, lane = Hindered(2 * CHUNK_BYTES), Lane(KEY, [chunk(0)])
    hindered.begin(lane)
    hindered.holds_back(KEY, [chunk(1), chunk(2), Seal(KEY, 3)])
    lane.done(1)
    hindered.holds_back(KEY, [chunk(3)])
    assert lane.missed
    assert held(lane) == [chunk(1)]


def test_all_hindered_logs_of_a_stream_share_one_bound_and_each_keeps_what_its_file_is_tried_with() -> None:
    hindered = Hindered(4 * CHUNK_BYTES)
    keys = [AttemptKey(f"run {number}", 1, "token") for number in range(50)]
    lanes = [Lane(key, [chunk(number, key) for number in range(3)]) for key in keys]
    for lane in lanes:
        hindered.begin(lane)
    for number in range(3, 100):
        for key in keys:
            assert hindered.holds_back(key, [chunk(number, key)])
    assert [lane.bytes // CHUNK_BYTES for lane in lanes] == [3] + 49 * [1]
    assert all(lane.missed for lane in lanes[1:])


@pytest.mark.parametrize(
    ("uploads", "together"),
    [
        ([chunk(0), chunk(1), chunk(3)], 2),
        ([chunk(0), Chunk(KEY, len(DATA), DATA, 0)], 1),
        ([Chunk(KEY, 0, DATA, 0), chunk(1)], 0),
        ([Chunk(KEY, 0, b"", 0), chunk(0)], 0),
        ([Seal(KEY, 0), chunk(0)], 0),
    ],
    ids=["gap", "damaged behind", "damaged", "question", "seal"],
)
def test_chunks_that_follow_each_other_undamaged_are_taken_together(uploads: list[Upload], together: int) -> None:
    lane = Lane(KEY, uploads)
    assert lane.chunks() == uploads[:together]
    assert lane.bytes == sum(map(size, uploads))
