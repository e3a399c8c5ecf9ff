"""Control group trees as real hosts had them, read as if they were mounted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_agent.cgroups.paths import CgroupHost, SlotGroup
from fastflow_agent.model import SlotId

RECORDED = Path(__file__).parent / "recorded"
SLOT = SlotId("0123456789abcdef")


@pytest.fixture
def recorded() -> Callable[[str], SlotGroup]:
    """The group of the one slot of a recorded tree.

    v1-…: a hybrid host, kernel 6.18. v2-…: kernel 6.1. "busy" was throttled at 250 milli-cores under 128 MiB, had
    40 MiB of its own and wrote 20 MiB; in "oom" a child was killed under 96 MiB; "-ended": after the container's end.
    """

    def read(name: str) -> SlotGroup:
        version = "2" if name.startswith("v2") else "1"
        host = CgroupHost.detect(version, "cgroupfs", RECORDED / name)
        assert host
        return host.group(SLOT)

    return read
