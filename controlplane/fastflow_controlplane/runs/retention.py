"""Removes what need not be kept any longer: runs by age and number, logs by their bytes, answered requests by age.

One task, in small operations of the one writer, so that runs never wait for it. What may go is decided by a plain
function (`may_go`), and checked again by the operation that removes it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from fastflow.service.failpoints import ControlPlanePoint, reach

from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.disk import DISK_FULL
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.logs.retention import StoredLog, surplus
from fastflow_controlplane.logs.store import LogKey, LogStore, StoreUnavailable
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import retention as rows
from fastflow_controlplane.store.queries.retention import KeptRun

log = structlog.get_logger(__name__)

PAGE = 100
"""Runs or logs looked at in one query."""
BATCH = 20
"""Runs or logs removed in one operation: some milliseconds, so that others get their turn at the writer."""
REQUESTS_KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a repeated request gets its first answer: clients repeat for minutes, a person after a weekend."""
REQUESTS_BATCH = 500
FIRST = LogKey("", 0)
"""Comes before every log."""
LOGS_SETTING = "log_max_total"
"""What `Attempt.log_removed_by` says of a log that went for its bytes."""

Told = Callable[[str, int], bool]
"""Whether an agent (id) has taken over a revision of what it shall do, or is away for long."""
Removed = Callable[[Collection[str]], None]
"""Hears of runs (ids) that are no more, after the commit."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What of one pipeline is beyond what is kept. `ended_before` is microseconds UTC, 0 = age does not count.

    `beyond` is the newest run that is one too many, "" = there is none; `newest` the one that always stays.
    """

    newest: str
    ended_before: int
    beyond: str

    def end_at(self, run: KeptRun) -> bool:
        """Returns whether no later run than this one can be beyond what is kept."""
        return run.create_time >= self.ended_before and run.id >= self.beyond


def may_go(run: KeptRun, bounds: Bounds, told: Told) -> bool:
    """Returns whether a run is to be removed.

    Only one that has ended, whose attempts are all settled, and whose agents know that they are to forget them: who is
    not told yet would hear of it never, or of an attempt that nobody knows.
    """
    if run.end_time is None or run.id == bounds.newest:
        return False
    if run.end_time >= bounds.ended_before and run.id > bounds.beyond:
        return False
    return all(attempt.settled and told(attempt.agent_id, attempt.revision) for attempt in run.attempts)


class Retention:
    """Looks, each `retention_interval`, for what need not be kept."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: ControlPlaneSettings,
        logs: LogStore,
        told: Told,
        on_removed: Removed,
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._logs = logs
        self._told = told
        self._on_removed = on_removed
        self._stuck: dict[LogKey, StoreUnavailable] = {}

    async def run(self) -> None:
        """Works until cancelled; what the database or a disk refuses is tried again."""
        while True:
            try:
                await self.tick()
            except Unavailable as error:
                if error.reason != DISK_FULL:  # which is a condition, told once
                    log.warning("old runs could not be removed", why=error.message)
            await self._clock.sleep(self._settings.retention_interval)

    async def tick(self) -> None:
        """Removes all there is to remove now. Raises Unavailable, where it is for single files once all was tried."""
        self._stuck.clear()
        await self._remove_files()
        for pipeline, newest in (await self._store.read(rows.read_newest)).items():
            await self._remove_runs(pipeline, newest)
        await self._remove_logs()
        await self._forget_requests()
        for fault in self._stuck.values():
            raise fault

    async def _remove_runs(self, pipeline: str, newest: str) -> None:
        bounds = await self._bounds(pipeline, newest)
        removed, after = 0, ""
        while True:
            page = await self._store.read(partial(rows.read_oldest, pipeline=pipeline, after=after, limit=PAGE))
            chosen = [run.id for run in page if may_go(run, bounds, self._told)]
            for start in range(0, len(chosen), BATCH):
                batch = chosen[start : start + BATCH]
                gone: list[str] = await self._store.write(partial(rows.remove_runs, run_ids=batch), self._on_removed)
                removed += len(gone)
                reach(ControlPlanePoint.RUNS_REMOVED)
                await self._remove_files()
            if len(page) < PAGE or bounds.end_at(page[-1]):
                break
            after = page[-1].id
        if removed:
            log.info("old runs were removed", pipeline=pipeline, runs=removed)

    async def _bounds(self, pipeline: str, newest: str) -> Bounds:
        age, count = self._settings.run_max_age, self._settings.run_max_count
        ended_before = self._clock.now() - round(age * MICROSECONDS) if age else 0
        beyond = ""
        if count:
            beyond = await self._store.read(partial(rows.read_first_beyond, pipeline=pipeline, count=count))
        return Bounds(newest, ended_before, beyond)

    async def _remove_logs(self) -> None:
        limit = self._settings.log_max_total_bytes
        if not limit:
            return
        await self._measure_logs()
        excess = await self._store.read(rows.read_log_bytes) - limit
        if excess <= 0:
            return
        newest = frozenset((await self._store.read(rows.read_newest)).values())
        freed, after = 0, FIRST
        while freed < excess:
            page = await self._store.read(partial(rows.read_oldest_logs, after=after, limit=PAGE))
            chosen = surplus(page, newest, excess - freed)
            for start in range(0, len(chosen), BATCH):
                batch = [stored.key for stored in chosen[start : start + BATCH]]
                await self._store.write(partial(self._say_removed, keys=batch))
                reach(ControlPlanePoint.LOGS_REMOVED)
                await self._remove_files()
            freed += sum(stored.bytes for stored in chosen)
            if len(page) < PAGE:
                break
            after = page[-1].key
        if freed:
            log.info("logs of old runs were removed", bytes=freed, setting=LOGS_SETTING)

    async def _measure_logs(self) -> None:
        """Notes how long the logs are whose rest an agent still has, and perhaps never delivers."""
        after = FIRST
        while unsealed := await self._store.read(partial(rows.read_unsealed_logs, after=after, limit=PAGE)):
            after = unsealed[-1].key
            grown = []
            for stored in unsealed:
                try:
                    async with self._logs.open(stored.key) as opened:
                        if opened.end != stored.bytes:
                            grown.append(StoredLog(stored.key, opened.end))
                except StoreUnavailable as fault:
                    self._stuck[stored.key] = fault
            if grown:
                await self._store.write(partial(rows.note_log_bytes, logs=grown))

    def _say_removed(self, connection: Connection, keys: Sequence[LogKey]) -> None:
        rows.remove_logs(connection, keys, LOGS_SETTING, self._clock.now())

    async def _remove_files(self) -> None:
        """Removes the files that are due, those of a process that died in between as well.

        One that can not be removed holds up no other; it is tried again at the next look.
        """
        after = FIRST
        while due := await self._store.read(partial(rows.read_due, after=after, limit=PAGE)):
            after = due[-1]
            fresh = [key for key in due if key not in self._stuck]
            for key in fresh:
                try:
                    await self._logs.remove(key.run_id, key.attempt)
                except StoreUnavailable as fault:
                    self._stuck[key] = fault
            gone = [key for key in fresh if key not in self._stuck]
            if gone:
                reach(ControlPlanePoint.FILES_REMOVED)
                await self._store.write(partial(rows.forget_due, keys=gone))

    async def _forget_requests(self) -> None:
        before = self._clock.now() - round(REQUESTS_KEPT_SECONDS * MICROSECONDS)
        while await self._store.write(partial(rows.remove_requests, before=before, limit=REQUESTS_BATCH)):
            pass
