"""No fail point without its crash. That each is really reached, the crashes see themselves."""

from fastflow.service.failpoints import CATALOGUE, FailPoint

from tests.crash import test_agent, test_controlplane, test_retention


def test_every_fail_point_has_a_test_that_dies_there() -> None:
    suites = (test_agent.Crashes, test_controlplane.Crashes, test_retention.TestRetention)
    assert {point for suite in suites for point in _points(suite)} == set(CATALOGUE)


def _points(suite: type) -> set[FailPoint]:
    marks = [mark for test in vars(suite).values() for mark in getattr(test, "pytestmark", ())]
    return {point for mark in marks if mark.args[0] == "point" for point in mark.args[1]}
