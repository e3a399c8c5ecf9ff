"""Assignments: written when placed, and delivered as what each agent shall do.

Secret values are fetched for each delivery, in the versions pinned when the attempt was made; they stand in no row of
runs or attempts and in no log of ours.
"""

import json
import secrets as randomness
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
from fastflow.protocol import STOPS_UNMASKED, WAITS
from fastflow.service.failpoints import ControlPlanePoint, reach

from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.unreported import Unreported
from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.errors import DataLoss, FailedPrecondition, FastFlowError
from fastflow_controlplane.logs.store import LogKey, LogStore
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey, WaitingRun
from fastflow_controlplane.runs.states import Reason
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, attempts, desired, runs
from fastflow_controlplane.store.queries.desired import DesiredRow, DesiredState
from fastflow_controlplane.store.queries.transitions import Epochs, note

log = structlog.get_logger(__name__)

CLAIM_TOKEN_BYTES = 16


class SecretValue(Protocol):
    """One secret in one version."""

    @property
    def name(self) -> str:
        """Name of the environment variable."""

    @property
    def value(self) -> bytes:
        """What is to be kept secret."""

    @property
    def version(self) -> int:
        """Number of this value."""


class Secrets(Protocol):
    """Where secret values come from, and how the values of --env are opened."""

    async def for_run(self, pipeline: str) -> Sequence[SecretValue]:
        """Returns the newest values that runs of the pipeline get."""

    async def values(self, versions: Mapping[str, int], pipeline: str) -> Sequence[SecretValue]:
        """Returns the values of these versions again."""

    def open(self, sealed: bytes) -> bytes:
        """Decrypts the values of --env."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an agent shall do with one attempt: RUN, STOP, FORGET; ORPHAN for one that is not known here.

    WAIT for one of which that can not be told at present. `ended`: nothing is wanted of it but that its container goes.
    """

    key: AttemptKey
    action: str
    known_seq: int = 0
    durable_log_offset: int = 0
    stop_cause: str = ""
    stop_grace_usec: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[SecretValue] = ()
    masks_unknown: bool = False
    ended: bool = False
    row: DesiredRow | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What an agent shall do as of `revision`, without the attempts `missing`, of which that can not be told now."""

    revision: int
    session_epoch: int
    draining: bool
    drain_deadline_time: int | None
    attempts: tuple[Delivery, ...]
    missing: frozenset[AttemptKey] = frozenset()


class Assignments:
    """Writes assignments and composes what agents are told. `stop_grace` is seconds."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        secrets: Secrets,
        logs: LogStore,
        changes: Changes,
        scheduler: Scheduler,
        registry: AgentRegistry,
        unreported: Unreported,
        leader_epoch: int,
        stop_grace: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._secrets = secrets
        self._logs = logs
        self._changes = changes
        self._leader_epoch = leader_epoch
        self._stop_grace_usec = round(stop_grace * MICROSECONDS)
        self._scheduler = scheduler
        self._registry = registry
        self._unreported = unreported

    async def assign(self, run: WaitingRun, agent_id: str) -> AttemptKey | None:
        """Makes the next attempt of a run; None = it no longer waits. Raises FastFlowError."""
        secrets = await self._secrets.for_run(run.pipeline)
        versions = {secret.name: secret.version for secret in secrets}
        token = randomness.token_hex(CLAIM_TOKEN_BYTES)
        epochs = Epochs(session=0, leader=self._leader_epoch)

        def assign(connection: Connection) -> AttemptKey | None:
            sealed = runs.read_parameters(connection, run.run_id)
            if sealed is not None:
                self._secrets.open(sealed)  # what can not be opened could not be delivered
            if not agents.takes_runs(connection, agent_id):
                # Drained or removed while this was decided.
                raise FailedPrecondition("the agent that was chosen takes no runs any more; another one is looked for")
            key = attempts.assign(connection, run.run_id, agent_id, token, versions, epochs, self._clock.now())
            if key is not None and self._logs.set_aside(LogKey(key.run_id, key.attempt)):
                log.warning("a log of a forgotten attempt is set aside", run=key.run_id, attempt=key.attempt)
            return key

        def assigned(key: AttemptKey | None) -> None:
            if key is not None:
                reach(ControlPlanePoint.ASSIGNED)
                self._registry.desired_changed(agent_id)
                self._changes.notify(key.run_id)

        return await self._store.write(assign, assigned)

    async def all(self, agent_id: str, reported: Collection[AttemptKey], protocol: int) -> Deliveries:
        """Returns the full set for a new session, with an answer to each attempt the agent `reported`.

        `protocol` is what the session speaks.
        """
        unreported = await self._store.read(
            lambda connection: desired.read_unreported(connection, agent_id, frozenset(reported))
        )
        await self._unreported.close_logs(unreported, protocol)
        untold = self._unreported.hold(agent_id, unreported, protocol)
        await self._mark_doubtful(agent_id, reported)
        await self._give_back_unreadable(agent_id, reported)
        state = await self._store.read(lambda connection: desired.read_all(connection, agent_id, reported))
        known = {row.key for row in state.rows}
        state = replace(state, rows=tuple(row for row in state.rows if row.key not in untold))
        orphans = [Delivery(key, "ORPHAN") for key in reported if key not in known]
        told = await self._compose(state, protocol)
        # What is absent from the full set is an orphan, too.
        waiting = [Delivery(row.key, "WAIT", row.known_seq) for row in state.rows if row.key in told.missing]
        return replace(told, attempts=(*told.attempts, *orphans, *(waiting if protocol >= WAITS else ())))

    async def can_tell_all(self, agent_id: str, protocol: int) -> bool:
        """Returns whether nothing is missing from what the agent shall do; `protocol` is what its session speaks."""
        state = await self._store.read(lambda connection: desired.read_all(connection, agent_id, ()))
        return not (await self._compose(state, protocol)).missing

    async def since(
        self, agent_id: str, revision: int, protocol: int, missing: Collection[AttemptKey] = ()
    ) -> Deliveries:
        """Returns what changed after `revision`, in order of change, and first what was `missing` before."""
        state = await self._store.read(lambda connection: desired.read_since(connection, agent_id, revision, missing))
        return await self._compose(state, protocol, missing)

    async def _compose(self, state: DesiredState, protocol: int, missed: Collection[AttemptKey] = ()) -> Deliveries:
        deliveries, missing = [], set()
        for row in state.rows:
            try:
                deliveries.append(await self._deliver(row, protocol))
            except FastFlowError as error:
                missing.add(row.key)
                if row.key not in missed:
                    key = row.key
                    log.error("attempt can not be delivered yet", run=key.run_id, attempt=key.attempt, why=str(error))
        return Deliveries(
            state.revision,
            state.session_epoch,
            state.draining,
            state.drain_deadline_time,
            tuple(deliveries),
            frozenset(missing),
        )

    async def _deliver(self, row: DesiredRow, protocol: int) -> Delivery:
        secrets: Sequence[SecretValue] = ()
        environment: dict[str, str] = {}
        masks_unknown = False
        if row.action == "RUN" and not row.log_sealed:
            given, secrets = await self._values(row)
            # Precedence: default_env < secrets < --env.
            hidden = {secret.name for secret in secrets}
            environment = {name: value for name, value in row.default_environment.items() if name not in hidden}
            environment.update(given)
        elif row.action == "STOP" and not row.log_sealed:
            try:
                secrets = await self._secrets_of(row)
            except FastFlowError as error:
                if protocol < STOPS_UNMASKED:
                    raise
                # A stop must not wait for a key: the agent ends the attempt, and keeps its output until it can mask it.
                masks_unknown = True
                log.warning("log is kept on its agent", run=row.key.run_id, attempt=row.key.attempt, why=str(error))
        return Delivery(
            key=row.key,
            action=row.action,
            known_seq=row.known_seq,
            durable_log_offset=await self._durable_offset(row),
            stop_cause=row.stop_cause,
            stop_grace_usec=self._stop_grace_usec if row.stop_grace_usec is None else row.stop_grace_usec,
            environment=environment,
            secrets=secrets,
            masks_unknown=masks_unknown,
            ended=row.ended and row.log_sealed,
            row=row,
            revision=row.revision,
        )

    async def _values(self, row: DesiredRow) -> tuple[dict[str, str], Sequence[SecretValue]]:
        """Returns the values of --env and of secrets. Raises FastFlowError, DataLoss where one can not be opened."""
        given = {} if row.parameters is None else json.loads(self._secrets.open(row.parameters))
        return given, await self._secrets_of(row)

    async def _secrets_of(self, row: DesiredRow) -> Sequence[SecretValue]:
        """Returns the secrets that the run gets: those that --env does not override. Raises as `_values`."""
        if not row.secret_versions:
            return ()
        values = await self._secrets.values(row.secret_versions, row.pipeline)
        return [secret for secret in values if secret.name not in row.environment_names]

    async def _durable_offset(self, row: DesiredRow) -> int:
        if row.log_sealed:
            return row.log_bytes
        if not row.known_seq:
            return 0
        async with self._logs.open(LogKey(row.key.run_id, row.key.attempt)) as opened:
            return opened.durable

    async def _mark_doubtful(self, agent_id: str, reported: Collection[AttemptKey]) -> None:
        """Attempts of a restored database that may have begun, and are not on the agent, do not begin again."""
        keys = await self._store.read(
            lambda connection: desired.read_doubtful(connection, agent_id, frozenset(reported))
        )
        if not keys:
            return

        def mark(connection: Connection) -> None:
            for key in keys:
                # Above zero it tells the agent that it may have begun.
                note(connection, key, {"known_seq": 1})

        await self._store.write(mark)

    async def _give_back_unreadable(self, agent_id: str, reported: Collection[AttemptKey]) -> None:
        """Attempts whose values can no longer be opened, and that the agent knows nothing of: their runs wait again.

        Placement then tells what is wrong, for as long as it is.
        """
        rows = await self._store.read(
            lambda connection: desired.read_unbegun(connection, agent_id, frozenset(reported))
        )
        for row in rows:
            try:
                await self._values(row)
            except DataLoss as fault:
                await self._give_back(row.key, fault.message)

    async def _give_back(self, key: AttemptKey, why: str) -> None:
        epochs = Epochs(session=0, leader=self._leader_epoch)

        def give_back(connection: Connection) -> list[WaitingRun]:
            now = self._clock.now()
            if not attempts.give_back_untold(connection, key, Reason.SECRET, why, epochs, now):
                return []
            return runs.read_waiting(connection, key.run_id)

        def given_back(waiting: list[WaitingRun]) -> None:
            log.warning("attempt could not be delivered", run=key.run_id, attempt=key.attempt, why=why)
            self._scheduler.released(key)
            for run in waiting:
                self._scheduler.add(run)
            self._changes.notify(key.run_id)

        await self._store.write(give_back, given_back)
