"""A whole Fast-Flow for tests and benchmarks: real processes, started and spoken to as a person would."""

from tests.cluster.cluster import Cluster, Completed
from tests.cluster.program import Program, ProgramDied

__all__ = ["Cluster", "Completed", "Program", "ProgramDied"]
