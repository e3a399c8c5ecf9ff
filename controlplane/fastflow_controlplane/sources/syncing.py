"""Keeps sources up to date: at start, at an interval, and whenever somebody asks; every sync leaves a record.

One task per source, so that a network that hangs holds up nothing but the syncs of its own source.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
from fastflow.ids import new_id

from fastflow_controlplane import pages
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.errors import FastFlowError, NotFound, Unavailable, not_found
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchFailed, FetchProcess
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.model import Changes, Commit
from fastflow_controlplane.sources.reader import SourceReader
from fastflow_controlplane.sources.remote import Credentials
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import syncs as queries
from fastflow_controlplane.store.queries.syncs import SyncRecord, SyncTrigger

log = structlog.get_logger(__name__)

WAIT_SECONDS = 10.0
"""How long one call waits for a sync: shorter than clients wait for any answer."""


@dataclass(frozen=True, slots=True)
class SyncUnderWay:
    """A sync that has not ended."""

    id: str
    source: str
    trigger: SyncTrigger


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source as callers see it. `commit` is the one in use, `newest` the last sync that ended.

    `error` says why the newest sync failed or the source can not be read; `problems` what of it is not used, among them
    the `clashes`, names that an earlier source has.
    """

    name: str
    is_git: bool
    place: str
    branch: str
    commit: Commit | None
    pipelines: int
    error: str
    problems: tuple[str, ...]
    clashes: tuple[str, ...]
    syncing: bool
    newest: SyncRecord | None


@dataclass(frozen=True)
class SyncPage:
    """Syncs, newest first; `next_page_token` "" = the last page."""

    syncs: tuple[SyncRecord, ...]
    next_page_token: str


@dataclass(frozen=True)
class Fetching:
    """How a Git source is fetched: its process, and its credentials, asked for each time as they may change.

    What was fetched is read within `read_seconds`.
    """

    process: FetchProcess
    credentials: Callable[[], Awaitable[Credentials]]
    branch: str
    read_seconds: float


class SyncService:
    """Syncs of all sources in `catalog`; those in `fetching` are Git repositories. `interval` is seconds."""

    def __init__(
        self, store: Store, clock: Clock, catalog: Catalog, fetching: Mapping[str, Fetching], interval: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._catalog = catalog
        self._interval = interval
        self._followers = {
            name: _Follower(store, clock, reader, fetching.get(name)) for name, reader in catalog.readers.items()
        }
        catalog.on_source_change = self._changed

    async def run(self) -> None:
        """Syncs every source until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for name, follower in self._followers.items():
                    group.create_task(follower.run(), name=f"sync-{name}")
                group.create_task(self._ask_often(), name="sync-interval")
        finally:
            for follower in self._followers.values():
                await follower.close()

    async def sync(self, name: str, *, wait: bool = False, sync_id: str = "") -> SyncRecord | SyncUnderWay:
        """Begins a sync, or looks for the one called `sync_id`. Returns at once, or when it ended.

        With `wait`, after WAIT_SECONDS at the latest, then still as under way. What is asked for while a sync is under
        way is one more after it, which sees whatever was pushed before. Raises NotFound.
        """
        follower = self._follower(name)
        wanted = follower.ask(SyncTrigger.REQUEST) if not sync_id else follower.unfinished(sync_id)
        if wanted is None:
            return follower.unstored(sync_id) or await self._stored(name, sync_id)
        if wait:
            await asyncio.wait([wanted.done], timeout=WAIT_SECONDS)
        return wanted.done.result() if wanted.done.done() else SyncUnderWay(wanted.id, name, wanted.trigger)

    async def get(self, name: str) -> SourceView:
        """Returns a source. Raises NotFound, with the nearest names."""
        return await self._view(name, self._follower(name))

    async def list(self) -> Sequence[SourceView]:
        """Returns all sources, in the order of the settings."""
        return [await self._view(*item) for item in self._followers.items()]

    async def syncs(self, name: str, *, page_size: int, page_token: str = "") -> SyncPage:
        """Returns a page of the syncs of a source. Raises NotFound."""
        self._follower(name)
        before = pages.key_of(page_token)
        found = await self._store.read(lambda connection: queries.list_syncs(connection, name, before, page_size + 1))
        page = found[:page_size]
        return SyncPage(tuple(page), pages.token_after(page[-1].id) if len(found) > page_size else "")

    async def _ask_often(self) -> None:
        while True:
            await self._clock.sleep(self._interval)
            for follower in self._followers.values():
                if follower.is_git or follower.has_unstored:
                    follower.ask(SyncTrigger.INTERVAL)

    def _changed(self, reader: SourceReader, changes: Changes) -> None:
        self._followers[reader.name].note(changes)

    def _follower(self, name: str) -> "_Follower":
        try:
            return self._followers[name]
        except KeyError:
            raise not_found("source", name, sorted(self._followers)) from None

    async def _stored(self, name: str, sync_id: str) -> SyncRecord:
        found = await self._store.read(lambda connection: queries.get(connection, sync_id))
        if found is None or found.source != name:
            raise NotFound(
                f'there is no sync "{sync_id}" of the source "{name}": begin a new one', reason="SYNC_NOT_FOUND"
            )
        return found

    async def _view(self, name: str, follower: "_Follower") -> SourceView:
        reader = follower.reader
        newest = follower.newest or await self._store.read(lambda connection: queries.newest(connection, name))
        # That nothing was fetched so far is no fault while the first sync is under way.
        condition = "" if follower.syncing and reader.was_never_synced else reader.condition
        return SourceView(
            name=name,
            is_git=follower.is_git,
            place=reader.source.place,
            branch=follower.branch,
            commit=reader.contents.commit,
            pipelines=len(reader.contents.snapshots),
            error=(newest.error if newest else "") or condition,
            problems=self._catalog.problems(name),
            clashes=self._catalog.clashes(name),
            syncing=follower.syncing,
            newest=newest,
        )


@dataclass
class _Sync:
    trigger: SyncTrigger
    id: str = field(default_factory=new_id)
    done: "asyncio.Future[SyncRecord]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Follower:
    """Syncs one source, one sync at a time."""

    def __init__(self, store: Store, clock: Clock, reader: SourceReader, fetching: Fetching | None) -> None:
        self.reader = reader
        self.branch = fetching.branch if fetching else ""
        self.newest: SyncRecord | None = None
        self._store = store
        self._clock = clock
        self._fetching = fetching
        self._running: _Sync | None = None
        self._next: _Sync | None = None
        self._asked = asyncio.Event()
        self._noted: list[Changes] = []
        self._recorded_commit = ""
        self._unstored: list[SyncRecord] = []

    @property
    def is_git(self) -> bool:
        """Whether it is fetched."""
        return self._fetching is not None

    @property
    def syncing(self) -> bool:
        """Whether a sync is under way."""
        return self._running is not None

    def ask(self, trigger: SyncTrigger) -> _Sync:
        """Returns the next sync, which begins after this call; several callers share it."""
        if self._next is None:
            self._next = _Sync(trigger)
            self._asked.set()
        elif trigger in (SyncTrigger.REQUEST, SyncTrigger.START):
            # A request's record is a row of its own, which the one who asked can find.
            self._next.trigger = trigger
        return self._next

    def unfinished(self, sync_id: str) -> _Sync | None:
        """Returns the sync of that id, unless it has ended."""
        return next((sync for sync in (self._running, self._next) if sync and sync.id == sync_id), None)

    @property
    def has_unstored(self) -> bool:
        """Whether there are records that could not be stored so far."""
        return bool(self._unstored)

    def unstored(self, sync_id: str) -> SyncRecord | None:
        """Returns the record of that id, if it could not be stored so far."""
        return next((record for record in self._unstored if record.id == sync_id), None)

    def note(self, changes: Changes) -> None:
        """Notes what a look at the source found: part of a sync under way, or of the next.

        For a folder that is one of its own; a Git source can change so if it was read for too long.
        """
        self._noted.append(changes)
        if self._fetching is None and self._running is None:
            self.ask(SyncTrigger.CHANGE)

    async def run(self) -> None:
        """Syncs whenever that is asked for, and at once."""
        self.ask(SyncTrigger.START)
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._running, self._next = self._next, None
            if self._running is not None:
                await self._sync(self._running)
            self._running = None

    async def close(self) -> None:
        """Ends the process that fetches."""
        if self._fetching is not None:
            await self._fetching.process.close()

    async def _sync(self, sync: _Sync) -> None:
        started = self._clock.now()
        error = ""
        try:
            if sync.trigger is SyncTrigger.START:
                await self._begin()
            await (self._fetch(self._fetching) if self._fetching else self.reader.refresh())
        except (FetchFailed, FastFlowError) as fault:
            error = str(fault)
        except Exception:
            # The tasks of the control plane end with one another: no repository may be the end of them.
            log.exception("a sync failed by a fault of the control plane", source=self.reader.name)
            error = "the control plane failed; its log tells more. What was in use stays, the next sync tries again"
        record = self._record(sync, started, error)
        self._tell(record)
        await self._keep(record)
        sync.done.set_result(record)

    def _record(self, sync: _Sync, started: int, error: str) -> SyncRecord:
        """Tells all that is different since the record before, whichever look found it."""
        changes, self._noted = _together(self._noted), []
        before, self._recorded_commit = self._recorded_commit, _id(self.reader.contents.commit)
        return SyncRecord(
            id=sync.id,
            source=self.reader.name,
            trigger=sync.trigger,
            start_time=started,
            end_time=self._clock.now(),
            from_commit=before,
            to_commit=self._recorded_commit,
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            invalid=changes.invalid,
            error=error,
        )

    async def _fetch(self, fetching: Fetching) -> None:
        source = self.reader.source
        assert isinstance(source, GitSource)
        try:
            commit = await fetching.process.fetch(await fetching.credentials())
        except FetchFailed as fault:
            if source.left_behind:
                raise FetchFailed(f"{fault}. Until it can be, there are no pipelines: {source.left_behind}") from None
            raise
        await self.reader.take(partial(source.advance, commit), fetching.read_seconds)

    async def _begin(self) -> None:
        """Reads what is here already: only what differs from it is news."""
        with suppress(Unavailable):
            if self._fetching is None:
                await self.reader.refresh()
            else:
                await self.reader.take(self.reader.source.scan, self._fetching.read_seconds)
        self._noted = []
        self._recorded_commit = _id(self.reader.contents.commit)

    def _tell(self, record: SyncRecord) -> None:
        known = self.newest.error if self.newest else ""
        if record.error and record.error != known:
            log.error("source could not be synced", source=record.source, why=record.error)
        elif known and not record.error:
            log.info("source is synced again", source=record.source)
        if record.from_commit != record.to_commit:
            log.info("source synced", source=record.source, commit=record.to_commit)

    async def _keep(self, record: SyncRecord) -> None:
        """Stores a record, after those that could not be while the database was away."""
        self.newest = record
        told = self._fetching is not None or record.trigger is SyncTrigger.REQUEST or record.error or _news(record)
        if told:
            self._unstored = _with(self._unstored, record)
            self.newest = self._unstored[-1]
        if not self._unstored:
            return
        waiting = tuple(self._unstored)
        try:
            stored = await self._store.write(lambda connection: [queries.record(connection, each) for each in waiting])
        except FastFlowError as fault:
            log.warning("a sync can not be recorded for now", source=record.source, why=fault.message)
            return
        self._unstored = []
        if told:
            self.newest = stored[-1]


def _with(records: Sequence[SyncRecord], newest: SyncRecord) -> list[SyncRecord]:
    """Returns records as they would be stored one after the other."""
    joined = queries.joined_with(records[-1], newest) if records else None
    return [*records[:-1], joined] if joined else [*records, newest][-queries.KEPT :]


def _id(commit: Commit | None) -> str:
    return commit.id if commit else ""


def _news(record: SyncRecord) -> bool:
    return bool(record.added or record.changed or record.removed)


def _together(looks: Sequence[Changes]) -> Changes:
    def names(field_name: str) -> tuple[str, ...]:
        return tuple(sorted({name for changes in looks for name in getattr(changes, field_name)}))

    return Changes(names("added"), names("changed"), names("removed"), names("invalid"))
