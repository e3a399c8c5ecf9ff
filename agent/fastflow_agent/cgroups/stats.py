"""What a slot uses, read from its control groups. What the host can not tell is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgroupspy.controllers import Controller, CpuAcctController, CpuController, MemoryController
from cgroupspy.nodes import Node

from fastflow_agent.cgroups.controllers import (
    BlkIOThrottleController,
    CpuV2Controller,
    IoV2Controller,
    MemoryV2Controller,
    PidsController,
)

_PIDS_OF_INIT = 1
"""Docker's init is PID 1 of every container and has one thread; a program beside it makes two."""


@dataclass(frozen=True)
class Usage:
    """Resources of one attempt, as the protocol's Usage has them: bytes, microseconds, milli-cores, percent.

    `working_set_bytes`, `cpu_milli_cores`, `pids` and the pressures are of the last sample, the others since the start.
    """

    peak_memory_bytes: int | None = None
    cpu_usec: int | None = None
    throttled_usec: int | None = None
    working_set_bytes: int | None = None
    cpu_milli_cores: int | None = None
    pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    memory_pressure_percent: float | None = None
    cpu_pressure_percent: float | None = None
    io_pressure_percent: float | None = None


@dataclass(frozen=True)
class Reading:
    """The counters of one moment. `usage.cpu_milli_cores` is a rate and stays None here.

    `oom_kills` counts processes the kernel killed, `oom_group_kills` kills of the whole container (version 2, kernel
    5.17), `limit_hits` how often an allocation failed at the limit: a kill without one was the host's own shortage.
    """

    usage: Usage = Usage()
    memory_bytes: int | None = None
    oom_kills: int | None = None
    oom_group_kills: int | None = None
    limit_hits: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the program is over, which its engine tells seconds later on a slow host.

        The container's init outlives the program, and counts until its engine has taken note of its end.
        """
        return self.usage.pids is not None and self.usage.pids <= _PIDS_OF_INIT

    def over(self, last: Reading) -> Reading:
        """This reading, with what it lacks taken from an earlier one of the same slot.

        A peak the kernel does not keep (version 2 before 5.19) is the highest memory use seen in a reading.
        """
        return self.after(last) if self.ended else self._filled(last)

    def after(self, last: Reading) -> Reading:
        """This reading of an ended slot: counters from here, what describes a moment from the last one alive."""
        merged, lived = self._filled(last), last.usage
        usage = replace(
            merged.usage,
            working_set_bytes=lived.working_set_bytes,
            cpu_milli_cores=lived.cpu_milli_cores,
            pids=lived.pids,
            memory_pressure_percent=lived.memory_pressure_percent,
            cpu_pressure_percent=lived.cpu_pressure_percent,
            io_pressure_percent=lived.io_pressure_percent,
        )
        return replace(merged, usage=usage, memory_bytes=last.memory_bytes)

    def _filled(self, last: Reading) -> Reading:
        known = {name: value for name, value in vars(self.usage).items() if value is not None}
        if "peak_memory_bytes" not in known and self.memory_bytes is not None:
            known["peak_memory_bytes"] = max(self.memory_bytes, last.usage.peak_memory_bytes or 0)
        return Reading(
            usage=replace(last.usage, **known),
            memory_bytes=_first(self.memory_bytes, last.memory_bytes),
            oom_kills=_first(self.oom_kills, last.oom_kills),
            oom_group_kills=_first(self.oom_group_kills, last.oom_group_kills),
            limit_hits=_first(self.limit_hits, last.limit_hits),
        )


def read_v2(parent: Path, container: Path | None) -> Reading:
    """Read a slot on cgroup version 2; all but throttling is hierarchical, so the parent tells it after the end too.

    `container` is the container's own group while it lives: throttling is counted only where the quota is set.
    """
    # First what goes with the container.
    throttling = (_read(_at(CpuV2Controller, container), "stat") or {}) if container else {}
    memory, cpu = _at(MemoryV2Controller, parent), _at(CpuV2Controller, parent)
    io, pids = _at(IoV2Controller, parent), _at(PidsController, parent)
    current, stat, events = _read(memory, "current"), _read(memory, "stat") or {}, _read(memory, "events") or {}
    devices = _read(io, "stat")
    return Reading(
        usage=Usage(
            peak_memory_bytes=_read(memory, "peak"),
            cpu_usec=(_read(cpu, "stat") or {}).get("usage_usec"),
            throttled_usec=throttling.get("throttled_usec"),
            working_set_bytes=_working_set(current, stat.get("inactive_file")),
            pids=_read(pids, "current"),
            io_read_bytes=_io_bytes(devices, "rbytes"),
            io_write_bytes=_io_bytes(devices, "wbytes"),
            memory_pressure_percent=_pressure(memory),
            cpu_pressure_percent=_pressure(cpu),
            io_pressure_percent=_pressure(io),
        ),
        memory_bytes=current,
        oom_kills=events.get("oom_kill"),
        oom_group_kills=events.get("oom_group_kill"),
        limit_hits=events.get("oom"),
    )


def read_v1(parents: Mapping[str, Path], container: Mapping[str, Path]) -> Reading:
    """Read a slot on cgroup version 1: groups by controller, those of the container while it lives.

    OOM kills and throttling stand only in the container's own groups; memory, CPU time, pids and I/O are hierarchical.
    Bytes written are not told: most of them are written back later, in the name of no group. Pressure stands in the
    "unified" tree beside version 1, where there is one.
    """
    # First what goes with the container.
    throttled_ns = (_read(_of(CpuController, container, "cpu"), "stat") or {}).get("throttled_time")
    oom_kills = _oom_kills(_read(_of(MemoryController, container, "memory"), "oom_control"))
    memory = _of(MemoryController, parents, "memory")
    usage, stat = _read(memory, "usage_in_bytes"), _read(memory, "stat") or {}
    cpu_ns = _read(_of(CpuAcctController, parents, "cpuacct"), "usage")
    transferred = _read(_of(BlkIOThrottleController, parents, "blkio"), "service_bytes_recursive")
    return Reading(
        usage=Usage(
            peak_memory_bytes=_read(memory, "max_usage_in_bytes"),
            cpu_usec=None if cpu_ns is None else cpu_ns // 1000,
            throttled_usec=None if throttled_ns is None else throttled_ns // 1000,
            working_set_bytes=_working_set(usage, stat.get("total_inactive_file")),
            pids=_read(_of(PidsController, parents, "pids"), "current"),
            io_read_bytes=None if transferred is None else (transferred or {}).get("Read", 0),
            memory_pressure_percent=_pressure(_of(MemoryV2Controller, parents, "unified")),
            cpu_pressure_percent=_pressure(_of(CpuV2Controller, parents, "unified")),
            io_pressure_percent=_pressure(_of(IoV2Controller, parents, "unified")),
        ),
        memory_bytes=usage,
        oom_kills=oom_kills,
    )


def _of(kind: type[Controller], groups: Mapping[str, Path], name: str) -> Controller | None:
    return _at(kind, groups[name]) if name in groups else None


def _at(kind: type[Controller], group: Path) -> Controller:
    return kind(Node(str(group)))


def _read(controller: Controller | None, key: str) -> Any:
    """The parsed content of one file; None where there is no such file, or its group is gone or keeps no figures."""
    if controller is None:
        return None
    try:
        return controller.get_content(key)
    except (OSError, ValueError):
        # ENODEV: the group went away while it was read. EOPNOTSUPP: pressure is switched off.
        return None


def _oom_kills(control: object) -> int | None:
    # Kernels before 4.13 have no counter in memory.oom_control.
    return control.get("oom_kill") if isinstance(control, dict) else None


def _working_set(current: int | None, inactive_file: int | None) -> int | None:
    # Inactive page cache is given back before anything is killed, so it is not need (the rule of the kubelet).
    return None if current is None or inactive_file is None else max(0, current - inactive_file)


def _io_bytes(devices: Mapping[str, Mapping[str, str]] | str | None, key: str) -> int | None:
    if devices is None:
        return None
    # An empty file (cgroupspy gives "") says that nothing was transferred.
    return sum(int(figures.get(key, 0)) for figures in devices.values()) if isinstance(devices, Mapping) else 0


def _pressure(controller: Controller | None) -> float | None:
    lines = _read(controller, "pressure")
    average = lines.get("some", {}).get("avg10") if isinstance(lines, dict) else None
    return None if average is None else float(average)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
