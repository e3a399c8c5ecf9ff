"""The pipelines there are: what the API lists and what runs are pinned to.

Reading happens in one thread of its own, one thing at a time: a network mount that hangs holds up neither the event
loop nor a thread that others need, and never more than that one.
"""

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.folder import FolderFault
from fastflow.pipelines.metadata import Limits
from fastflow.pipelines.problems import errors

from fastflow_controlplane.clock import Clock
from fastflow_controlplane.disk import DISK_FULL, full_message, says_full
from fastflow_controlplane.errors import FieldViolation, InvalidArgument, NotFound, Unavailable, not_found
from fastflow_controlplane.sources.bundles import BundleFile, BundleStore
from fastflow_controlplane.sources.differences import difference
from fastflow_controlplane.sources.model import PinnedCode, PipelineView, Snapshot
from fastflow_controlplane.sources.mounted import Contents, KeepsChanging, MountedFolder, WallClock
from fastflow_controlplane.sources.repository import DamagedRepository, SnapshotRepository, StorageFault

log = structlog.get_logger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""How long callers wait for the folder: 256 MiB on a slow mount take seconds, a mount that hangs takes minutes."""


class Catalog:
    """The pipelines of the folder `root`, with snapshots and bundles of their code in `data_dir`.

    `defaults` are the hard limits of pipelines that name none; `python_versions` returns the Python versions that
    agents have, none while that is not known. Raises Unavailable or OSError where it can not be made.
    """

    def __init__(
        self,
        root: Path,
        data_dir: Path,
        defaults: Limits,
        python_versions: Callable[[], Collection[str]],
        clock: Clock,
        wall_clock: WallClock | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._root = root
        self._data_dir = data_dir
        self._answer_seconds = answer_seconds
        self._python_versions = python_versions
        self._clock = clock
        self._bundles = BundleStore(data_dir / "bundles" / "sha256")
        self.on_change: Callable[[], None] = lambda: None
        """Called when pipelines appeared, changed or went; at once, so it must not wait."""
        self.condition = ""
        """Why the folder can not be read at the moment, for people; "" = it can."""
        try:
            self._repository = SnapshotRepository(data_dir / "snapshots.git")
        except StorageFault as fault:
            raise self._not_stored(fault) from fault
        self._source = MountedFolder(root, self._repository, defaults, wall_clock)
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="code-compare")
        self._job: Future[Any] | None = None
        self._job_started = 0.0
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._refreshed = float("-inf")
        self._contents = Contents({}, ())

    async def refresh(self, max_age: float = 0.0) -> None:
        """Brings the catalog up to date with the folder, unless it was so within the last `max_age` seconds.

        Cheap where nothing changed: one `stat` per file. Callers at the same time share one look that begins after
        they called. Raises Unavailable where the folder can not be read; the pipelines known before stay.
        """
        if max_age and self._clock.monotonic() - self._refreshed <= max_age:
            return
        if self._next is None:
            self._next = asyncio.create_task(self._scan(), name="catalog-refresh")
            self._next.add_done_callback(_retrieve)
        await asyncio.shield(self._next)

    async def watch(self, interval: float) -> None:
        """Refreshes every `interval` seconds until it is cancelled; failures are the `condition`, and logged once."""
        while True:
            try:
                await self.refresh(max_age=interval / 2)
            except Unavailable:
                log.debug("pipelines could not be refreshed", why=self.condition)
            await self._clock.sleep(interval)

    def get(self, name: str) -> PipelineView:
        """Returns a pipeline as of the last refresh. Raises NotFound, with the nearest names."""
        return self._view(self._find(name))

    def list(self) -> list[PipelineView]:
        """Returns all pipelines as of the last refresh, sorted by name."""
        return [self._view(snapshot) for _, snapshot in sorted(self._contents.snapshots.items())]

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        """Pins the code of a pipeline, as it is now or at `ref`; its bundle is on disk, durable, when this returns.

        `ref` is a commit or a branch of a Git source. Raises NotFound, InvalidArgument where the pipeline is INVALID
        (with its problems) or its source has no commits, Unavailable while the source can not be read, the pipeline
        keeps changing or the disk is full.
        """
        if ref:
            raise _without_commits(self._view(self._find(name)))
        async with self._turn:
            contents, pinned = await self._in_thread(lambda: self._repaired(lambda: self._pin(name)))
            self._take(contents)
        if pinned is None:
            raise not_found("pipeline", name, sorted(contents.snapshots))
        view = self._view(pinned)
        if view.metadata is None or pinned.bundle is None or view.state is PipelineState.INVALID:
            raise _refusal(view)
        return PinnedCode(
            pipeline=view.name,
            tree=view.tree,
            commit=view.commit,
            bundle_digest=pinned.bundle.digest,
            bundle_size=pinned.bundle.size,
            metadata=view.metadata,
        )

    async def diff(self, before: str, after: str) -> str:
        """Returns how the code of two trees that runs were pinned to differs; see `differences.difference`."""
        repositories = [self._data_dir / "snapshots.git"]
        return await asyncio.get_running_loop().run_in_executor(
            self._comparing, difference, repositories, before, after
        )

    async def open_bundle(self, digest: str) -> BundleFile:
        """Opens a bundle; that of a pipeline as it is now is written first if need be. See `BundleStore.open`."""
        try:
            return await self._bundles.open(digest)
        except NotFound:
            snapshot = self._with_bundle(digest)
            if snapshot is None:
                raise
        async with self._turn:
            await self._in_thread(lambda: self._repaired(lambda: self._store_bundle(snapshot)))
        return await self._bundles.open(digest)

    async def close(self) -> None:
        """Ends the threads, without waiting for a folder that hangs."""
        if self._next is not None:
            self._next.cancel()
        self._bundles.close()
        self._comparing.shutdown(wait=True, cancel_futures=True)
        if self._job is None or self._job.done():
            self._repository.close()

    async def _scan(self) -> None:
        async with self._turn:
            # From here on a change may be missed by this look: whoever calls now gets the next one.
            self._next = None
            begun = self._clock.monotonic()
            self._take(await self._in_thread(lambda: self._repaired(self._source.scan)))
            self._refreshed = begun

    def _pin(self, name: str) -> tuple[Contents, Snapshot | None]:
        contents = self._contents
        known = contents.snapshots.get(name)
        pinned = self._source.rescan(known) if known else None
        if pinned is None:
            contents = self._source.scan()
            pinned = contents.snapshots.get(name)
        else:
            contents = Contents({**contents.snapshots, name: pinned}, contents.notes)
        if pinned is not None:
            self._store_bundle(pinned)
        return contents, pinned

    def _store_bundle(self, snapshot: Snapshot) -> None:
        if snapshot.bundle is not None:
            self._bundles.ensure(snapshot.bundle, lambda sink: self._source.pack(snapshot, sink))

    def _with_bundle(self, digest: str) -> Snapshot | None:
        found = self._contents.snapshots.values()
        return next((each for each in found if each.bundle is not None and each.bundle.digest == digest), None)

    def _repaired(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except DamagedRepository:
            self._source.repair()
            return operation()

    async def _in_thread(self, operation: Callable[[], T]) -> T:
        """Runs `operation` in the one thread; nobody waits longer than `answer_seconds` for what runs there."""
        await self._wait_for_job()
        job: Future[T] = Future()
        self._job, self._job_started = job, self._clock.monotonic()
        # A daemon, for the interpreter waits at its end for the threads of a pool, and this one may hang.
        threading.Thread(target=_fulfil, args=(job, operation), name="pipelines-read", daemon=True).start()
        await self._wait_for_job()
        try:
            result = job.result()
        except FolderFault as fault:
            raise self._unavailable(str(fault)) from None
        except KeepsChanging as fault:
            raise Unavailable(f"{fault}; try again when it is at rest", reason="PIPELINE_CHANGING") from None
        except (OSError, StorageFault) as fault:
            raise self._not_stored(fault) from fault
        self._note("")
        return result

    async def _wait_for_job(self) -> None:
        if self._job is None or self._job.done():
            return
        left = self._answer_seconds - (self._clock.monotonic() - self._job_started)
        done = asyncio.wrap_future(self._job)
        done.add_done_callback(_retrieve)
        # Unlike wait_for, wait does not cancel what it waits for: what a thread does can not be interrupted.
        await asyncio.wait([done], timeout=max(left, 0.0))
        if not self._job.done():
            raise self._unavailable(f"has not answered for {self._answer_seconds:g} s; is it a mount that hangs?")

    def _unavailable(self, what: str) -> Unavailable:
        message = f"the pipelines folder {self._root}: {what}"
        self._note(message)
        return Unavailable(message, reason="PIPELINES_UNAVAILABLE", metadata={"folder": str(self._root)})

    def _not_stored(self, fault: OSError | StorageFault) -> Unavailable:
        full = says_full(str(fault))
        message = (
            full_message(self._data_dir, "the code of runs can not be stored")
            if full
            else f"code can not be stored in the data folder {self._data_dir}: {fault}"
        )
        self._note(message)
        return Unavailable(message, reason=DISK_FULL if full else "DATA_DIR_UNAVAILABLE")

    def _note(self, condition: str) -> None:
        if condition != self.condition:
            if condition:
                log.error("pipelines can not be read", why=condition)
            else:
                log.info("pipelines can be read again")
        self.condition = condition

    def _take(self, contents: Contents) -> None:
        before, self._contents = self._contents, contents
        changed = before.snapshots.keys() != contents.snapshots.keys()
        for name, snapshot in contents.snapshots.items():
            known = before.snapshots.get(name)
            if known is None or (known.pipeline, known.tree) != (snapshot.pipeline, snapshot.tree):
                problems = [str(problem) for problem in snapshot.pipeline.problems]
                changed = True
                what = "pipeline found" if known is None else "pipeline changed"
                log.info(what, pipeline=name, state=snapshot.pipeline.state.value, problems=problems)
        for name in before.snapshots.keys() - contents.snapshots.keys():
            log.info("pipeline gone", pipeline=name)
        for note in set(contents.notes) - set(before.notes):
            log.info("not a pipeline", path=note.path, why=note.message)
        if changed:
            self.on_change()

    def _find(self, name: str) -> Snapshot:
        try:
            return self._contents.snapshots[name]
        except KeyError:
            raise not_found("pipeline", name, sorted(self._contents.snapshots)) from None

    def _view(self, snapshot: Snapshot) -> PipelineView:
        return snapshot.view(str(self._root), self._python_versions())


def _refusal(view: PipelineView) -> InvalidArgument:
    found = errors(view.problems)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvalidArgument(
        f'pipeline "{view.name}" is invalid: {found[0]}{more}',
        reason="PIPELINE_INVALID",
        metadata={"pipeline": view.name},
        violations=[FieldViolation("pipeline", str(problem)) for problem in found],
    )


def _without_commits(view: PipelineView) -> InvalidArgument:
    message = (
        f'pipeline "{view.name}" comes from the plain folder {view.source}, which has no commits or branches: '
        "run it without a ref, or make the folder a Git source"
    )
    return InvalidArgument(message, reason="NO_COMMITS", violations=[FieldViolation("ref", message)])


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Marks an error as seen: those who waited for it have got it, or have gone."""
    if not future.cancelled():
        future.exception()


def _fulfil(job: Future[T], operation: Callable[[], T]) -> None:
    try:
        job.set_result(operation())
    except BaseException as fault:  # noqa: BLE001 - handed to whoever waits for the job
        job.set_exception(fault)
