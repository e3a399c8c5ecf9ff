"""Which process the kernel chose to kill at a memory limit, read from the kernel's own log.

Format of a record: Documentation/ABI/testing/dev-kmsg. The line read here, `oom-kill:constraint=...`, is written
before the process is killed, so it stands there once its end is seen; mm/oom_kill.c, since kernel 5.0. Kernels say
nothing of some kills when there are many at once (printk ratelimit), and forget the oldest lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import structlog

from fastflow_agent.model import SlotId

log = structlog.get_logger(__name__)

KERNEL_LOG = Path("/dev/kmsg")

_RECORD_BYTES = 8192
"""No record is longer; a shorter buffer would have it refused."""

_KERNEL_FACILITY = 0
"""Facility of the kernel's own words; whoever may write to its log can not use it."""

# The name comes last but two, and is the only part that a program chooses: at most 15 bytes.
_OOM_KILL = re.compile(
    r"oom-kill:constraint=CONSTRAINT_MEMCG,.*?,oom_memcg=(?P<group>[^,]*),task_memcg=[^,]*,"
    r"task=(?P<name>.*),pid=\d+,uid=\d+"
)


def oom_victims(slot: SlotId, source: Path = KERNEL_LOG) -> tuple[str, ...]:
    """Names of the processes the kernel chose to kill at the memory limit of a slot, in their order.

    What a group kill ends beside the chosen one is not among them. Bytes that are not printable stand as `\\xNN`.
    Empty where the kernel does not tell, or the log may not be read here. Reads all that the kernel keeps, some
    thousand system calls: not for the event loop.
    """
    ours = re.compile(rf"/fastflow[/-]{re.escape(slot)}[./]")
    try:
        found = [_OOM_KILL.fullmatch(message) for message in _kernel_messages(source)]
    except OSError as error:
        # EPERM: without CAP_SYSLOG, where kernel.dmesg_restrict is set.
        log.info("the kernel's log can not be read, so it is not known which process was killed", error=str(error))
        return ()
    return tuple(match["name"] for match in found if match and ours.search(match["group"] + "/"))


def _kernel_messages(source: Path) -> Iterator[str]:
    """Everything the kernel itself said, oldest first, as far as it is still kept."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(descriptor, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The oldest record was overwritten meanwhile; the next read gives the oldest there is.
                continue
            if not record:
                return
            header, _, rest = record.decode("utf-8", "replace").partition(";")
            if int(header.partition(",")[0]) >> 3 == _KERNEL_FACILITY:
                # What follows in lines of its own are properties of a device.
                yield rest.partition("\n")[0]
    finally:
        os.close(descriptor)
