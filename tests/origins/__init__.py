"""Real Git repositories to follow, and real servers that give them out."""

from tests.origins.origin import Origin

__all__ = ["Origin"]
