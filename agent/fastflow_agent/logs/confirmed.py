"""How long logs were once nobody could write to them any more, as their host shut down.

The agent is stopped before the engine, and does not see what containers write until the engine ends them. So
`fastflow-agent confirm-logs` looks when both have stopped. For each log to which nobody writes it has the disk keep all
of it, and notes its length for the agent of the next boot: a log that is as long then is whole. It is each log that is
asked, not the engine: one that was killed, or set to leave its containers running, tells nothing of them.

A note of one boot is for those after it: an agent that starts in the same boot removes it, since it may let a container
write whose log had been at rest until then.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from fastflow.durable import replace_file, sync_folder

from fastflow_agent.model import SlotId

log = structlog.get_logger(__name__)

CONFIRMED_FILE = "confirmed-logs.json"


@dataclass(frozen=True)
class ConfirmedLogs:
    """Length in bytes of each log that nobody wrote to any more when the boot `boot_id` came to its end."""

    boot_id: str = ""
    lengths: Mapping[SlotId, int] = field(default_factory=dict)

    def length(self, slot: SlotId, boot_id: str) -> int | None:
        """How long the log was of a slot that was released in the boot `boot_id`; None = nobody knows."""
        return self.lengths.get(slot) if boot_id == self.boot_id else None


def confirm_logs(data_dir: Path, boot_id: str) -> ConfirmedLogs:
    """Note the logs of this boot, `boot_id`, that nobody writes to any more, durably; the caller has the folder's lock.

    Blocks. Raises OSError if the note can not be written.
    """
    logs = sorted((data_dir / "slots").glob("*/log"))
    lengths = {SlotId(path.parent.name): durable_length(path, at_rest=True) for path in logs}
    confirmed = ConfirmedLogs(boot_id, {slot: length for slot, length in lengths.items() if length is not None})
    replace_file(data_dir / CONFIRMED_FILE, json.dumps({"boot_id": boot_id, "lengths": confirmed.lengths}))
    log.info("logs are confirmed", confirmed=len(confirmed.lengths), unknown=len(lengths) - len(confirmed.lengths))
    return confirmed


def load_confirmed_logs(data_dir: Path, boot_id: str) -> ConfirmedLogs:
    """What was confirmed when an earlier boot than this one, `boot_id`, came to its end; nothing if it can not be read.

    Blocks. Raises OSError if a note of this boot can not be removed.
    """
    path = data_dir / CONFIRMED_FILE
    try:
        values = json.loads(path.read_text())
        lengths = {SlotId(slot): int(length) for slot, length in values["lengths"].items()}
        confirmed = ConfirmedLogs(str(values["boot_id"]), lengths)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ConfirmedLogs()
    if confirmed.boot_id != boot_id:
        return confirmed
    path.unlink()
    sync_folder(data_dir)
    return ConfirmedLogs()


def durable_length(path: Path, *, at_rest: bool = False) -> int | None:
    """Length of a log, all of it on the disk on return; None if the disk fails.

    With `at_rest` None also while somebody may write to it. Blocks.
    """
    try:
        # As a spool opens it: whoever owns the file must not make others wait, or lead them elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # The kernel refuses a lease for reading while anybody, in whichever container, has the file open for
            # writing or mapped (fcntl(2)). The first process of a run has its log open until the run's end. Whoever
            # opens it while the lease is held ends this process by SIGIO, and then nothing is noted.
            if at_rest:
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            length = os.fstat(descriptor).st_size
            os.fsync(descriptor)
            return length
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("it is not known how long this log is", log=str(path), reason=error.strerror)
        return None
