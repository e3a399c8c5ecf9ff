"""Secrets: the newest version per scope, and the sealed values of all versions that somebody needs."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update
from sqlalchemy import delete as delete_from

from fastflow_controlplane.errors import DataLoss
from fastflow_controlplane.store.models import attempts, secret_versions, secrets


@dataclass(frozen=True, slots=True)
class SecretView:
    """A secret without its value. `pipeline` "" = all pipelines, "sources/NAME" = a source and no pipeline.

    `update_time` is microseconds UTC, `masked` is False for values too short to be masked in logs.
    """

    name: str
    pipeline: str
    version: int
    update_time: int
    masked: bool


@dataclass(frozen=True, slots=True)
class SealedVersion:
    """One version of a secret, encrypted. `pipeline` is the scope it was set for."""

    name: str
    version: int
    pipeline: str
    sealed: bytes = field(repr=False)


class VersionKey(NamedTuple):
    """Names one value: versions count per name, over all scopes."""

    name: str
    version: int


def next_version(connection: Connection, name: str) -> int:
    """Returns the number of the next version of `name`, which no value ever had."""
    newest = select(func.max(secret_versions.c.version)).where(secret_versions.c.name == name)
    return (connection.execute(newest).scalar() or 0) + 1


def insert_version(connection: Connection, secret: SecretView, sealed: bytes) -> None:
    """Stores a new version and makes it the current one of its scope."""
    connection.execute(
        insert(secret_versions).values(
            name=secret.name,
            version=secret.version,
            pipeline=secret.pipeline,
            sealed=sealed,
            create_time=secret.update_time,
        )
    )
    values = {"version": secret.version, "masked": secret.masked, "update_time": secret.update_time}
    known = update(secrets).where(secrets.c.name == secret.name, secrets.c.pipeline == secret.pipeline).values(**values)
    if connection.execute(known).rowcount == 0:
        connection.execute(
            insert(secrets).values(name=secret.name, pipeline=secret.pipeline, create_time=secret.update_time, **values)
        )


def list_secrets(connection: Connection, after: tuple[str, str] | None, limit: int) -> list[SecretView]:
    """Returns secrets by name and pipeline, from behind `after` on."""
    query = select(secrets).order_by(secrets.c.name, secrets.c.pipeline).limit(limit)
    if after is not None:
        name, pipeline = after
        query = query.where(or_(secrets.c.name > name, and_(secrets.c.name == name, secrets.c.pipeline > pipeline)))
    return [
        SecretView(row.name, row.pipeline, row.version, row.update_time, row.masked)
        for row in connection.execute(query)
    ]


def names(connection: Connection) -> list[str]:
    """Returns the names there are."""
    return list(connection.execute(select(secrets.c.name).distinct().order_by(secrets.c.name)).scalars())


def scopes_of(connection: Connection, name: str) -> list[str]:
    """Returns the scopes of one secret, "" = all pipelines."""
    query = select(secrets.c.pipeline).where(secrets.c.name == name).order_by(secrets.c.pipeline)
    return list(connection.execute(query).scalars())


def delete(connection: Connection, name: str, pipeline: str) -> None:
    """Removes one scope of a secret; its versions stay until `erase`."""
    connection.execute(delete_from(secrets).where(secrets.c.name == name, secrets.c.pipeline == pipeline))


def newest_for(connection: Connection, pipeline: str) -> list[SealedVersion]:
    """Returns what a run of `pipeline` gets, by name; its own secrets come before those of all pipelines."""
    query = (
        select(secret_versions)
        .join(secrets, and_(secrets.c.name == secret_versions.c.name, secrets.c.version == secret_versions.c.version))
        .where(secrets.c.pipeline.in_(["", pipeline]))
        .order_by(secrets.c.name, secrets.c.pipeline)
    )
    # The scope "" sorts first, so the pipeline's own replaces it.
    by_name = {row.name: _sealed(row) for row in connection.execute(query)}
    return list(by_name.values())


def newest_of(connection: Connection, scope: str) -> list[SealedVersion]:
    """Returns the secrets of one scope alone."""
    query = (
        select(secret_versions)
        .join(secrets, and_(secrets.c.name == secret_versions.c.name, secrets.c.version == secret_versions.c.version))
        .where(secrets.c.pipeline == scope)
    )
    return [_sealed(row) for row in connection.execute(query)]


def versions(connection: Connection, wanted: Mapping[str, int]) -> list[SealedVersion]:
    """Returns these versions, by name; raises DataLoss where one is gone."""
    query = select(secret_versions).where(
        secret_versions.c.name.in_(wanted), secret_versions.c.version.in_(set(wanted.values()))
    )
    found = {VersionKey(row.name, row.version): _sealed(row) for row in connection.execute(query)}
    for key in map(VersionKey._make, wanted.items()):
        if key not in found or not found[key].sealed:
            raise DataLoss(f'version {key.version} of the secret "{key.name}" is gone', reason="SECRET_NOT_READABLE")
    return [found[VersionKey._make(item)] for item in sorted(wanted.items())]


def all_versions(connection: Connection) -> list[SealedVersion]:
    """Returns every version whose value is kept, by name."""
    query = select(secret_versions).where(func.length(secret_versions.c.sealed) > 0)
    return [_sealed(row) for row in connection.execute(query.order_by(secret_versions.c.name))]


def unneeded(connection: Connection) -> set[VersionKey]:
    """Returns the versions that are current in no scope and that no unsettled attempt was given."""
    stored = connection.execute(
        select(secret_versions.c.name, secret_versions.c.version).where(func.length(secret_versions.c.sealed) > 0)
    )
    return {VersionKey(row.name, row.version) for row in stored} - _needed(connection)


def erase(connection: Connection, keys: Collection[VersionKey]) -> int:
    """Removes the values of those `keys` that are still not needed, and returns how many.

    The newest version of a name stays as an empty row, so that its number is never given again.
    """
    erased = 0
    for name, numbers in _by_name(set(keys) & unneeded(connection)).items():
        newest = next_version(connection, name) - 1
        of_name = secret_versions.c.name == name
        connection.execute(
            delete_from(secret_versions).where(of_name, secret_versions.c.version.in_(numbers - {newest}))
        )
        if newest in numbers:
            connection.execute(
                update(secret_versions).where(of_name, secret_versions.c.version == newest).values(sealed=b"")
            )
        erased += len(numbers)
    return erased


def _needed(connection: Connection) -> set[VersionKey]:
    needed = {
        VersionKey(row.name, row.version) for row in connection.execute(select(secrets.c.name, secrets.c.version))
    }
    # Until an attempt is forgotten its secrets are delivered again: to start it, or to mask the rest of its log.
    live = connection.execute(select(attempts.c.secret_versions).where(attempts.c.desired != "FORGET")).scalars()
    for given in live:
        needed.update(map(VersionKey._make, given.items()))
    return needed


def _by_name(keys: Iterable[VersionKey]) -> dict[str, set[int]]:
    numbers: dict[str, set[int]] = defaultdict(set)
    for key in keys:
        numbers[key.name].add(key.version)
    return numbers


def _sealed(row: Row[Any]) -> SealedVersion:
    return SealedVersion(row.name, row.version, row.pipeline, row.sealed)
