"""Control group files cgroupspy does not know: all of version 2, and pids and throttled I/O of version 1.

Built on its Controller and file interfaces. Formats: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import BaseFileInterface, DictFile, IntegerFile


class KeyedFile(BaseFileInterface):  # type: ignore[misc]  # the library has no types
    """A nested keyed file, `KEY a=1 b=2` a line, as {KEY: {a: "1", b: "2"}}; io.stat and *.pressure are such."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, dict[str, str]]:
        """Parse the file's content; a device without figures (`8:0 ` alone) has an empty mapping."""
        lines = (line.split() for line in value.splitlines() if line.strip())
        return {key: dict(pair.split("=", 1) for pair in pairs if "=" in pair) for key, *pairs in lines}


class DeviceOperationsFile(BaseFileInterface):  # type: ignore[misc]  # the library has no types
    """blkio's `MAJOR:MINOR Operation BYTES` lines as {operation: bytes over all devices}."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        """Sum up; the last line, `Total BYTES`, names no device and is left out."""
        sums: dict[str, int] = {}
        for line in value.splitlines():
            match line.split():
                case [_, operation, amount]:
                    sums[operation] = sums.get(operation, 0) + int(amount)
        return sums


class MemoryV2Controller(Controller):  # type: ignore[misc]  # the library has no types
    """The memory controller of version 2."""

    current = IntegerFile("memory.current", readonly=True)
    peak = IntegerFile("memory.peak", readonly=True)
    stat = DictFile("memory.stat", readonly=True)
    events = DictFile("memory.events", readonly=True)
    oom_group = IntegerFile("memory.oom.group")
    pressure = KeyedFile("memory.pressure")


class CpuV2Controller(Controller):  # type: ignore[misc]  # the library has no types
    """The cpu controller of version 2."""

    stat = DictFile("cpu.stat", readonly=True)
    pressure = KeyedFile("cpu.pressure")


class IoV2Controller(Controller):  # type: ignore[misc]  # the library has no types
    """The io controller of version 2."""

    stat = KeyedFile("io.stat")
    pressure = KeyedFile("io.pressure")


class PidsController(Controller):  # type: ignore[misc]  # the library has no types
    """The pids controller, the same in both versions."""

    current = IntegerFile("pids.current", readonly=True)


class BlkIOThrottleController(Controller):  # type: ignore[misc]  # the library has no types
    """Bytes through version 1's blkio, which are counted with any I/O scheduler and, `_recursive`, with descendants."""

    service_bytes_recursive = DeviceOperationsFile("blkio.throttle.io_service_bytes_recursive")
