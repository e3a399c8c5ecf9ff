"""What callers may ask of runs: create, repeat, read, compare, list, cancel, watch. Knows no protobuf."""

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

import structlog
from fastflow.ids import new_id
from fastflow.pipelines import environment
from fastflow.service.failpoints import ControlPlanePoint, reach

from fastflow_controlplane import pages
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.errors import (
    FailedPrecondition,
    FastFlowError,
    FieldViolation,
    InvalidArgument,
    NotFound,
)
from fastflow_controlplane.logs.store import LogKey, LogStore, StoreUnavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.differences import RunDifferences, compare
from fastflow_controlplane.runs.model import AttemptView, NewRun, Rerun, RunPage, RunView, WaitingRun
from fastflow_controlplane.runs.retry import policy_of
from fastflow_controlplane.runs.states import LIVE, RunState
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.model import PinnedCode
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import requests, runs
from fastflow_controlplane.store.queries.runs import Cancelled, StoredRun

log = structlog.get_logger(__name__)

CREATE_RUN = "CREATE_RUN"
RERUN_RUN = "RERUN_RUN"
MAX_PRIORITY = 1000
"""Priorities run from -1000 to 1000; aging adds one step per `priority_aging`."""
MAX_REF_LENGTH = 255
MAX_GRACE_SECONDS = 86_400.0
"""A program that needs longer to stop than a day is not being stopped."""


class CodeCatalog(Protocol):
    """Where pipelines come from."""

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        """Pins the newest code, or that at `ref`, a commit or branch.

        Raises NotFound with the nearest names, InvalidArgument with all problems.
        """

    async def open_bundle(self, digest: str) -> AbstractAsyncContextManager[object]:
        """Opens the code of an earlier run. Raises NotFound where it is not kept any more."""

    async def diff(self, before: str, after: str) -> str:
        """Returns a unified diff of two pinned trees, bounded in size. Raises FastFlowError."""


class Sealer(Protocol):
    """Encryption at rest for the values of --env."""

    def seal(self, data: bytes) -> bytes:
        """Encrypts."""

    def open(self, sealed: bytes) -> bytes:
        """Decrypts what `seal` returned."""


class RunService:
    """Runs, as callers see them. Every method raises FastFlowError alone."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: ControlPlaneSettings,
        changes: Changes,
        catalog: CodeCatalog,
        sealer: Sealer,
        logs: LogStore,
        scheduler: Scheduler,
        registry: AgentRegistry,
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._changes = changes
        self._catalog = catalog
        self._sealer = sealer
        self._logs = logs
        self._scheduler = scheduler
        self._registry = registry

    async def create(self, new: NewRun) -> RunView:
        """Queues a run and returns it once it is stored.

        The same `request_id` with the same content gives the same run, with another content AlreadyExists. Raises
        NotFound and InvalidArgument as the catalog does; a disabled pipeline refuses triggers, not this.
        """
        _check(new)
        fingerprint = _fingerprint(new)
        if new.request_id:
            known = await self._store.read(
                lambda connection: requests.answered(connection, CREATE_RUN, new.request_id, fingerprint)
            )
            if known is not None:
                return await self._repeat(new, known)
        run = self._pin(new, await self._catalog.snapshot(new.pipeline, new.ref))
        run_id = await self._queue(run, CREATE_RUN, fingerprint)
        return await (self.get(run_id) if run_id == run.id else self._repeat(new, run_id))

    async def rerun(self, run_id: str, *, latest: bool = False, request_id: str = "") -> RunView:
        """Queues a run that repeats another, whatever became of that one, and returns it once it is stored.

        It has the same code, limits and parameters, and wants the same packages; with `latest`, only the parameters are
        the same. Secrets are those of now. Repeats as `create`. Raises NotFound and FailedPrecondition where the code
        is gone, and with `latest` what the catalog raises.
        """
        _raise_for(requests.faults(request_id))
        view = await self.get(run_id)
        fingerprint = _digest([view.id, latest])
        if request_id:
            known = await self._store.read(
                lambda connection: requests.answered(connection, RERUN_RUN, request_id, fingerprint)
            )
            if known is not None:
                return await self.get(known)
        former = await self._store.read(lambda connection: runs.read_stored(connection, view.id))
        run = await (self._with_newest_code(former) if latest else self._with_same_code(former, view))
        run = replace(run, id=new_id(), request_id=request_id, trigger="api")
        return await self.get(await self._queue(run, RERUN_RUN, fingerprint))

    async def diff(self, a: str, b: str) -> RunDifferences:
        """Compares two runs, each named by its id or the last 8 or more digits of it."""

        def resolve(connection: Connection) -> tuple[str, str]:
            return runs.resolve(connection, a, "a"), runs.resolve(connection, b, "b")

        id_a, id_b = await self._store.read(resolve)
        run_a, run_b = await self.get(id_a), await self.get(id_b)
        code, notes = None, []
        if run_a.bundle_digest != run_b.bundle_digest:
            try:
                code = await self._catalog.diff(run_a.tree, run_b.tree)
            except FastFlowError as error:
                code = ""
                notes.append(f"the code differs, but how can not be shown: {error.message}")
        given = await self._parameters(run_a.id), await self._parameters(run_b.id)
        return compare(run_a, run_b, code, given, notes)

    async def get(self, run_id: str) -> RunView:
        """Returns a run by its id or the last 8 or more digits of it; for one that waits, with the reasons."""

        def read(connection: Connection) -> RunView:
            return runs.read_run(connection, runs.resolve(connection, run_id))

        return await self._with_log_size(self._complete(await self._store.read(read)))

    async def list(
        self,
        *,
        page_size: int = 50,
        page_token: str = "",
        pipeline: str = "",
        states: Sequence[RunState] = (),
    ) -> RunPage:
        """Returns a page of runs, newest first, with their attempts."""
        before = pages.key_of(page_token)

        def read(connection: Connection) -> list[RunView]:
            return runs.list_runs(connection, pipeline=pipeline, states=states, before=before, limit=page_size + 1)

        found = await self._store.read(read)
        page = found[:page_size]
        token = pages.token_after(page[-1].id) if len(found) > page_size else ""
        return RunPage(tuple(self._complete(run) for run in page), token)

    async def cancel(self, run_id: str, grace: float | None = None) -> RunView:
        """Asks a run to stop: one that waits ends at once, one that lives is stopped by its agent.

        `grace` is seconds from SIGTERM to SIGKILL; None = as the settings say. Of a run that is being stopped, a
        shorter grace takes effect; of one that has ended nothing changes. So it may be repeated. Raises NotFound and
        InvalidArgument.
        """
        if grace is not None and not 0 <= grace <= MAX_GRACE_SECONDS:
            message = f"grace is {grace:g} s; allowed is 0 to {MAX_GRACE_SECONDS:g} s"
            raise InvalidArgument(message, violations=[FieldViolation("grace", message)])
        grace_usec = round((self._settings.stop_grace if grace is None else grace) * MICROSECONDS)

        def cancel(connection: Connection) -> Cancelled:
            whole_id = runs.resolve(connection, run_id)
            return runs.cancel(connection, whole_id, self._clock.now(), grace_usec, shorten=grace is not None)

        def cancelled(done: Cancelled) -> None:
            if done.changed:
                reach(ControlPlanePoint.CANCEL_COMMITTED)
                log.info("run is to stop", run=done.run_id)
                self._scheduler.remove(done.run_id)
                self._registry.desired_changed(done.agent_id)
                self._changes.notify(done.run_id)

        done = await self._store.write(cancel, cancelled)
        return await self.get(done.run_id)

    async def watch(self, run_id: str) -> AsyncGenerator[RunView, None]:
        """Gives the run now and after each change, also of why it waits, and ends after the terminal state."""
        whole_id = await self._store.read(lambda connection: runs.resolve(connection, run_id))
        with self._changes.watching(whole_id):
            seen = self._changes.count
            run = await self.get(whole_id)
            while True:
                yield run
                if run.terminal:
                    return
                shown = run.etag, run.placements, run.message
                while shown == (run.etag, run.placements, run.message):
                    seen = await self._changes.wait(whole_id, seen)
                    run = await self.get(whole_id)

    async def _repeat(self, new: NewRun, run_id: str) -> RunView:
        """Answers a repeated request. The values of --env are compared themselves: no hash of them is kept."""
        run = await self.get(run_id)
        if await self._parameters(run_id) != dict(new.environment):
            raise requests.reused(new.request_id, run_id)
        return run

    async def _parameters(self, run_id: str) -> Mapping[str, str]:
        """The values of --env, in clear."""
        sealed = await self._store.read(lambda connection: runs.read_parameters(connection, run_id))
        opened: Mapping[str, str] = {} if sealed is None else json.loads(self._sealer.open(sealed))
        return opened

    async def _queue(self, run: StoredRun, kind: str, fingerprint: str) -> str:
        """Stores a run, unless its request was answered before; returns the id of the run that answers it."""
        now = self._clock.now()

        def store(connection: Connection) -> str:
            answered = requests.answered(connection, kind, run.request_id, fingerprint)
            if answered is not None:
                return answered
            runs.insert_run(connection, run, now)
            requests.remember(connection, kind, run.request_id, fingerprint, run.id, now)
            return run.id

        def stored(run_id: str) -> None:
            if run_id == run.id:
                reach(ControlPlanePoint.RUN_STORED)
                log.info("run created", run=run.id, pipeline=run.pipeline)
                self._scheduler.add(
                    WaitingRun(
                        run.id,
                        run.pipeline,
                        run.priority,
                        now,
                        run.limits,
                        run.python_version,
                        {},
                        run.bundle_digest,
                    )
                )

        return await self._store.write(store, stored)

    async def _with_same_code(self, former: StoredRun, view: RunView) -> StoredRun:
        try:
            async with await self._catalog.open_bundle(former.bundle_digest):
                pass
        except NotFound:
            raise FailedPrecondition(
                f"the code of run {former.id} is no longer kept; `ffctl runs rerun {former.id} --latest` "
                "takes the newest code",
                reason="CODE_GONE",
                metadata={"run": former.id, "bundle": former.bundle_digest},
            ) from None
        return replace(former, rerun=Rerun(former.id, latest=False, packages=_packages(view)))

    async def _with_newest_code(self, former: StoredRun) -> StoredRun:
        new = NewRun(former.pipeline, priority=former.priority)
        run = self._pin(new, await self._catalog.snapshot(former.pipeline))
        return replace(
            run,
            environment_names=former.environment_names,
            parameters=former.parameters,
            rerun=Rerun(former.id, latest=True),
        )

    def _pin(self, new: NewRun, code: PinnedCode) -> StoredRun:
        metadata = code.metadata
        return StoredRun(
            id=new_id(),
            pipeline=new.pipeline,
            priority=new.priority,
            trigger=new.trigger,
            request_id=new.request_id,
            limits=metadata.limits,
            timeout_usec=round(metadata.timeout_seconds * MICROSECONDS),
            python_version=metadata.python_version,
            bundle_digest=code.bundle_digest,
            bundle_size=code.bundle_size,
            commit=code.commit,
            tree=code.tree,
            environment_names=tuple(sorted(new.environment)),
            default_environment=metadata.default_environment,
            parameters=self._sealer.seal(json.dumps(dict(new.environment)).encode()) if new.environment else None,
            log_limit_bytes=self._settings.log_limit_bytes,
            on_log_backlog=metadata.on_log_backlog.upper(),
            commit_author=code.commit_author,
            commit_subject=code.commit_subject,
            ref=new.ref,
            retry=policy_of(metadata.retry_on, metadata.retry_attempts),
        )

    def _complete(self, run: RunView) -> RunView:
        """Adds what is not in rows: why a run waits; whether a live one is in reach, and what it uses at present."""
        if run.state is RunState.QUEUED:
            return replace(run, placements=self._scheduler.explain(run.id))
        if run.state in LIVE and run.attempts:
            last = run.attempts[-1]
            return replace(
                run,
                message=self._trouble(run, last.agent_id) or run.message,
                attempts=(*run.attempts[:-1], self._with_usage(run.id, last)),
            )
        return run

    def _trouble(self, run: RunView, agent_id: str) -> str:
        told = self._registry.trouble(agent_id)
        if told and run.cancel_time is not None and run.state is not RunState.STOPPING:
            told += "; the run is asked to stop, and its agent is told so as soon as it is back"
        return told

    async def _with_log_size(self, run: RunView) -> RunView:
        """Of an attempt whose log still grows, the rows do not know the size."""
        last = run.attempts[-1] if run.attempts else None
        if last is None or last.log_sealed:
            return run
        try:
            async with self._logs.open(LogKey(run.id, last.number)) as opened:
                grown = replace(last, log_bytes=opened.durable)
        except StoreUnavailable:
            return run
        return replace(run, attempts=(*run.attempts[:-1], grown))

    def _with_usage(self, run_id: str, attempt: AttemptView) -> AttemptView:
        usage = self._registry.usage(attempt.agent_id, run_id, attempt.number)
        return replace(attempt, usage=usage) if usage is not None else attempt


def _packages(run: RunView) -> tuple[str, ...]:
    """What its newest attempt that got that far had installed; else what it was to have."""
    reported = [attempt.provenance for attempt in run.attempts if attempt.provenance and attempt.provenance.reported]
    if reported:
        return reported[-1].packages
    return run.rerun.packages if run.rerun else ()


def _check(new: NewRun) -> None:
    violations = [
        FieldViolation(f"environment[{fault.variable}]", str(fault)) for fault in environment.faults(new.environment)
    ]
    violations += requests.faults(new.request_id)
    if abs(new.priority) > MAX_PRIORITY:
        violations.append(
            FieldViolation("priority", f"priority is {new.priority}; allowed is -{MAX_PRIORITY} to {MAX_PRIORITY}")
        )
    if len(new.ref) > MAX_REF_LENGTH:
        violations.append(FieldViolation("ref", f"ref has at most {MAX_REF_LENGTH} characters"))
    _raise_for(violations)


def _raise_for(violations: Sequence[FieldViolation]) -> None:
    if violations:
        raise InvalidArgument("; ".join(violation.description for violation in violations), violations=violations)


def _fingerprint(new: NewRun) -> str:
    return _digest([new.pipeline, sorted(new.environment), new.priority, new.ref, new.trigger])


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
