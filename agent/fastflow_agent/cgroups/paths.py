"""Where the control groups of a slot lie, and making and removing them.

Each slot has a parent group of its own that outlives its container: `fastflow/<slot>` with Docker's cgroupfs driver,
the slice `fastflow-<slot>.slice` with its systemd driver. The container's own group is the one folder inside. Preparers
lie beside those parents, in `fastflow` or `fastflow.slice` itself: so the kernel weighs them against runs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastflow_agent.cgroups.stats import Reading, read_v1, read_v2
from fastflow_agent.model import SlotId

V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio")
"""The controllers of version 1 in which a slot's parent group is made: those that are read."""

V2_CONTROLLERS = ("memory", "cpu", "pids", "io")

ROOT = "fastflow"
"""The group that those of all slots are in; where systemd makes them, its slice."""

SYSTEMCTL_SECONDS = 10.0
"""`systemctl` answers in milliseconds; a systemd that hangs must not hold up an attempt for longer."""

Version = Literal["v1", "v2", "hybrid"]
Driver = Literal["cgroupfs", "systemd"]


class CgroupFault(Exception):
    """A control group could not be made. The message is for people."""


class SlotGroup:
    """Reads the control groups of one slot. Its reads are quick, but system calls: not for the event loop."""

    def __init__(self, parents: Mapping[str, Path], version: Version) -> None:
        self._parents = dict(parents)
        self._version = version

    @property
    def version(self) -> Version:
        """Version of the control groups; "hybrid" reads as "v1"."""
        return self._version

    def container(self) -> dict[str, Path]:
        """The container's own group by controller; empty once it is gone."""
        return {controller: child for controller, parent in self._parents.items() if (child := _child(parent))}

    def read(self) -> Reading:
        """Read what can be read now; after the container's end that is what the parent group keeps."""
        container = self.container()
        if self._version == "v2":
            return read_v2(self._parents[""], container.get(""))
        return read_v1(self._parents, container)

    def first_process(self, proc: Path = Path("/proc")) -> int | None:
        """The container's PID 1, by its number here: it ends last. None if it is gone or can not be seen from here."""
        group = next(iter(self.container().values()), None)
        if group is None:
            return None
        levels = {pid: _namespaced_numbers(proc / str(pid)) for pid in _processes(group)}
        first = [pid for pid, numbers in levels.items() if numbers[-1:] == ["1"]]
        # A namespace made inside the container has a first process too, one level deeper.
        return min(first, key=lambda pid: len(levels[pid]), default=None)

    def end_together(self) -> bool:
        """Have an OOM in any process end the whole container; false where the kernel can not (version 1).

        Written into the container's own group: on its parent it has no effect. And into those below it: crun puts the
        processes one deeper with the systemd driver, and the kernel looks no higher than where the limit was met.
        """
        container = self.container().get("")
        if self._version != "v2" or container is None:
            return False
        try:
            for group in (container, *(path for path in container.rglob("*") if path.is_dir())):
                (group / "memory.oom.group").write_text("1")
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class CgroupHost:
    """The control groups of this host: where they are mounted (`base`) and who makes groups (`driver`)."""

    version: Version
    driver: Driver
    base: Path = Path("/sys/fs/cgroup")
    systemctl: Callable[[str, str], None] = field(default=lambda verb, unit: _systemctl(verb, unit), repr=False)

    @classmethod
    def detect(cls, engine_version: str, engine_driver: str, base: Path = Path("/sys/fs/cgroup")) -> CgroupHost | None:
        """The layout from what the engine says of itself ("1" or "2", "cgroupfs" or "systemd") and what is mounted.

        None where the engine uses no control groups, or they are not visible or not writable from here.
        """
        if engine_driver not in ("cgroupfs", "systemd"):
            return None
        driver: Driver = "systemd" if engine_driver == "systemd" else "cgroupfs"
        version: Version
        if engine_version == "2":
            version, root = "v2", base
        else:
            # systemd's word for version 1 controllers beside a version 2 tree without any.
            version, root = ("hybrid" if (base / "unified").is_dir() else "v1"), base / "memory"
        visible = (root / ("cgroup.subtree_control" if version == "v2" else "tasks")).exists()
        return cls(version, driver, base) if visible else None

    def parent(self, slot: SlotId) -> str:
        """What Docker is told as the container's `cgroup_parent`."""
        return f"{ROOT}-{slot}.slice" if self.driver == "systemd" else f"/{ROOT}/{slot}"

    @property
    def root(self) -> str:
        """What Docker is told as `cgroup_parent` of a container that shares the CPU with slots by its own weight."""
        return f"{ROOT}.slice" if self.driver == "systemd" else f"/{ROOT}"

    def make_root(self) -> str:
        """Make the group that `root` names, and return that; no error if it exists. Raises CgroupFault."""
        try:
            # systemd makes its slices by itself.
            if self.driver == "cgroupfs" and self.version == "v2":
                self._make_root_v2()
            elif self.driver == "cgroupfs":
                self._make_roots_v1()
        except OSError as error:
            raise self._fault(self.root, error) from error
        return self.root

    def group(self, slot: SlotId) -> SlotGroup:
        """Reader of the slot's groups, whether they exist yet or no longer."""
        if self.version == "v2":
            return SlotGroup({"": self.base / self._relative(slot)}, "v2")
        parents = {name: self.base / name / self._relative(slot) for name in (*V1_CONTROLLERS, "unified")}
        return SlotGroup(parents, self.version)

    def make(self, slot: SlotId) -> str:
        """Make the group that `parent` names, and return that; no error if it exists. Raises CgroupFault."""
        try:
            if self.driver == "systemd":
                self.systemctl("start", self.parent(slot))
            elif self.version == "v2":
                self._make_v2(slot)
            else:
                self._make_v1(slot)
        except (OSError, subprocess.SubprocessError) as error:
            raise self._fault(self.parent(slot), error) from error
        return self.parent(slot)

    def remove(self, slot: SlotId) -> bool:
        """Remove the slot's parent group everywhere; false if something in it still lives (call again)."""
        if self.driver == "systemd":
            with suppress(OSError, subprocess.SubprocessError):
                self.systemctl("stop", self.parent(slot))
        # Docker makes the parent in controllers we do not read too, and removes none of them.
        results = [_remove_tree(root / self._relative(slot)) for root in self._roots()]
        return all(results)

    def _fault(self, group: str, error: Exception) -> CgroupFault:
        said: bytes = getattr(error, "stderr", None) or b""
        why = said.decode(errors="replace").strip().rstrip(".") or str(error)
        remedy = (
            f"See `systemctl status {group}` on the worker host; the agent must run as root."
            if self.driver == "systemd"
            else "The agent must run as root, with /sys/fs/cgroup writable."
        )
        return CgroupFault(f"The control group {group} could not be made ({why}). {remedy}")

    def _relative(self, slot: SlotId) -> Path:
        if self.driver == "systemd":
            return Path(self.root) / self.parent(slot)
        return Path(ROOT) / slot

    def _roots(self) -> set[Path]:
        """Every mounted hierarchy; some are links to others (`cpu` to `cpu,cpuacct`)."""
        if self.version == "v2":
            return {self.base}
        return {entry.resolve() for entry in self.base.iterdir() if entry.is_dir()}

    def _make_v1(self, slot: SlotId) -> None:
        for root in self._make_roots_v1():
            (root / slot).mkdir(exist_ok=True)

    def _make_roots_v1(self) -> list[Path]:
        made = []
        for controller in V1_CONTROLLERS:
            if not (self.base / controller).is_dir():
                continue
            root = self.base / controller / ROOT
            root.mkdir(exist_ok=True)
            if controller == "memory":
                # Kernels before 5.11 count descendants only where this is set, and only before the first of them.
                with suppress(OSError):
                    (root / "memory.use_hierarchy").write_text("1")
            made.append(root)
        return made

    def _make_v2(self, slot: SlotId) -> None:
        group = self._make_root_v2() / slot
        group.mkdir(exist_ok=True)
        _pass_on_controllers(group)

    def _make_root_v2(self) -> Path:
        root = self.base / ROOT
        root.mkdir(exist_ok=True)
        for folder in (self.base, root):
            _pass_on_controllers(folder)
        return root


def _pass_on_controllers(folder: Path) -> None:
    for controller in V2_CONTROLLERS:
        # One by one: a kernel without one of them refuses a line that names it.
        with suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _processes(group: Path) -> list[int]:
    """The processes in a group and in those below it; fewer or none if it goes meanwhile."""
    found: list[int] = []
    with suppress(OSError):
        for listing in (group / "cgroup.procs", *group.glob("*/**/cgroup.procs")):
            found += [int(line) for line in listing.read_text().split()]
    return found


def _namespaced_numbers(process: Path) -> list[str]:
    """A process's numbers in its pid namespaces, outermost first (NSpid in proc(5)); empty if it is gone."""
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])


def _child(parent: Path) -> Path | None:
    try:
        return next((entry for entry in parent.iterdir() if entry.is_dir()), None)
    except OSError:
        return None


def _remove_tree(group: Path) -> bool:
    """Remove a group and those below it. Files in them are the kernel's; only folders are removed, deepest first."""
    try:
        for child in [entry for entry in group.iterdir() if entry.is_dir()]:
            if not _remove_tree(child):
                return False
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        # EBUSY: a process is still dying in it.
        return False
    return True


def _systemctl(verb: str, unit: str) -> None:
    subprocess.run(["systemctl", verb, unit], check=True, capture_output=True, timeout=SYSTEMCTL_SECONDS)
