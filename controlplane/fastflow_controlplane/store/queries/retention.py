"""What retention looks at, and what it removes.

Rows go first, and in the same operation the files that belonged to them are noted as being due: whatever dies in
between, the next start finds the note. A file of which no row ever spoke is nobody's to remove: the database may be a
copy older than the file.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, tuple_, update

from fastflow_controlplane.logs.retention import StoredLog
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import TERMINAL
from fastflow_controlplane.store.models import agents, attempts, log_removals, requests, runs
from fastflow_controlplane.store.queries.attempts import settle, touch_run
from fastflow_controlplane.store.queries.transitions import note

WHOLE_RUN = 0
"""Stands in `log_removals.attempt` for all attempts of the run."""


_SETTLED = or_(attempts.c.desired == "FORGET", and_(agents.c.remove_time.is_not(None), attempts.c.state.in_(TERMINAL)))
"""Nothing more is to come of an attempt, from its agent either."""


@dataclass(frozen=True, slots=True)
class KeptAttempt:
    """What retention has to know of an attempt.

    `settled` = ended, log whole, container gone; or ended, and its agent was removed by an operator.
    """

    agent_id: str
    settled: bool
    revision: int


@dataclass(frozen=True, slots=True)
class KeptRun:
    """What retention has to know of a run. Times are microseconds UTC; `end_time` None = it has not ended."""

    id: str
    create_time: int
    end_time: int | None
    attempts: tuple[KeptAttempt, ...] = ()


def read_newest(connection: Connection) -> Mapping[str, str]:
    """Returns the id of the newest run of each pipeline. Costs one step in the index per pipeline, not per run."""
    newest: dict[str, str] = {}
    name = ""
    while True:
        following = connection.execute(select(func.min(runs.c.pipeline)).where(runs.c.pipeline > name)).scalar()
        if following is None:
            return newest
        name = str(following)
        newest[name] = str(connection.execute(select(func.max(runs.c.id)).where(runs.c.pipeline == name)).scalar_one())


def read_first_beyond(connection: Connection, pipeline: str, count: int) -> str:
    """Returns the newest run of a pipeline behind its newest `count`; "" = it has no more."""
    query = select(runs.c.id).where(runs.c.pipeline == pipeline).order_by(runs.c.id.desc()).offset(count).limit(1)
    return connection.execute(query).scalar_one_or_none() or ""


def read_oldest(connection: Connection, pipeline: str, after: str, limit: int) -> list[KeptRun]:
    """Returns runs of a pipeline, oldest first, from behind the run `after` on."""
    query = (
        select(runs.c.id, runs.c.create_time, runs.c.end_time)
        .where(runs.c.pipeline == pipeline, runs.c.id > after)
        .order_by(runs.c.id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    attempts_of: defaultdict[str, list[KeptAttempt]] = defaultdict(list)
    placed = (
        select(attempts.c.run_id, attempts.c.agent_id, _SETTLED.label("settled"), attempts.c.revision)
        .join(agents, agents.c.agent_id == attempts.c.agent_id)
        .where(attempts.c.run_id.in_([row.id for row in rows]))
    )
    for row in connection.execute(placed):
        attempts_of[row.run_id].append(KeptAttempt(row.agent_id, bool(row.settled), row.revision))
    return [KeptRun(row.id, row.create_time, row.end_time, tuple(attempts_of[row.id])) for row in rows]


def remove_runs(connection: Connection, run_ids: Collection[str]) -> list[str]:
    """Removes runs with all that belongs to them, and notes their logs as due. Returns those it removed.

    One that has not ended, or has an attempt that is not settled, stays.
    """
    unsettled = (
        select(attempts.c.run_id)
        .join(agents, agents.c.agent_id == attempts.c.agent_id)
        .where(attempts.c.run_id == runs.c.id, ~_SETTLED)
    )
    query = select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.end_time.is_not(None), ~unsettled.exists())
    removed: list[str] = list(connection.execute(query).scalars())
    if removed:
        _note_due(connection, [LogKey(run_id, WHOLE_RUN) for run_id in removed])
        connection.execute(delete(runs).where(runs.c.id.in_(removed)))
    return removed


def read_unsealed_logs(connection: Connection, after: LogKey, limit: int) -> list[StoredLog]:
    """Returns logs of ended attempts of which the rest is still to come, if it ever does, from behind `after` on.

    Their bytes are those of the last look.
    """
    query = (
        select(attempts.c.run_id, attempts.c.number, attempts.c.log_bytes)
        .where(
            attempts.c.desired != "FORGET",
            attempts.c.state.in_(TERMINAL),
            ~attempts.c.log_sealed,
            tuple_(attempts.c.run_id, attempts.c.number) > (after.run_id, after.attempt),
        )
        .order_by(attempts.c.run_id, attempts.c.number)
        .limit(limit)
    )
    return [StoredLog(LogKey(row.run_id, row.number), row.log_bytes) for row in connection.execute(query)]


def note_log_bytes(connection: Connection, logs: Sequence[StoredLog]) -> None:
    """Stores how long logs are that `read_unsealed_logs` returned; nothing of one that is whole by now."""
    for stored in logs:
        unsealed = (
            update(attempts)
            .where(
                attempts.c.run_id == stored.key.run_id,
                attempts.c.number == stored.key.attempt,
                ~attempts.c.log_sealed,
            )
            .values(log_bytes=stored.bytes)
        )
        if connection.execute(unsealed).rowcount:
            touch_run(connection, stored.key.run_id)


def read_log_bytes(connection: Connection) -> int:
    """Returns the bytes of all logs that are kept, as they were last looked at; of live attempts none."""
    kept = select(func.sum(attempts.c.log_bytes)).where(attempts.c.log_remove_time.is_(None))
    return int(connection.execute(kept).scalar() or 0)


def read_oldest_logs(connection: Connection, after: LogKey, limit: int) -> list[StoredLog]:
    """Returns logs of settled attempts, oldest run first, from behind `after` on."""
    query = (
        select(attempts.c.run_id, attempts.c.number, attempts.c.log_bytes)
        .join(agents, agents.c.agent_id == attempts.c.agent_id)
        .where(
            attempts.c.log_remove_time.is_(None),
            _SETTLED,
            tuple_(attempts.c.run_id, attempts.c.number) > (after.run_id, after.attempt),
        )
        .order_by(attempts.c.run_id, attempts.c.number)
        .limit(limit)
    )
    return [StoredLog(LogKey(row.run_id, row.number), row.log_bytes) for row in connection.execute(query)]


def remove_logs(connection: Connection, keys: Sequence[LogKey], setting: str, now: int) -> list[LogKey]:
    """Says of logs that they were removed, following `setting`, and notes them as due. Returns those it removed."""
    removed = []
    for log in keys:
        query = (
            select(attempts.c.claim_token)
            .join(agents, agents.c.agent_id == attempts.c.agent_id)
            .where(
                attempts.c.run_id == log.run_id,
                attempts.c.number == log.attempt,
                attempts.c.log_remove_time.is_(None),
                _SETTLED,
            )
        )
        token = connection.execute(query).scalar_one_or_none()
        if token is not None:
            key = AttemptKey(log.run_id, log.attempt, token)
            # Should a removed agent return, nothing is waited for that would be refused.
            note(connection, key, {"log_remove_time": now, "log_removed_by": setting, "log_sealed": True})
            settle(connection, key)
            touch_run(connection, log.run_id)
            removed.append(log)
    _note_due(connection, removed)
    return removed


def read_due(connection: Connection, after: LogKey, limit: int) -> list[LogKey]:
    """Returns logs whose files are to go, from behind `after` on; attempt WHOLE_RUN = all of the run."""
    query = (
        select(log_removals)
        .where(tuple_(log_removals.c.run_id, log_removals.c.attempt) > (after.run_id, after.attempt))
        .order_by(log_removals.c.run_id, log_removals.c.attempt)
        .limit(limit)
    )
    return [LogKey(row.run_id, row.attempt) for row in connection.execute(query)]


def forget_due(connection: Connection, keys: Sequence[LogKey]) -> None:
    """Notes that the files are gone."""
    for key in keys:
        connection.execute(
            delete(log_removals).where(log_removals.c.run_id == key.run_id, log_removals.c.attempt == key.attempt)
        )


def remove_requests(connection: Connection, before: int, limit: int) -> int:
    """Forgets answers of before `before`; returns how many, `limit` at most. What is asked again then is new."""
    old = (
        select(requests.c.kind, requests.c.request_id)
        .where(requests.c.create_time < before)
        .order_by(requests.c.create_time)
        .limit(limit)
    )
    keys = [tuple(row) for row in connection.execute(old)]
    if keys:
        connection.execute(delete(requests).where(tuple_(requests.c.kind, requests.c.request_id).in_(keys)))
    return len(keys)


@dataclass(frozen=True, slots=True)
class KeptCode:
    """The code of all runs: digests of its bundles, ids of its trees."""

    bundles: frozenset[str]
    trees: frozenset[str]


def read_code(connection: Connection) -> KeptCode:
    """Returns the code of all runs. Costs a look at each of them."""
    rows = connection.execute(select(runs.c.bundle_digest, runs.c.tree).distinct()).all()
    return KeptCode(frozenset(row.bundle_digest for row in rows), frozenset(row.tree for row in rows if row.tree))


def _note_due(connection: Connection, keys: Sequence[LogKey]) -> None:
    for key in keys:
        # What was noted for one attempt is part of the whole run.
        if key.attempt == WHOLE_RUN:
            connection.execute(delete(log_removals).where(log_removals.c.run_id == key.run_id))
        connection.execute(insert(log_removals).values(run_id=key.run_id, attempt=key.attempt))
