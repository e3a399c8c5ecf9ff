"""The host's own shutdown: seen by the agent that it stops, and told to the next one, which finds the runs ended.

An engine that is stopped with its host signals its containers, and a program that tidies up and exits 0 then looks, to
the next agent, as if its work were done. The delivered units stop the agent before the engine, so that an end after the
agent saw the shutdown is the shutdown's, and one before it is the program's own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from fastflow.durable import replace_file

log = structlog.get_logger(__name__)

SHUTDOWN_FILE = "shutdown.json"

ASK_SECONDS = 5.0
"""Patience with systemd, which answers in milliseconds; it gives the agent 30 s to end."""


@dataclass(frozen=True)
class Shutdown:
    """An orderly shutdown of the host, which had begun by `time` (UTC) in the boot `boot_id`."""

    boot_id: str
    time: datetime


async def host_is_shutting_down() -> bool:
    """Whether systemd says so; false where another init, or a container around the agent, leaves nobody to ask."""
    return await asyncio.to_thread(_ask)


async def note_shutdown(stopping: asyncio.Event, data_dir: Path, boot_id: str, now: Callable[[], datetime]) -> None:
    """Once the agent is told to stop: if it is because the host shuts down, keep that for the next one."""
    await stopping.wait()
    shutdown = Shutdown(boot_id, now())
    if not await host_is_shutting_down():
        return
    log.info("the host shuts down")
    try:
        await asyncio.to_thread(_save, data_dir, shutdown)
    except OSError as error:
        log.warning("it could not be kept that the host shuts down", error=str(error))


def load_shutdown(data_dir: Path) -> Shutdown | None:
    """The last shutdown that an agent saw; None if there was none, or the file can not be read."""
    try:
        values = json.loads((data_dir / SHUTDOWN_FILE).read_text())
        return Shutdown(str(values["boot_id"]), datetime.fromisoformat(values["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(data_dir: Path, shutdown: Shutdown) -> None:
    text = json.dumps({"boot_id": shutdown.boot_id, "time": shutdown.time.isoformat()})
    replace_file(data_dir / SHUTDOWN_FILE, text)


def _ask() -> bool:
    command = ["systemctl", "is-system-running"]
    try:
        # Any state but "running" is an exit code of its own.
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "stopping"
