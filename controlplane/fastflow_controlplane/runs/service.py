"""What callers may ask of runs: create, read, list, cancel, watch. Knows no protobuf."""

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Protocol

import structlog
from fastflow.ids import new_id
from fastflow.pipelines import environment

from fastflow_controlplane import pages
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.errors import FieldViolation, InvalidArgument
from fastflow_controlplane.logs.store import LogKey, LogStore, StoreUnavailable
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptView, NewRun, RunPage, RunView, WaitingRun
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
MAX_PRIORITY = 1000
"""Priorities run from -1000 to 1000; aging adds one step per `priority_aging`."""
MAX_REQUEST_ID_LENGTH = 255


class CodeCatalog(Protocol):
    """Where pipelines come from."""

    async def snapshot(self, name: str, ref: str = "") -> PinnedCode:
        """Pins the newest code, or that at `ref`, a commit or branch.

        Raises NotFound with the nearest names, InvalidArgument with all problems.
        """


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
        code = await self._catalog.snapshot(new.pipeline)
        run = self._pin(new, code)
        now = self._clock.now()

        def store(connection: Connection) -> str:
            answered = requests.answered(connection, CREATE_RUN, new.request_id, fingerprint)
            if answered is not None:
                return answered
            runs.insert_run(connection, run, now)
            requests.remember(connection, CREATE_RUN, new.request_id, fingerprint, run.id, now)
            return run.id

        def stored(run_id: str) -> None:
            if run_id == run.id:
                log.info("run created", run=run.id, pipeline=run.pipeline)
                self._scheduler.add(
                    WaitingRun(run.id, run.pipeline, run.priority, now, run.limits, run.python_version, {})
                )

        run_id = await self._store.write(store, stored)
        return await (self.get(run_id) if run_id == run.id else self._repeat(new, run_id))

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

    async def cancel(self, run_id: str) -> RunView:
        """Asks a run to stop: one that waits ends at once, one that lives is stopped by its agent.

        Of a run that has ended it changes nothing, so it may be repeated.
        """

        def cancel(connection: Connection) -> Cancelled:
            return runs.cancel(connection, runs.resolve(connection, run_id), self._clock.now())

        def cancelled(done: Cancelled) -> None:
            if done.changed:
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
                shown = run.etag, run.placements
                while shown == (run.etag, run.placements):
                    seen = await self._changes.wait(whole_id, seen)
                    run = await self.get(whole_id)

    async def _repeat(self, new: NewRun, run_id: str) -> RunView:
        """Answers a repeated request. The values of --env are compared themselves: no hash of them is kept."""
        sealed = await self._store.read(lambda connection: runs.read_parameters(connection, run_id))
        given = {} if sealed is None else json.loads(self._sealer.open(sealed))
        if given != dict(new.environment):
            raise requests.reused(new.request_id, run_id)
        return await self.get(run_id)

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
            on_log_backlog="DROP",
        )

    def _complete(self, run: RunView) -> RunView:
        """Adds what is not in rows: why a run waits, and what a live attempt uses at present."""
        if run.state is RunState.QUEUED:
            return replace(run, placements=self._scheduler.explain(run.id))
        if run.state in LIVE and run.attempts:
            last = run.attempts[-1]
            return replace(run, attempts=(*run.attempts[:-1], self._with_usage(run.id, last)))
        return run

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


def _check(new: NewRun) -> None:
    violations = [
        FieldViolation(f"environment[{fault.variable}]", str(fault)) for fault in environment.faults(new.environment)
    ]
    if len(new.request_id) > MAX_REQUEST_ID_LENGTH:
        violations.append(FieldViolation("request_id", f"request_id has at most {MAX_REQUEST_ID_LENGTH} characters"))
    if abs(new.priority) > MAX_PRIORITY:
        violations.append(
            FieldViolation("priority", f"priority is {new.priority}; allowed is -{MAX_PRIORITY} to {MAX_PRIORITY}")
        )
    if new.ref:
        violations.append(
            FieldViolation("ref", f'ref is "{new.ref}"; this source is a plain folder and has only its newest code')
        )
    if violations:
        raise InvalidArgument("; ".join(violation.description for violation in violations), violations=violations)


def _fingerprint(new: NewRun) -> str:
    content = [new.pipeline, sorted(new.environment), new.priority, new.ref, new.trigger]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
