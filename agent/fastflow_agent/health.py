"""Looks at engine, image and disk every few seconds, and turns what it finds into conditions."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import structlog
from fastflow.pipelines.sizes import format_size

from fastflow_agent.clock import Clock
from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.runtime.base import Facts, Runtime, RuntimeUnavailable

log = structlog.get_logger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RECOVERED_SHARE = 1.25
"""A full disk counts as free again only above this share of the reserve, so that the condition does not flicker."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the bottom of `error`; engines tell it in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if "no space left on device" in str(error).lower():
            return True
        error = error.__cause__
    return False


class Health:
    """What is known of the host. Every look is bounded in time, whatever hangs."""

    def __init__(
        self,
        runtime: Runtime,
        conditions: Conditions,
        clock: Clock,
        disk: Executor,
        *,
        data_dir: Path,
        disk_reserve: int,
        interval: float,
        runtime_name: str,
        folder_stands: Callable[[], bool] = lambda: True,
    ) -> None:
        """`folder_stands` tells, and may block for it, whether `data_dir` is still the folder that the agent took."""
        self._runtime = runtime
        self._conditions = conditions
        self._clock = clock
        self._disk = disk
        self._data_dir = data_dir
        self._folder_stands = folder_stands
        self._disk_reserve = disk_reserve
        self._interval = interval
        self._early = asyncio.Event()
        self._unavailable = (
            ConditionType.DOCKER_UNAVAILABLE if runtime_name == "docker" else ConditionType.RUNTIME_UNAVAILABLE
        )
        self.facts = Facts(runtime=runtime_name, runtime_version="", cgroup="")
        """What the last successful probe found."""

    async def run(self) -> None:
        """Look until cancelled; at once when somebody met a trouble."""
        while True:
            await self.look()
            await self._pause()

    async def look(self) -> None:
        """Look once at everything."""
        await self.probe()
        await self._look_at_folder()
        await self._look_at_disk()

    async def probe(self) -> Facts | None:
        """Ask the engine now; None while it does not answer."""
        try:
            self.facts = await self._runtime.probe()
        except RuntimeUnavailable as error:
            self._conditions.hold(self._unavailable, str(error))
            return None
        self._conditions.clear(self._unavailable)
        self._say(ConditionType.IMAGE_MISSING, self.facts.problem)
        self._say(ConditionType.UNCONFINED, self.facts.unconfined)
        return self.facts

    def engine_refused(self, error: RuntimeUnavailable) -> None:
        """Somebody found the engine away: placements stop now, and the next look comes at once."""
        self._conditions.hold(self._unavailable, str(error))
        self._early.set()

    def disk_refused(self, error: OSError) -> None:
        """A write failed: placements stop until the disk is seen to have room."""
        log.warning("disk refused a write", error=str(error))
        self._conditions.hold(
            ConditionType.DISK_FULL,
            f"writing under {self._data_dir} failed: {error.strerror or error}; make room on that disk",
        )
        self._early.set()

    async def _pause(self) -> None:
        # An early look still waits a little: a trouble that many runs meet at once is one trouble.
        await self._clock.sleep(min(self._interval, 0.5))
        if self._interval <= 0.5:
            return
        early = asyncio.ensure_future(self._early.wait())
        rest = asyncio.ensure_future(self._clock.sleep(self._interval - 0.5))
        try:
            await asyncio.wait({early, rest}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            early.cancel()
            rest.cancel()
        self._early.clear()

    def _say(self, kind: ConditionType, message: str) -> None:
        if message:
            self._conditions.hold(kind, message)
        else:
            self._conditions.clear(kind)

    async def _look_at_folder(self) -> None:
        stands = await asyncio.get_running_loop().run_in_executor(self._disk, self._folder_stands)
        lost = (
            f"{self._data_dir} was removed or replaced under this agent: start the agent anew. Until then what runs "
            "here goes on; runs that have not ended by then end as STATE_LOST"
        )
        self._say(ConditionType.DATA_FOLDER_LOST, "" if stands else lost)

    async def _look_at_disk(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            free = await loop.run_in_executor(self._disk, _free_bytes, self._data_dir)
        except OSError as error:
            self._conditions.hold(ConditionType.DISK_FULL, f"{self._data_dir} can not be used: {error.strerror}")
            return
        if free < self._disk_reserve:
            self._conditions.hold(
                ConditionType.DISK_FULL,
                f"the disk of {self._data_dir} has {format_size(free)} left, less than the reserve of "
                f"{format_size(self._disk_reserve)}; make room there",
            )
        elif free >= self._disk_reserve * _RECOVERED_SHARE:
            self._conditions.clear(ConditionType.DISK_FULL)


def _free_bytes(folder: Path) -> int:
    """Bytes an unprivileged writer (the container) could still write."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
