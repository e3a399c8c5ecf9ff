"""The pipelines there are, of all sources: what the API lists and what runs are pinned to."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import structlog
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.problems import errors

from fastflow_controlplane.clock import Clock
from fastflow_controlplane.errors import FieldViolation, InvalidArgument, NotFound, Unavailable, not_found
from fastflow_controlplane.sources.bundles import BundleFile, BundleStore, no_bundle
from fastflow_controlplane.sources.differences import difference
from fastflow_controlplane.sources.model import Changes, Commit, PinnedCode, PipelineView, RunCode, Snapshot
from fastflow_controlplane.sources.reader import ANSWER_SECONDS, Kept, SourceReader
from fastflow_controlplane.sources.source import Source

log = structlog.get_logger(__name__)


class _Held(NamedTuple):
    """A pipeline, and the source it belongs to."""

    reader: SourceReader
    snapshot: Snapshot


class Catalog:
    """The pipelines of all `sources`, by name of the source; bundles of their code lie in `data_dir`.

    A name belongs to the first source that has it, which shows once those before were read. `python_versions` returns
    the Python versions that agents have, none while that is not known; `code_of_runs` what runs with the bundle of a
    digest were pinned to, None where there are none.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        data_dir: Path,
        python_versions: Callable[[], Collection[str]],
        code_of_runs: Callable[[str], Awaitable[RunCode | None]],
        clock: Clock,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._python_versions = python_versions
        self._code_of_runs = code_of_runs
        self._clock = clock
        self._bundles = BundleStore(data_dir / "bundles" / "sha256")
        self.on_change: Callable[[Changes], None] = lambda changes: None
        """Called when pipelines appeared, changed or went; at once, so it must not wait."""
        self.on_source_change: Callable[[SourceReader, Changes], None] = lambda reader, changes: None
        """The same, told of each source."""
        self.readers = {
            name: SourceReader(name, source, self._bundles, data_dir, clock, answer_seconds)
            for name, source in sources.items()
        }
        for reader in self.readers.values():
            reader.on_change = self._changed
        self._held: dict[str, _Held] = {}
        self._clashes: dict[str, dict[str, str]] = {name: {} for name in self.readers}
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="code-compare")

    @property
    def condition(self) -> str:
        """Why a source can not be read at the moment, for people; "" = all can."""
        return next((reader.condition for reader in self.readers.values() if reader.condition), "")

    async def refresh(self, max_age: float = 0.0) -> None:
        """Brings the catalog up to date with its sources, unless it was so within the last `max_age` seconds.

        Cheap where nothing changed: one `stat` per file of plain folders, nothing for Git, which changes by a sync
        alone. Raises Unavailable where no source can be read; the pipelines known before stay.
        """
        looks = [reader.refresh(max_age) for reader in self.readers.values()]
        results = await asyncio.gather(*looks, return_exceptions=True)
        faults = [result for result in results if result is not None]
        for fault in faults:
            if len(faults) == len(results) or not isinstance(fault, Unavailable):
                raise fault

    async def watch(self, interval: float) -> None:
        """Refreshes every `interval` seconds until it is cancelled; failures are the `condition`, and logged once."""
        known = ""
        while True:
            try:
                await self.refresh(max_age=interval / 2)
                known = ""
            except Unavailable:
                log.debug("pipelines could not be refreshed", why=self.condition)
            except Exception as defect:
                # The tasks of the control plane end with one another: no folder may be the end of them.
                if repr(defect) != known:
                    log.exception("pipelines could not be refreshed by a fault of the control plane")
                known = repr(defect)
            await self._clock.sleep(interval)

    def get(self, name: str) -> PipelineView:
        """Returns a pipeline as of the last refresh. Raises NotFound, with the nearest names."""
        return self._view(self._find(name))

    def list(self) -> Sequence[PipelineView]:
        """Returns all pipelines as of the last refresh, sorted by name."""
        return [self._view(held) for _, held in sorted(self._held.items(), key=lambda item: item[0])]

    def as_written(self, name: str) -> PipelineView | None:
        """Returns a pipeline as its files say, whatever Python agents have; None = there is none of that name."""
        held = self._held.get(name)
        return self._view(held, python_versions=()) if held else None

    def problems(self, source: str) -> tuple[str, ...]:
        """Returns what is wrong with a source: its clashes, and what was passed over."""
        notes = (str(note) for note in self.readers[source].contents.notes)
        return (*self.clashes(source), *notes)

    def clashes(self, source: str) -> tuple[str, ...]:
        """Returns what pipelines of a source are not used, as an earlier one has their names."""
        return tuple(self._clashes[source].values())

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        """Pins the code of a pipeline, as it is now or at `ref`; its bundle is on disk, durable, when this returns.

        `ref` is a commit or a branch of a Git source. Raises NotFound, InvalidArgument where the pipeline is INVALID
        (with its problems) or there is no such `ref`, Unavailable while the source can not be read, one before it was
        not yet, the pipeline keeps changing or the disk is full.
        """
        if name not in self._held and not ref:
            await self.refresh()
        await self._settle(name)
        faults: list[InvalidArgument | Unavailable] = []
        owners = self._owners(name, ref)
        for reader in owners:
            try:
                pinned, commit = await reader.pin(name, ref)
            except InvalidArgument as fault:
                faults.append(fault)
                continue
            except Unavailable as fault:
                # Those after one that has nothing yet are asked all the same.
                if not reader.was_never_synced:
                    raise
                faults.append(fault)
                continue
            if pinned is not None:
                return self._pinned(_Held(reader, pinned), commit)
        if faults and len(faults) == len(owners):
            raise faults[0]
        raise _not_at(name, ref) if owners and ref else self._not_found(name)

    async def diff(self, before: str, after: str) -> str:
        """Returns how the code of two trees that runs were pinned to differs; see `differences.difference`."""
        repositories = [reader.source.objects for reader in self.readers.values()]
        return await asyncio.get_running_loop().run_in_executor(
            self._comparing, difference, repositories, before, after
        )

    async def open_bundle(self, digest: str) -> BundleFile:
        """Opens a bundle; one that is not there is written first, if its code is that of a pipeline now or of a run.

        Raises as `BundleStore.open`, and Unavailable while the code can not be read.
        """
        try:
            return await self._bundles.open(digest)
        except NotFound:
            if not await self._write_anew(digest):
                raise
        return await self._bundles.open(digest)

    async def prune(self, digests: Collection[str], trees: Collection[str], unused_since: float) -> None:
        """Removes code that is neither named here nor current, nor was used since (seconds since 1970).

        Raises Unavailable, once all was tried.
        """
        faults: list[Unavailable] = []
        removed = 0
        try:
            current = {held.snapshot.bundle.digest for held in self._held.values() if held.snapshot.bundle}
            removed = await self._bundles.prune({*digests, *current}, unused_since)
        except OSError as fault:
            faults.append(Unavailable(f"bundles can not be removed: {fault}"))
        for reader in self.readers.values():
            try:
                removed += await reader.prune(trees, unused_since)
            except Unavailable as fault:
                faults.append(fault)
        if removed:
            log.info("code that no run needs was removed", files=removed)
        if faults:
            raise faults[0]

    async def close(self) -> None:
        """Ends the threads, without waiting for a source that hangs."""
        for reader in self.readers.values():
            await reader.close()
        self._bundles.close()
        self._comparing.shutdown(wait=True, cancel_futures=True)

    def _pinned(self, held: _Held, commit: Commit | None) -> PinnedCode:
        view = self._view(held, commit.id if commit else "")
        bundle = held.snapshot.bundle
        if view.metadata is None or bundle is None or view.state is PipelineState.INVALID:
            raise _refusal(view)
        return PinnedCode(
            pipeline=view.name,
            tree=view.tree,
            commit=view.commit,
            bundle_digest=bundle.digest,
            bundle_size=bundle.size,
            metadata=view.metadata,
            commit_author=commit.author if commit else "",
            commit_subject=commit.subject if commit else "",
        )

    def _changed(self, reader: SourceReader, changes: Changes) -> None:
        for name in changes.names:
            self._assign(name)
        self.on_source_change(reader, changes)
        self.on_change(changes)

    def _assign(self, name: str) -> None:
        """Gives a name to the first source that has it, and tells the others that have it too."""
        self._held.pop(name, None)
        for reader in self.readers.values():
            clashes, snapshot = self._clashes[reader.name], reader.contents.snapshots.get(name)
            holder = self._held.setdefault(name, _Held(reader, snapshot)) if snapshot else None
            if snapshot is None or holder is None or holder.reader is reader:
                clashes.pop(name, None)
                continue
            is_known = name in clashes
            clashes[name] = (
                f'the pipeline "{name}" ({snapshot.pipeline.path}) is not used: the source "{holder.reader.name}" has '
                f"one of that name ({holder.snapshot.pipeline.path}); rename one"
            )
            if not is_known:
                log.error("two sources have a pipeline of one name", source=reader.name, why=clashes[name])

    async def _settle(self, name: str) -> None:
        """Reads the sources before the one that has the pipeline, unless that was done: it may be theirs.

        Raises Unavailable for one that can not be read: what ran would be other code than before a restart.
        """
        for reader in self.readers.values():
            if name not in self._held or self._held[name].reader is reader:
                return
            if not reader.is_known:
                with suppress(Unavailable):
                    await reader.refresh()
            if not reader.is_known:
                raise Unavailable(
                    f'the pipeline "{name}" may be one of the source "{reader.name}", which could not be read since '
                    f"the start: {reader.condition}",
                    reason="PIPELINES_UNAVAILABLE",
                    metadata={"source": reader.name},
                )

    def _owners(self, name: str, ref: str) -> "tuple[SourceReader, ...]":
        """The source that has the pipeline; where none has it now, those whose commits may."""
        if name in self._held:
            return (self._held[name].reader,)
        return tuple(reader for reader in self.readers.values() if reader.source.has_commits) if ref else ()

    async def _write_anew(self, digest: str) -> bool:
        """Writes a bundle from the code it was made of, wherever that is; False = nobody knows what that was.

        Raises NotFound where the code is gone or damaged, Unavailable while a source that may have it can not be read.
        """
        code = self._code_now(digest) or await self._code_of_runs(digest)
        if code is None:
            return False
        faults: list[Unavailable] = []
        damaged: list[str] = []
        for reader in self._nearest_first(code.tree):
            try:
                kept = await reader.store_bundle(code.bundle, code.tree)
            except Unavailable as fault:
                faults.append(fault)
                continue
            if kept is Kept.WHOLE:
                log.info("a bundle was written anew", digest=digest, source=reader.name)
                return True
            if kept is Kept.DAMAGED:
                damaged.append(reader.source.label)
        if faults:
            raise faults[0]
        why = f"its code is damaged in {' and '.join(damaged)}" if damaged else "no source has its code any more"
        raise no_bundle(
            digest,
            f"it is gone from the disk, and {why} (tree {code.tree}): run the pipeline anew, from a commit that is "
            "there",
        )

    def _code_now(self, digest: str) -> RunCode | None:
        """Returns the code of the pipeline whose bundle it is now; None = there is none."""
        for held in self._held.values():
            bundle = held.snapshot.bundle
            if bundle is not None and bundle.digest == digest:
                return RunCode(bundle, held.snapshot.tree)
        return None

    def _nearest_first(self, tree: str) -> Sequence[SourceReader]:
        """Sorts the sources by how soon code may be had from them: one that can not be read may hang, and is last."""
        return sorted(self.readers.values(), key=lambda reader: (bool(reader.condition), not reader.has_now(tree)))

    def _find(self, name: str) -> _Held:
        try:
            return self._held[name]
        except KeyError:
            raise self._not_found(name) from None

    def _not_found(self, name: str) -> NotFound:
        unread = next((each.name for each in self.readers.values() if each.condition and not each.was_read), "")
        hint = (
            f'; the source "{unread}" was not read yet and may have it: `ffctl sources show {unread}`' if unread else ""
        )
        return not_found("pipeline", name, sorted(self._held), hint)

    def _view(
        self, held: _Held, commit: str | None = None, python_versions: Collection[str] | None = None
    ) -> PipelineView:
        reader, snapshot = held
        now = reader.contents.commit.id if reader.contents.commit else ""
        versions = self._python_versions() if python_versions is None else python_versions
        return snapshot.view(reader.source.place, versions, now if commit is None else commit)


def _refusal(view: PipelineView) -> InvalidArgument:
    found = errors(view.problems)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvalidArgument(
        f'pipeline "{view.name}" is invalid: {found[0]}{more}',
        reason="PIPELINE_INVALID",
        metadata={"pipeline": view.name},
        violations=[FieldViolation("pipeline", str(problem)) for problem in found],
    )


def _not_at(name: str, ref: str) -> NotFound:
    return NotFound(
        f'there is no pipeline "{name}" at "{ref}"', reason="PIPELINE_NOT_FOUND", metadata={"pipeline": name}
    )
