"""From when on a run must have waited to have waited for so long."""

import pytest
from fastflow_controlplane.runs.uptime import Uptime, since

UPTIMES = [Uptime(1000, 1100), Uptime(500, 500), Uptime(100, 400)]


@pytest.mark.parametrize(
    ("usec", "moment"), [(0, 1100), (40, 1060), (100, 1000), (101, 399), (150, 350), (400, 100), (401, None)]
)
def test_only_time_of_work_is_counted_from_now_backwards(usec: int, moment: int | None) -> None:
    assert since(UPTIMES, usec) == moment


def test_who_never_worked_has_waited_for_nothing() -> None:
    assert since([], 1) is None
