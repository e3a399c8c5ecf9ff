"""Environments that are prepared before a run needs them: one at a time, and after all that runs wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import structlog
from fastflow.backoff import Backoff

from fastflow_agent.bundles import BundleFault
from fastflow_agent.clock import Clock
from fastflow_agent.runtime.base import HostFault, ImageMissing, RuntimeFault, RuntimeUnavailable
from fastflow_agent.uvcache import EnvironmentFault, Generation

log = structlog.get_logger(__name__)

RETRY_INITIAL_SECONDS = 60.0
RETRY_MAXIMUM_SECONDS = 3600.0
"""Back-off after a failure: requirements that can not be met seldom mend themselves, an index that was away does."""

HINDERED_INITIAL_SECONDS = 5.0
HINDERED_MAXIMUM_SECONDS = 300.0
"""Back-off where this host is at fault, disk or engine: its conditions tell most of that, and hold up all meanwhile."""

LOOK_SECONDS = 5.0
"""How often it is looked whether what is in the way (a full disk, no image) has gone, or the image is another."""

MESSAGE_CHARACTERS = 2000
"""How much of uv's output is told: its end, where the refusal stands."""

REMEMBERED = 1000
"""Environments that runs alone asked for, of which the control plane is told so that it places their like here."""

REPORTED = 100
"""Results told at once: with their packages far below the largest message."""

Key = tuple[str, str]
"""Digest of a bundle, and the version of Python its program asks for ("" = the image's)."""


class PreheatState(StrEnum):
    """The names of the protocol's EnvironmentState."""

    WAITING = "WAITING"
    PREPARING = "PREPARING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Wanted:
    """An environment to have ready: what the code of a bundle of `bundle_size` bytes needs."""

    bundle_digest: str
    bundle_size: int
    python_version: str = ""

    @property
    def key(self) -> Key:
        """What it is told apart by."""
        return self.bundle_digest, self.python_version


@dataclass(frozen=True)
class Result:
    """How far one environment is. `seconds` is how long preparing took; times are UTC.

    READY with a message is one that could not be prepared again, so the old one is in use, or that has not the Python
    its code asks for.
    """

    key: Key
    state: PreheatState
    message: str = ""
    seconds: float = 0.0
    packages: tuple[str, ...] = ()
    prepared: datetime | None = None
    retry: datetime | None = None


@dataclass(frozen=True)
class PreheatReport:
    """What was not told yet; of those that are `gone` nothing is told any longer.

    `full` = it replaces all that was told before.
    """

    results: Sequence[Result]
    gone: Sequence[Key]
    full: bool


class Code(Protocol):
    """Where code comes from: Bundles."""

    async def ensure(self, digest: str, size: int) -> Path:
        """See `Bundles.ensure`."""


class Environments(Protocol):
    """What prepares: UvCache."""

    async def ensure_ahead(
        self, code: Path, python_version: str, image_digest: str, max_age: float, waits: Callable[[int], None]
    ) -> Generation:
        """See `UvCache.ensure_ahead`."""

    def environments(self) -> list[str]:
        """See `UvCache.environments`."""


@dataclass
class _Entry:
    wanted: Wanted
    result: Result
    due: float
    environment: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS))
    hindrances: Backoff = field(default_factory=lambda: Backoff(HINDERED_INITIAL_SECONDS, HINDERED_MAXIMUM_SECONDS))
    losses: Backoff = field(default_factory=lambda: Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS))


class Preheat:
    """Keeps the wanted environments ready; `run` does the work, everything else returns at once.

    `image` gives the digest of the runner image, "" while it is missing; `obstacle` says in a sentence why nothing may
    be prepared now, "" = it may. `max_age` is in seconds, 0 = environments never become too old. `changed` is called
    when `report` has something to tell. `look` is how often, in seconds, both are asked.
    """

    def __init__(
        self,
        code: Code,
        environments: Environments,
        clock: Clock,
        *,
        image: Callable[[], str],
        obstacle: Callable[[], str],
        max_age: float,
        changed: Callable[[], None],
        look: float = LOOK_SECONDS,
    ) -> None:
        self._code = code
        self._environments = environments
        self._clock = clock
        self._image = image
        self._obstacle = obstacle
        self._max_age = max_age
        self._changed = changed
        self._look = look
        self._entries: dict[Key, _Entry] = {}
        self._seen: dict[Key, Result] = {}
        self._prepared_for = ""
        self._untold: dict[Key, None] = {}
        self._all_untold = False
        self._woken = asyncio.Event()
        self._current: tuple[Key, asyncio.Task[None]] | None = None

    def take(self, wanted: Sequence[Wanted]) -> None:
        """Takes over all that is wanted from now on; `report` then begins with everything known."""
        before = self._entries
        self._entries = {each.key: before.get(each.key) or self._waiting(each) for each in wanted}
        self._all_untold = True
        self._changed()
        self._follow()

    def change(self, wanted: Sequence[Wanted], gone: Sequence[Key]) -> None:
        """Takes over what is wanted besides, and what no longer."""
        for key in gone:
            if self._entries.pop(key, None) is not None:
                self._tell(key)
        for each in wanted:
            if each.key not in self._entries:
                self._entries[each.key] = self._waiting(each)
                self._tell(each.key)
        self._follow()

    def _waiting(self, wanted: Wanted) -> _Entry:
        return _Entry(wanted, Result(wanted.key, PreheatState.WAITING), self._clock.monotonic())

    def _follow(self) -> None:
        """Turns to what is wanted now."""
        if self._current is not None and self._current[0] not in self._entries:
            self._current[1].cancel()
        self._woken.set()

    def note(self, bundle_digest: str, python_version: str, generation: Generation) -> None:
        """A run got its environment, which is here now for others too."""
        key = bundle_digest, python_version
        entry = self._entries.get(key)
        if entry is None:
            self._seen.pop(key, None)
            self._seen[key] = _ready(key, generation)
            self._tell(key)
            if len(self._seen) > REMEMBERED:
                oldest = next(iter(self._seen))
                del self._seen[oldest]
                self._tell(oldest)
        elif entry.result.state is not PreheatState.READY and self._current_key != key:
            self._succeed(entry, generation)

    def report(self) -> PreheatReport:
        """Returns what was not told yet, at most REPORTED of it: there is more as long as `changed` is called."""
        full, self._all_untold = self._all_untold, False
        if full:
            self._untold = dict.fromkeys((*self._entries, *self._seen))
        keys = list(self._untold)[:REPORTED]
        for key in keys:
            del self._untold[key]
        if self._untold:
            self._changed()
        told = {key: self._entries[key].result if key in self._entries else self._seen.get(key) for key in keys}
        return PreheatReport(
            results=[result for result in told.values() if result is not None],
            gone=[key for key, result in told.items() if result is None],
            full=full,
        )

    async def run(self) -> None:
        """Prepares what is due, until cancelled."""
        while True:
            entry = await self._next()
            task = asyncio.create_task(self._prepare(entry), name="prepare an environment ahead")
            self._current = entry.wanted.key, task
            try:
                # Not awaited itself: `take` may cancel it, which must not end this loop.
                await asyncio.wait([task])
            finally:
                task.cancel()
                self._current = None

    @property
    def _current_key(self) -> Key | None:
        return self._current[0] if self._current else None

    async def _next(self) -> _Entry:
        while True:
            self._woken.clear()
            image = self._look_at_image()
            self._look_for_lost()
            now = self._clock.monotonic()
            entry = min(self._entries.values(), key=lambda entry: entry.due, default=None)
            obstacle = self._obstacle() or ("" if image else "there is no runner image yet")
            if entry is not None and entry.due <= now:
                if not obstacle:
                    return entry
                self._hold_up(obstacle, now)
            woken = asyncio.ensure_future(self._woken.wait())
            due = entry.due - now if entry is not None and entry.due > now else self._look
            waited = asyncio.ensure_future(self._clock.sleep(min(due, self._look)))
            try:
                await asyncio.wait({woken, waited}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
                waited.cancel()

    def _look_at_image(self) -> str:
        """Returns the image there is; another one makes other environments."""
        image = self._image()
        if image and image != self._prepared_for:
            self._prepared_for = image
            for entry in self._entries.values():
                entry.due = min(entry.due, self._clock.monotonic())
        return image

    def _look_for_lost(self) -> None:
        """What was damaged or had to make room is prepared again; ever more seldom, as it may have to go again."""
        held = set(self._environments.environments())
        for entry in self._entries.values():
            if entry.result.state is PreheatState.READY and entry.environment not in held:
                self._retry_in(entry, entry.losses.next())
                message = (
                    "it was removed, being damaged or for want of room in the uv cache, and is prepared again soon"
                )
                self._set(entry, Result(entry.wanted.key, PreheatState.WAITING, message))

    def _hold_up(self, obstacle: str, now: float) -> None:
        for entry in self._entries.values():
            if entry.due <= now and entry.result.state is not PreheatState.READY:
                self._set(entry, Result(entry.wanted.key, PreheatState.WAITING, obstacle))

    async def _prepare(self, entry: _Entry) -> None:
        wanted = entry.wanted
        self._say(entry, PreheatState.WAITING)
        try:
            code = await self._code.ensure(wanted.bundle_digest, wanted.bundle_size)
            self._succeed(
                entry,
                await self._environments.ensure_ahead(
                    code,
                    wanted.python_version,
                    self._prepared_for,
                    self._max_age,
                    lambda ahead: self._say(entry, PreheatState.WAITING if ahead else PreheatState.PREPARING),
                ),
            )
        except EnvironmentFault as fault:
            self._fail(entry, fault.output.decode("utf-8", "replace").strip()[-MESSAGE_CHARACTERS:] or str(fault))
        except (RuntimeUnavailable, HostFault, OSError) as error:
            # Of this host, and looked after elsewhere: the requirements are not at fault.
            self._put_off(entry, f"the worker can not prepare it at present: {error}"[:MESSAGE_CHARACTERS])
        except (BundleFault, ImageMissing, RuntimeFault) as fault:
            self._fail(entry, str(fault)[:MESSAGE_CHARACTERS])
        except Exception as error:
            log.error("preparing ahead met an error", bundle=wanted.bundle_digest, error=repr(error), exc_info=error)
            self._fail(entry, f"the agent could not prepare it: {type(error).__name__}")

    def _say(self, entry: _Entry, state: PreheatState) -> None:
        """Notes how far it is; of one that is there and is only prepared again, nothing is told of that."""
        if entry.result.state is not PreheatState.READY:
            self._set(entry, Result(entry.wanted.key, state))

    def _succeed(self, entry: _Entry, generation: Generation) -> None:
        entry.backoff.reset()
        entry.hindrances.reset()
        entry.environment = generation.environment
        age = self._clock.now().timestamp() - generation.prepared
        left = self._max_age - age if self._max_age else float("inf")
        entry.due = self._clock.monotonic() + max(left, RETRY_INITIAL_SECONDS)
        self._set(entry, _ready(entry.wanted.key, generation))

    def _fail(self, entry: _Entry, message: str) -> None:
        delay = self._retry_in(entry, entry.backoff.next())
        retry = self._clock.now() + timedelta(seconds=delay)
        log.warning("an environment can not be prepared", bundle=entry.wanted.bundle_digest, why=message)
        if entry.result.state is PreheatState.READY:
            message = f"could not be prepared again, so the old one stays in use: {message}"
            self._set(entry, replace(entry.result, message=message, retry=retry))
        else:
            self._set(entry, Result(entry.wanted.key, PreheatState.FAILED, message, retry=retry))

    def _put_off(self, entry: _Entry, message: str) -> None:
        self._retry_in(entry, entry.hindrances.next())
        if entry.result.state is not PreheatState.READY:
            self._set(entry, Result(entry.wanted.key, PreheatState.WAITING, message))

    def _retry_in(self, entry: _Entry, seconds: float) -> float:
        entry.due = self._clock.monotonic() + seconds
        return seconds

    def _set(self, entry: _Entry, result: Result) -> None:
        if entry.result != result:
            entry.result = result
            if self._entries.get(result.key) is entry:
                self._tell(result.key)

    def _tell(self, key: Key) -> None:
        self._untold[key] = None
        self._changed()


def _ready(key: Key, generation: Generation) -> Result:
    prepared = datetime.fromtimestamp(generation.prepared, UTC) if generation.prepared else None
    return Result(key, PreheatState.READY, generation.unmet, generation.seconds, generation.packages, prepared)
