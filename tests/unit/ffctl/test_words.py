"""Numbers and times as people read them."""

import pytest
from fastflow.v1 import runs_pb2
from ffctl import wording
from google.protobuf.timestamp_pb2 import Timestamp


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (512 * 2**20, "512 MiB"),
        (1536 * 2**20, "1.5 GiB"),
        (2**20 - 1, "1 MiB"),
        (64 * 2**30, "64 GiB"),
        (128 * 2**20 + 2**18, "128.3 MiB"),
        (5000 * 2**40, "4.9 PiB"),
    ],
)
def test_sizes_are_powers_of_1024(count: int, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.294, "0.29 s"),
        (1.25, "1.2 s"),
        (9.996, "10 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7500, "2 h 5 min"),
        (3600, "1 h"),
        (273_600, "3 d 4 h"),
        (-1, "0.00 s"),
    ],
)
def test_durations_name_the_two_largest_units(seconds: float, text: str) -> None:
    assert wording.span(seconds) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [(-5, "just now"), (1, "just now"), (12, "12 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages_name_the_largest_unit(age: float, text: str) -> None:
    assert wording.ago(Timestamp(seconds=1000), 1000 + age) == text


@pytest.mark.parametrize(("milli", "text"), [(1000, "1 core"), (500, "0.5 cores"), (2500, "2.5 cores")])
def test_cores(milli: int, text: str) -> None:
    assert wording.cores(milli) == text


def test_a_pause_says_what_waits_and_what_may() -> None:
    pause = runs_pb2.SoftLimitWarning(kind=runs_pb2.SOFT_LIMIT_KIND_LOG_BACKLOG, limit=2**30, peak=2**31)
    assert wording.warning(pause) == "is paused: 2 GiB of output waited for delivery, the worker keeps 1 GiB"
    pause.clear_time.seconds = 1
    assert wording.warning(pause).startswith("was paused: 2 GiB")
