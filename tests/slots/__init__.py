"""Slots for tests: a runtime with folders of its own, programs given as text, everything removed in the end."""

from tests.slots.workshop import Ended, Slot, Workshop, tiny_wheel

__all__ = ["Ended", "Slot", "Workshop", "tiny_wheel"]
