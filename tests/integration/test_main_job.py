"""The main job end to end, pipelines as plain processes."""

from tests.cluster.scenarios import Crashes, Leftovers, MainJob


class TestMainJob(MainJob):
    """With the process runtime."""


class TestCrashes(Crashes):
    """With the process runtime."""


class TestLeftovers(Leftovers):
    """With the process runtime."""
