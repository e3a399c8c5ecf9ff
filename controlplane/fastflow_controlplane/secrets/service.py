"""Secrets as callers see them: set, listed and deleted by name and scope; handed out to assignments alone.

A value never leaves here but for an assignment: not in a list, a log, an error or a `repr`.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from fastflow.pipelines.environment import MAX_VALUE_BYTES, InvalidVariable, check_name

from fastflow_controlplane import pages
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.errors import DataLoss, FastFlowError, FieldViolation, InvalidArgument, NotFound, not_found
from fastflow_controlplane.secrets.sealing import Sealer
from fastflow_controlplane.sources.remote import SOURCE_SECRETS
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import requests
from fastflow_controlplane.store.queries import secrets as queries
from fastflow_controlplane.store.queries.secrets import SealedVersion, SecretView, VersionKey

log = structlog.get_logger(__name__)

SET_SECRET = "SET_SECRET"
DELETE_SECRET = "DELETE_SECRET"

MIN_MASKED_BYTES = 6
"""Shorter values are not masked in logs: they would be found in everything."""

PRUNE_SECONDS = 300.0
"""How often values that nothing needs any more are removed. Far longer than an assignment takes to be written."""

SOURCE_SCOPE = "sources/"
"""What the scopes of sources begin with. A pipeline is named after a folder, so no name of one has a "/"."""

_ALL = ""


@dataclass(frozen=True, slots=True)
class SecretValue:
    """One secret in one version, on its way to an agent."""

    name: str
    value: bytes = field(repr=False)
    version: int


@dataclass(frozen=True, slots=True)
class SecretPage:
    """One page of secrets, by name and pipeline; `next_page_token` "" = the last page."""

    secrets: tuple[SecretView, ...]
    next_page_token: str


class SecretService:
    """Every method raises FastFlowError alone. `pipeline_names` returns the pipelines there are, `sources` names those
    that may have secrets of their own.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sealer: Sealer,
        pipeline_names: Callable[[], Awaitable[Collection[str]]],
        sources: Collection[str] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._sealer = sealer
        self._pipeline_names = pipeline_names
        self._sources = sources
        self._unneeded: set[VersionKey] = set()

    async def set(
        self,
        name: str,
        value: bytes,
        pipelines: Sequence[str] = (),
        *,
        all_pipelines: bool = False,
        source: str = "",
        request_id: str = "",
    ) -> list[SecretView]:
        """Stores a new version for each pipeline, or one for all, or for a source; runs that were assigned keep what
        they got.

        The same `request_id` with the same content stores nothing again; with another content AlreadyExists.
        """
        scopes = _scopes(pipelines, all_pipelines, source)
        _check(name, value, scopes, request_id)
        await self._check_scopes(name, scopes)
        content = json.dumps([name, scopes]).encode() + b"\0" + value
        # Keyed: a plain hash of a weak password could be guessed from a stolen database.
        fingerprint = self._sealer.fingerprint(content)

        def store(connection: Connection) -> list[SecretView]:
            now = self._clock.now()
            answered = requests.answered(connection, SET_SECRET, request_id, fingerprint)
            first = int(answered.split()[-1]) if answered else queries.next_version(connection, name)
            secrets = [
                SecretView(name, scope, first + number, now, masked=len(value) >= MIN_MASKED_BYTES)
                for number, scope in enumerate(scopes)
            ]
            if answered is None:
                for secret in secrets:
                    queries.insert_version(connection, secret, self._sealer.seal(value, _context(secret)))
                requests.remember(connection, SET_SECRET, request_id, fingerprint, f"secret version {first}", now)
            return secrets

        stored = await self._store.write(store)
        log.info(
            "secret set", secret=name, pipelines=[scope or "(all)" for scope in scopes], version=stored[-1].version
        )
        return stored

    async def list(self, *, page_size: int = 100, page_token: str = "") -> SecretPage:
        """Returns a page of names, scopes and versions; never values."""
        name, _, pipeline = pages.key_of(page_token).partition("/")
        found = await self._store.read(
            lambda connection: queries.list_secrets(connection, (name, pipeline) if name else None, page_size + 1)
        )
        page = found[:page_size]
        token = pages.token_after(f"{page[-1].name}/{page[-1].pipeline}") if len(found) > page_size else ""
        return SecretPage(tuple(page), token)

    async def delete(
        self,
        name: str,
        pipelines: Sequence[str] = (),
        *,
        all_pipelines: bool = False,
        source: str = "",
        request_id: str = "",
    ) -> None:
        """Hides the secret from later runs at once; runs that were assigned keep it to their end.

        Without scope the only one there is. Raises NotFound, and InvalidArgument where there are several.
        """
        scopes = _scopes(pipelines, all_pipelines, source)
        fingerprint = hashlib.sha256(json.dumps([name, scopes]).encode()).hexdigest()

        def remove(connection: Connection) -> None:
            if requests.answered(connection, DELETE_SECRET, request_id, fingerprint) is not None:
                return
            known = queries.scopes_of(connection, name)
            if not known:
                raise not_found("secret", name, queries.names(connection))
            for scope in _meant(name, scopes, known):
                queries.delete(connection, name, scope)
            requests.remember(connection, DELETE_SECRET, request_id, fingerprint, "secret deleted", self._clock.now())

        await self._store.write(remove)
        log.info("secret deleted", secret=name, pipelines=[scope or "(all)" for scope in scopes])

    async def for_run(self, pipeline: str) -> Sequence[SecretValue]:
        """Returns what a run of the pipeline gets now; a secret of its own comes before one of all pipelines."""
        found = await self._store.read(lambda connection: queries.newest_for(connection, pipeline))
        return [self._opened(version) for version in found]

    async def for_source(self, source: str) -> Mapping[str, str]:
        """Returns the secrets of a source by name; runs never get them."""
        found = await self._store.read(lambda connection: queries.newest_of(connection, SOURCE_SCOPE + source))
        return {version.name: self._opened(version).value.decode(errors="replace") for version in found}

    async def values(self, versions: Mapping[str, int], pipeline: str) -> Sequence[SecretValue]:
        """Returns these versions again, for an assignment of `pipeline` that is delivered once more.

        Raises DataLoss where one is gone, which no version of a live attempt ever is.
        """
        found = await self._store.read(lambda connection: queries.versions(connection, versions))
        return [self._opened(version) for version in found]

    def seal(self, data: bytes) -> bytes:
        """Encrypts the values of --env."""
        return self._sealer.seal(data, _PARAMETERS)

    def open(self, sealed: bytes) -> bytes:
        """Decrypts what `seal` returned; raises DataLoss."""
        try:
            return self._sealer.open(sealed, _PARAMETERS)
        except DataLoss as fault:
            message = f"the values of --env can not be opened: {fault.message}, or cancel this run and create it anew"
            raise DataLoss(message, reason=fault.reason) from None

    async def check(self) -> None:
        """Raises DataLoss where the key file does not belong to the database: it opens no value. Call it at start.

        Values that it does not open beside others that it does are told in the log, and by the runs that need them.
        """
        found = await self._store.read(queries.all_versions)
        faults = []
        for version in found:
            try:
                self._opened(version)
            except DataLoss as fault:
                faults.append(fault)
        if found and len(faults) == len(found):
            raise faults[0]
        for each in faults:
            log.warning("a secret can not be opened", why=each.message)

    async def prune(self) -> int:
        """Removes values that no secret and no live attempt needs, and returns how many.

        What is not needed now goes only when it was not needed at the last call either: an assignment that is just
        being written may have read it before.
        """
        unneeded = await self._store.read(queries.unneeded)
        twice = unneeded & self._unneeded
        self._unneeded = unneeded - twice
        return await self._store.write(lambda connection: queries.erase(connection, twice)) if twice else 0

    async def watch(self) -> None:
        """Prunes every PRUNE_SECONDS until it is cancelled."""
        while True:
            try:
                await self.prune()
            except FastFlowError as fault:
                log.warning("values that nothing needs could not be removed", why=fault.message)
            await self._clock.sleep(PRUNE_SECONDS)

    async def _check_scopes(self, name: str, scopes: Sequence[str]) -> None:
        if scopes == [_ALL]:
            return
        if source := source_of(scopes[0]):
            if source not in self._sources:
                raise not_found("source", source, sorted(self._sources))
            if name not in SOURCE_SECRETS:
                message = f"a source uses {' and '.join(SOURCE_SECRETS)} alone"
                raise InvalidArgument(message, violations=[FieldViolation("name", message)])
            return
        known = sorted(await self._pipeline_names())
        for scope in scopes:
            if scope not in known:
                raise not_found("pipeline", scope, known)

    def _opened(self, version: SealedVersion) -> SecretValue:
        try:
            value = self._sealer.open(version.sealed, _context(version))
        except DataLoss as fault:
            remedy = f"or set it anew ({_command(version)})"
            message = f'the secret "{version.name}" can not be opened: {fault.message}, {remedy}'
            raise DataLoss(message, reason=fault.reason, metadata={"secret": version.name}) from None
        return SecretValue(version.name, value, version.version)


_PARAMETERS = b"run parameters"


def _command(secret: SealedVersion) -> str:
    scope = f"--pipeline {secret.pipeline}" if secret.pipeline else "--all-pipelines"
    return f"ffctl secrets set {secret.name} {scope}"


def _context(secret: SecretView | SealedVersion) -> bytes:
    return json.dumps(["secret", secret.name, secret.pipeline, secret.version]).encode()


def source_of(scope: str) -> str:
    """Returns the source that has the scope, "" where pipelines have it."""
    return scope.removeprefix(SOURCE_SCOPE) if scope.startswith(SOURCE_SCOPE) else ""


def _scopes(pipelines: Sequence[str], all_pipelines: bool, source: str) -> list[str]:
    if (all_pipelines, bool(pipelines), bool(source)).count(True) > 1:
        message = "only one of pipelines, all_pipelines and source can be given"
        raise InvalidArgument(message, violations=[FieldViolation("all_pipelines", message)])
    if source:
        return [SOURCE_SCOPE + source]
    for pipeline in pipelines:
        if "/" in pipeline:
            raise not_found("pipeline", pipeline, ())
    return [_ALL] if all_pipelines else sorted(set(pipelines))


def _check(name: str, value: bytes, scopes: Sequence[str], request_id: str) -> None:
    violations = []
    try:
        check_name(name)
    except InvalidVariable as fault:
        violations.append(FieldViolation("name", str(fault)))
    if not value:
        violations.append(FieldViolation("value", "the value is empty; to remove a secret delete it"))
    if b"\0" in value:
        violations.append(FieldViolation("value", "a value can not hold a NUL byte"))
    if len(value) > MAX_VALUE_BYTES:
        violations.append(
            FieldViolation("value", f"a value has at most {MAX_VALUE_BYTES} bytes, this one {len(value)}")
        )
    if not scopes or (_ALL in scopes and len(scopes) > 1):
        violations.append(FieldViolation("pipelines", "say who gets it: names of pipelines, or all_pipelines"))
    violations += requests.faults(request_id)
    if violations:
        raise InvalidArgument("; ".join(violation.description for violation in violations), violations=violations)


def _meant(name: str, scopes: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The scopes to delete; raises for scopes that the secret does not have."""
    if not scopes and len(known) > 1:
        message = f'the secret "{name}" is there for {_shown(known)}: say which one'
        raise InvalidArgument(message, violations=[FieldViolation("pipelines", message)])
    for scope in scopes:
        if scope not in known:
            raise NotFound(
                f'there is no secret "{name}" for {_shown([scope])}; it is there for {_shown(known)}',
                reason="SECRET_NOT_FOUND",
                metadata={"secret": name},
            )
    return scopes or known


def _shown(scopes: Sequence[str]) -> str:
    return ", ".join(map(_scope_shown, scopes))


def _scope_shown(scope: str) -> str:
    if source := source_of(scope):
        return f'the source "{source}"'
    return f'pipeline "{scope}"' if scope else "all pipelines"
