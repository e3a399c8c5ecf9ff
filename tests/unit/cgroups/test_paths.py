"""Where control groups lie, and making and removing them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_agent.cgroups.paths import CgroupFault, CgroupHost, SlotGroup
from fastflow_agent.model import SlotId

SLOT = SlotId("0123456789abcdef")
V1 = ("memory", "cpu", "cpuacct", "pids", "blkio")


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """Version 1 hierarchies, `cpu` a link as distributions have it, and some that are not read."""
    for name in ("memory", "cpu,cpuacct", "pids", "blkio", "freezer", "systemd"):
        (tmp_path / name).mkdir()
    for name in ("cpu", "cpuacct"):
        (tmp_path / name).symlink_to("cpu,cpuacct")
    (tmp_path / "memory" / "tasks").touch()
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A version 2 tree."""
    (tmp_path / "cgroup.subtree_control").touch()
    return tmp_path


def test_the_layout_is_what_the_engine_says_and_the_host_has(v1: Path) -> None:
    assert CgroupHost.detect("1", "cgroupfs", v1) == CgroupHost("v1", "cgroupfs", v1)
    (v1 / "unified").mkdir()
    assert CgroupHost.detect("1", "systemd", v1) == CgroupHost("hybrid", "systemd", v1)


def test_version_2_is_found(v2: Path) -> None:
    assert CgroupHost.detect("2", "systemd", v2) == CgroupHost("v2", "systemd", v2)


@pytest.mark.parametrize(("version", "driver"), [("2", "none"), ("1", ""), ("1", "cgroupfs"), ("2", "cgroupfs")])
def test_groups_that_can_not_be_seen_are_none(tmp_path: Path, version: str, driver: str) -> None:
    assert CgroupHost.detect(version, driver, tmp_path) is None


def test_docker_is_told_a_path_or_a_slice() -> None:
    assert CgroupHost("v2", "cgroupfs").parent(SLOT) == f"/fastflow/{SLOT}"
    assert CgroupHost("v2", "systemd").parent(SLOT) == f"fastflow-{SLOT}.slice"


def test_version_1_groups_are_made_in_each_controller_that_is_read(v1: Path) -> None:
    host = CgroupHost("v1", "cgroupfs", v1)
    host.make(SLOT)
    host.make(SLOT)
    assert all((v1 / name / "fastflow" / SLOT).is_dir() for name in V1)
    assert (v1 / "memory" / "fastflow" / "memory.use_hierarchy").read_text() == "1"
    assert not (v1 / "freezer" / "fastflow").exists()


def test_version_1_groups_are_removed_everywhere_and_the_deepest_first(v1: Path) -> None:
    host = CgroupHost("v1", "cgroupfs", v1)
    host.make(SLOT)
    for name in ("memory", "freezer", "systemd"):
        (v1 / name / "fastflow" / SLOT / "container").mkdir(parents=True)
    assert host.remove(SLOT)
    assert host.remove(SLOT)
    assert not list(v1.glob(f"*/fastflow/{SLOT}"))
    assert (v1 / "memory" / "fastflow").is_dir()


def test_a_group_something_still_lives_in_is_told_to_be_there(v1: Path) -> None:
    host = CgroupHost("v1", "cgroupfs", v1)
    host.make(SLOT)
    # A file in the way stands in for a living process: the folder can not be removed.
    survivor = v1 / "memory" / "fastflow" / SLOT / "alive"
    survivor.touch()
    assert not host.remove(SLOT)
    survivor.unlink()
    assert host.remove(SLOT)


def test_version_2_groups_have_the_controllers_enabled_on_the_way(v2: Path) -> None:
    host = CgroupHost("v2", "cgroupfs", v2)
    host.make(SLOT)
    for folder in (v2, v2 / "fastflow", v2 / "fastflow" / SLOT):
        assert (folder / "cgroup.subtree_control").read_text().startswith("+")
        (folder / "cgroup.subtree_control").unlink()
    assert host.remove(SLOT)
    assert not (v2 / "fastflow" / SLOT).exists()


def test_a_container_that_is_no_slots_lies_beside_those_of_slots_whoever_makes_groups() -> None:
    for driver, slash in (("cgroupfs", "/"), ("systemd", "-")):
        host = CgroupHost("v2", "systemd" if driver == "systemd" else "cgroupfs")
        assert host.parent(SLOT).removesuffix(".slice") == f"{host.root.removesuffix('.slice')}{slash}{SLOT}"


def test_the_group_of_all_slots_can_be_made_before_the_first_of_them(v1: Path, tmp_path: Path) -> None:
    (v1 / "memory" / "fastflow").mkdir()
    CgroupHost("v1", "cgroupfs", v1).make_root()
    assert all((v1 / name / "fastflow").is_dir() for name in V1)
    assert (v1 / "memory" / "fastflow" / "memory.use_hierarchy").read_text() == "1"
    (tmp_path / "v2").mkdir()
    CgroupHost("v2", "cgroupfs", tmp_path / "v2").make_root()
    for folder in (tmp_path / "v2", tmp_path / "v2" / "fastflow"):
        assert (folder / "cgroup.subtree_control").read_text().startswith("+")
    CgroupHost("v2", "systemd", tmp_path / "missing").make_root()
    with pytest.raises(CgroupFault, match="/fastflow could not be made"):
        CgroupHost("v2", "cgroupfs", tmp_path / "missing").make_root()


def test_slices_are_systemds_to_start_and_stop(v2: Path) -> None:
    told: list[tuple[str, str]] = []
    host = CgroupHost("v2", "systemd", v2, systemctl=lambda verb, unit: told.append((verb, unit)))
    host.make(SLOT)
    assert host.remove(SLOT)
    assert told == [("start", f"fastflow-{SLOT}.slice"), ("stop", f"fastflow-{SLOT}.slice")]
    (v2 / "fastflow.slice" / f"fastflow-{SLOT}.slice").mkdir(parents=True)
    (v2 / "fastflow.slice" / f"fastflow-{SLOT}.slice" / "memory.peak").write_text("17\n")
    assert host.group(SLOT).read().usage.peak_memory_bytes == 17


def test_a_group_that_can_not_be_made_is_told_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CgroupFault, match="must run as root"):
        CgroupHost("v2", "cgroupfs", tmp_path / "missing").make(SLOT)


def test_a_slice_that_systemd_does_not_start_is_told_in_its_words_with_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho 'Failed to start it: Unit is masked.' >&2\nexit 1\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CgroupFault) as fault:
        CgroupHost("v2", "systemd", tmp_path).make(SLOT)
    unit = f"fastflow-{SLOT}.slice"
    assert str(fault.value) == (
        f"The control group {unit} could not be made (Failed to start it: Unit is masked). "
        f"See `systemctl status {unit}` on the worker host; the agent must run as root."
    )


def test_an_oom_is_made_everybodys_in_the_containers_own_group(v2: Path, recorded: Callable[[str], SlotGroup]) -> None:
    host = CgroupHost("v2", "cgroupfs", v2)
    host.make(SLOT)
    assert not host.group(SLOT).end_together()
    container = v2 / "fastflow" / SLOT / "container"
    container.mkdir()
    assert host.group(SLOT).end_together()
    assert (container / "memory.oom.group").read_text() == "1"
    assert not (container.parent / "memory.oom.group").exists()
    assert not recorded("v1-busy").end_together()


def test_an_oom_ends_the_container_whole_where_its_processes_lie_one_group_deeper(v2: Path) -> None:
    host = CgroupHost("v2", "cgroupfs", v2)
    container = v2 / "fastflow" / SLOT / "docker-1"
    (container / "container").mkdir(parents=True)
    assert host.group(SLOT).end_together()
    assert (container / "memory.oom.group").read_text() == "1"
    assert (container / "container" / "memory.oom.group").read_text() == "1"


@pytest.mark.parametrize("deeper", ["", "container"])
def test_the_containers_first_process_is_the_one_numbered_1_inside(tmp_path: Path, v2: Path, deeper: str) -> None:
    group = v2 / "fastflow" / SLOT / "c0ffee" / deeper
    group.mkdir(parents=True)
    (v2 / "fastflow" / SLOT / "c0ffee" / "cgroup.procs").touch()
    (group / "cgroup.procs").write_text("310\n300\n320\n330\n")
    # 330 is the first of a namespace that the program made; 320 has ended meanwhile.
    for pid, inside in {300: "1", 310: "7", 330: "9\t1"}.items():
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "status").write_text(f"Name:\tx\nNSpid:\t{pid}\t{inside}\nThreads:\t1\n")
    assert SlotGroup({"": v2 / "fastflow" / SLOT}, "v2").first_process(tmp_path / "proc") == 300


def test_without_a_container_or_a_view_of_its_processes_there_is_no_first(tmp_path: Path, v2: Path) -> None:
    group = SlotGroup({"": v2 / "fastflow" / SLOT}, "v2")
    assert group.first_process(tmp_path / "proc") is None
    (v2 / "fastflow" / SLOT / "c0ffee").mkdir(parents=True)
    assert group.first_process(tmp_path / "proc") is None
    # Processes outside of the agent's own pid namespace.
    (v2 / "fastflow" / SLOT / "c0ffee" / "cgroup.procs").write_text("0\n0\n")
    assert group.first_process(tmp_path / "proc") is None
