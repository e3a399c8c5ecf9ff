"""What is left of slots is found in every layout of control groups."""

from pathlib import Path

import pytest

from tests.chaos.host import control_groups

SLOT = "0123456789abcdef"


@pytest.mark.parametrize(
    "path",
    [
        f"fastflow/{SLOT}",
        f"memory/fastflow/{SLOT}",
        f"unified/fastflow/{SLOT}",
        f"fastflow.slice/fastflow-{SLOT}.slice",
        f"systemd/fastflow.slice/fastflow-{SLOT}.slice",
        f"docker/4711/fastflow/{SLOT}",
    ],
    ids=["v2", "v1", "hybrid", "v2 with systemd", "v1 with systemd", "in a container"],
)
def test_a_slots_control_group_is_found(tmp_path: Path, path: str) -> None:
    (tmp_path / path / "container").mkdir(parents=True)
    assert control_groups(tmp_path) == {SLOT: str(tmp_path / path)}


def test_the_groups_of_others_and_those_above_slots_are_none(tmp_path: Path) -> None:
    for path in ("memory/fastflow", "fastflow.slice", "system.slice/docker.service", "memory/docker/4711"):
        (tmp_path / path).mkdir(parents=True)
    assert control_groups(tmp_path) == {}
