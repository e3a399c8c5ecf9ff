"""Environments prepared ahead of runs, pipelines as plain processes."""

from tests.cluster.preheat import Preheating


class TestPreheating(Preheating):
    """With the process runtime."""
