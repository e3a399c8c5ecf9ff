"""Programs that are killed while a run lives, pipelines as plain processes."""

from tests.cluster.scenarios import Crashes


class TestCrashes(Crashes):
    """With the process runtime."""
