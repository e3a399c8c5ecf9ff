"""Reads one source, in one thread of its own, one thing at a time.

A network mount that hangs holds up neither the event loop nor another source, and never more than that one thread.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from contextlib import asynccontextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeVar

import structlog
from fastflow.pipelines.bundle import Bundle, pack
from fastflow.pipelines.code import ANY_SIZE, read_code
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.folder import FolderFault

from fastflow_controlplane.clock import Clock
from fastflow_controlplane.disk import DISK_FULL, full_message, says_full
from fastflow_controlplane.errors import FieldViolation, InvalidArgument, Unavailable
from fastflow_controlplane.sources.bundles import BundleStore
from fastflow_controlplane.sources.model import Changes, Commit, Contents, Snapshot
from fastflow_controlplane.sources.mounted import KeepsChanging
from fastflow_controlplane.sources.repository import DamagedRepository, StorageFault
from fastflow_controlplane.sources.source import NotSyncedYet, Source, UnknownRef

log = structlog.get_logger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""How long callers wait for a source: 256 MiB on a slow mount take seconds, a mount that hangs takes minutes."""


class Kept(Enum):
    """What a source has of the code that a bundle is to be written from."""

    WHOLE = auto()
    """The bundle is on disk, durable."""
    DAMAGED = auto()
    """It can not be read, and no sync will change that."""
    NOTHING = auto()


class SourceReader:
    """The source called `name`, and what was last found in it; bundles of its code go to `bundles`."""

    def __init__(
        self,
        name: str,
        source: Source,
        bundles: BundleStore,
        data_dir: Path,
        clock: Clock,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.name = name
        self.source = source
        self.contents = Contents({}, ())
        self.condition = ""
        """Why the source can not be read at the moment, for people; "" = it can."""
        self.is_known = False
        """Whether `contents` is what it holds, or held when it was last read; also where nothing was synced yet."""
        self.on_change: Callable[[SourceReader, Changes], None] = lambda reader, changes: None
        """Called when pipelines appeared, changed or went; at once, so it must not wait."""
        self._bundles = bundles
        self._data_dir = data_dir
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._job: Future[Any] | None = None
        self._job_started = 0.0
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._refreshed = float("-inf")

    @property
    def was_never_synced(self) -> bool:
        """Whether it is known to have nothing, as its first sync is still to come."""
        return self.is_known and self.source.has_commits and self.contents.commit is None

    @property
    def was_read(self) -> bool:
        """Whether its pipelines are known, or were when it was last read."""
        return self.is_known and not self.was_never_synced

    async def refresh(self, max_age: float = 0.0) -> None:
        """Brings `contents` up to date, unless they were so within the last `max_age` seconds.

        Callers at the same time share one look that begins after they called. Raises Unavailable where the source can
        not be read; the pipelines known before stay.
        """
        if max_age and self._clock.monotonic() - self._refreshed <= max_age:
            return
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._scan(), name=f"source-refresh-{self.name}")
            self._next.add_done_callback(_retrieve)
        await asyncio.shield(self._next)

    async def take(self, look: Callable[[], Contents], seconds: float) -> None:
        """Takes what `look`, called in the source's thread, returns within `seconds`. Raises Unavailable."""
        async with self._my_turn(seconds):
            self._take(await self._in_thread(look, seconds))

    async def pin(self, name: str, ref: str = "") -> tuple[Snapshot | None, Commit | None]:
        """Returns a pipeline as it is now or at `ref`, its bundle on disk, durable, and its commit if it has one.

        None = it is not there. Raises InvalidArgument for an unknown `ref`, Unavailable as `Catalog.snapshot`.
        """
        async with self._my_turn(self._answer_seconds):
            if ref:
                return await self._in_thread(lambda: self._pin_at(name, ref), self._answer_seconds)
            contents, pinned = await self._in_thread(lambda: self._pin(name), self._answer_seconds)
            self._take(contents)
            return pinned, contents.commit

    def has_now(self, tree: str) -> bool:
        """Whether `tree` is the code of a pipeline in `contents`."""
        return any(snapshot.tree == tree for snapshot in self.contents.snapshots.values())

    async def store_bundle(self, bundle: Bundle, tree: str) -> Kept:
        """Makes sure that the bundle of the code in `tree` is on disk, if the source has it. Raises Unavailable."""
        is_current = self.has_now(tree)
        async with self._my_turn(self._answer_seconds):
            return await self._in_thread(
                lambda: self._store_kept(bundle, tree, is_current=is_current), self._answer_seconds
            )

    async def prune(self, trees: Collection[str], unused_since: float) -> int:
        """See `Source.prune`. Raises Unavailable."""
        async with self._my_turn(self._answer_seconds):
            return await self._in_thread(lambda: self.source.prune(trees, unused_since), self._answer_seconds)

    async def close(self) -> None:
        """Ends, without waiting for a source that hangs."""
        if self._next is not None:
            self._next.cancel()
        if self._job is None or self._job.done():
            self.source.close()

    async def _scan(self) -> None:
        async with self._my_turn(self._answer_seconds):
            # From here on a change may be missed by this look: whoever calls now gets the next one.
            self._next = None
            begun = self._clock.monotonic()
            self._take(await self._in_thread(self.source.scan, self._answer_seconds))
            self._refreshed = begun

    def _pin(self, name: str) -> tuple[Contents, Snapshot | None]:
        contents = self.contents
        known = contents.snapshots.get(name)
        pinned = self.source.rescan(known) if known else None
        if pinned is None:
            contents = self.source.scan()
            pinned = contents.snapshots.get(name)
        elif pinned is not known:
            contents = Contents({**contents.snapshots, name: pinned}, contents.notes, contents.commit)
        self._store_pinned(pinned)
        return contents, pinned

    def _pin_at(self, name: str, ref: str) -> tuple[Snapshot | None, Commit]:
        pinned, commit = self.source.at(name, ref)
        self._store_pinned(pinned)
        return pinned, commit

    def _store_pinned(self, pinned: Snapshot | None) -> None:
        if pinned is not None and pinned.bundle is not None:
            self._store(pinned.bundle, pinned.tree)

    def _store_kept(self, bundle: Bundle, tree: str, *, is_current: bool) -> Kept:
        try:
            if not is_current and not self.source.holds(tree):
                return Kept.NOTHING
            self._store(bundle, tree)
        except DamagedRepository:
            # A repair for what it does not bring back would cost other code, or a fetch of everything.
            if is_current or self.source.may_come_back(tree):
                raise
            return Kept.DAMAGED
        return Kept.WHOLE

    def _store(self, bundle: Bundle, tree: str) -> None:
        self._bundles.ensure(bundle, lambda sink: pack(read_code(self.source.folder(tree), ANY_SIZE), sink))

    def _repaired(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except DamagedRepository:
            self.source.repair()
            return operation()

    @asynccontextmanager
    async def _my_turn(self, seconds: float) -> AsyncIterator[None]:
        """Waits until nobody else waits for the thread, up to `seconds` for one thing that runs there."""
        while True:
            job = self._job
            try:
                async with asyncio.timeout(self._left(job, seconds)):
                    await self._turn.acquire()
                break
            except TimeoutError:
                if job is self._job:
                    self._check_answered(seconds)
        try:
            yield
        finally:
            self._turn.release()

    async def _in_thread(self, operation: Callable[[], T], seconds: float) -> T:
        """Runs `operation` in the one thread; waits up to `seconds` for what runs there, which goes on after that."""
        await self._wait_for_job(seconds)
        job: Future[T] = Future()
        self._job, self._job_started = job, self._clock.monotonic()
        # A daemon, for the interpreter waits at its end for the threads of a pool, and this one may hang.
        arguments = (job, lambda: self._repaired(operation))
        threading.Thread(target=_fulfil, args=arguments, name="pipelines-read", daemon=True).start()
        await self._wait_for_job(seconds)
        try:
            return job.result()
        except NotSyncedYet as fault:
            self.is_known = True
            raise self._unavailable(str(fault), expected=True) from None
        except FolderFault as fault:
            raise self._unavailable(str(fault)) from None
        except UnknownRef as fault:
            raise _unknown_ref(self.name, fault) from None
        except KeepsChanging as fault:
            raise Unavailable(f"{fault}; try again when it is at rest", reason="PIPELINE_CHANGING") from None
        except DamagedRepository as fault:
            raise self._unavailable(f"{self._next_for_damage()}: {fault}") from None
        except (OSError, StorageFault) as fault:
            raise self._not_stored(fault) from fault

    def _next_for_damage(self) -> str:
        if self.source.has_commits:
            return "its copy is damaged and is fetched anew at the next sync"
        return (
            f"code that was kept of it in {self.source.objects} is damaged, and is not in the folder any more; run the "
            "pipeline anew, and if that does not help, see to the disk"
        )

    async def _wait_for_job(self, seconds: float) -> None:
        if self._job is None or self._job.done():
            return
        done = asyncio.wrap_future(self._job)
        done.add_done_callback(_retrieve)
        # Unlike wait_for, wait does not cancel what it waits for: what a thread does can not be interrupted.
        await asyncio.wait([done], timeout=self._left(self._job, seconds))
        self._check_answered(seconds)

    def _left(self, job: "Future[Any] | None", seconds: float) -> float:
        """For how much longer `job` is waited for."""
        if job is None or job.done():
            return seconds
        return max(seconds - (self._clock.monotonic() - self._job_started), 0.0)

    def _check_answered(self, seconds: float) -> None:
        if self._job is not None and not self._job.done():
            raise self._unavailable(
                f"has not answered for {seconds:g} s; is it a mount that hangs, or is there much to read?"
            )

    def _unavailable(self, what: str, *, expected: bool = False) -> Unavailable:
        message = f"{self.source.label}: {what}"
        self._note(message, expected=expected)
        metadata = {"source": self.name, "folder": self.source.place}
        return Unavailable(message, reason="PIPELINES_UNAVAILABLE", metadata=metadata)

    def _not_stored(self, fault: OSError | StorageFault) -> Unavailable:
        error = not_stored(self._data_dir, fault)
        self._note(error.message)
        return error

    def _note(self, condition: str, *, expected: bool = False) -> None:
        if condition != self.condition:
            if expected:
                log.info("pipelines come with the first sync", source=self.name)
            elif condition:
                log.error("pipelines can not be read", why=condition)
            else:
                log.info("pipelines can be read again", source=self.name)
        self.condition = condition

    def _take(self, contents: Contents) -> Changes:
        # Whatever else succeeds says nothing of whether the source can be read.
        self._note("")
        self.is_known = True
        if contents is self.contents:
            return Changes()
        before, self.contents = self.contents, contents
        changes = _compare(before, contents)
        for name in (*changes.added, *changes.changed):
            pipeline = contents.snapshots[name].pipeline
            problems = [str(problem) for problem in pipeline.problems]
            what = "pipeline found" if name in changes.added else "pipeline changed"
            log.info(what, pipeline=name, source=self.name, state=pipeline.state.value, problems=problems)
        for name in changes.removed:
            log.info("pipeline gone", pipeline=name, source=self.name)
        known = set(before.notes)
        for note in contents.notes:
            if note not in known:
                log.info("not a pipeline", path=note.path, why=note.message)
        if changes:
            self.on_change(self, changes)
        return changes


def not_stored(data_dir: Path, fault: OSError | StorageFault) -> Unavailable:
    """The error for code that can not be kept in the data folder."""
    full = says_full(str(fault))
    message = (
        full_message(data_dir, "the code of runs can not be stored")
        if full
        else f"code can not be stored in the data folder {data_dir}: {fault}"
    )
    return Unavailable(message, reason=DISK_FULL if full else "DATA_DIR_UNAVAILABLE")


def _compare(before: Contents, after: Contents) -> Changes:
    # What did not change is the same object, so this costs next to nothing for it.
    added, changed = [], []
    for name, snapshot in after.snapshots.items():
        known = before.snapshots.get(name)
        if known is snapshot:
            continue
        if known is None:
            added.append(name)
        elif (known.pipeline, known.tree) != (snapshot.pipeline, snapshot.tree):
            changed.append(name)
    different = sorted([*added, *changed])
    return Changes(
        added=tuple(sorted(added)),
        changed=tuple(sorted(changed)),
        removed=tuple(sorted(before.snapshots.keys() - after.snapshots.keys())),
        invalid=tuple(name for name in different if after.snapshots[name].pipeline.state is PipelineState.INVALID),
    )


def _unknown_ref(source: str, fault: UnknownRef) -> InvalidArgument:
    message = str(fault)
    return InvalidArgument(
        message, reason="REF_NOT_FOUND", metadata={"source": source}, violations=[FieldViolation("ref", message)]
    )


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Marks an error as seen: those who waited for it have got it, or have gone."""
    if not future.cancelled():
        future.exception()


def _fulfil(job: Future[T], operation: Callable[[], T]) -> None:
    try:
        job.set_result(operation())
    except BaseException as fault:  # noqa: BLE001 - handed to whoever waits for the job
        job.set_exception(fault)
