"""The composition root: builds every part, gives each what it needs, serves until told to stop."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc.aio
import structlog
from fastflow.client import channel_options
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.api.interceptors import CallInterceptor
from fastflow_controlplane.api.services import Parts, add_services
from fastflow_controlplane.clock import Clock, SystemClock
from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.identity.tokens import SharedToken
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.follow import LogFollower
from fastflow_controlplane.logs.ingest import LogIngest
from fastflow_controlplane.runs.attempt_logs import AttemptLogRecords
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.secrets.sealing import Sealer
from fastflow_controlplane.secrets.service import SecretService
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs
from fastflow_controlplane.store.queries.cluster import Leadership, take_over

log = structlog.get_logger(__name__)

FAREWELL_SECONDS = 1.0
"""How long calls under way may take to end at shutdown; followers of logs and runs never end by themselves."""
SHORTEST_PING_MS = 5_000
"""Peers ping each 10 s without traffic (`fastflow.client`); gRPC's default would take that for an attack."""


async def serve(
    settings: ControlPlaneSettings, stopping: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Serves until `stopping` is set; `ready` is called with the address once calls are answered.

    Stopping ends streams and writes what is waiting; it stops no run. Raises FastFlowError where it can not start.
    """
    async with _data_folder(settings), _parts(settings, SystemClock()) as parts:
        server, status = _server(settings, parts)
        address = await _listen(server, settings)
        await status.set("", health_pb2.HealthCheckResponse.SERVING)
        log.info("control plane is ready", address=address, data_dir=str(settings.data_dir))
        if ready is not None:
            ready(address)
        try:
            await _work(parts, stopping)
        finally:
            log.info("control plane stops; runs go on")
            await status.enter_graceful_shutdown()
            parts.registry.close()
            await server.stop(FAREWELL_SECONDS)


@dataclass(frozen=True)
class _Parts:
    store: Store
    catalog: Catalog
    logs: FileLogStore
    secrets: SecretService
    changes: Changes
    scheduler: Scheduler
    registry: AgentRegistry
    assignments: Assignments
    runs: RunService
    reaper: Reaper
    sessions: AgentSessions
    pipelines_interval: float


@asynccontextmanager
async def _parts(settings: ControlPlaneSettings, clock: Clock) -> AsyncIterator[_Parts]:
    """Builds all parts around the rows of the database, and closes those that hold files."""
    store = Store(settings.database)
    store.open()
    await store.start()
    logs = FileLogStore(settings.data_dir / "logs")
    scheduler = Scheduler(clock, settings.placement_delay, settings.priority_aging)
    catalog = Catalog(
        settings.pipelines_dir.absolute(),
        settings.data_dir.absolute(),
        settings.default_limits,
        scheduler.python_versions,
        clock,
    )
    try:
        leadership = await store.write(lambda connection: take_over(connection, clock.now()))
        yield await _compose(settings, clock, store, logs, scheduler, catalog, leadership)
    finally:
        await catalog.close()
        await logs.aclose()
        await store.close()


async def _compose(
    settings: ControlPlaneSettings,
    clock: Clock,
    store: Store,
    logs: FileLogStore,
    scheduler: Scheduler,
    catalog: Catalog,
    leadership: Leadership,
) -> _Parts:
    changes = Changes()

    async def pipeline_names() -> Collection[str]:
        await catalog.refresh()
        return [pipeline.name for pipeline in catalog.list()]

    sealer = Sealer.load(settings.data_dir / "secret.key")
    secrets = SecretService(store, clock, sealer, pipeline_names)
    await secrets.check()
    registry = AgentRegistry(store, clock, settings, scheduler)
    assignments = Assignments(
        store, clock, secrets, logs, changes, scheduler, registry, leadership.leader_epoch, settings.stop_grace
    )
    scheduler.restore(await store.read(runs.read_waiting), await store.read(attempts.read_held))
    await registry.restore()
    return _Parts(
        store=store,
        catalog=catalog,
        logs=logs,
        secrets=secrets,
        changes=changes,
        scheduler=scheduler,
        registry=registry,
        assignments=assignments,
        runs=RunService(store, clock, settings, changes, catalog, secrets, scheduler, registry),
        reaper=Reaper(store, clock, settings, changes, scheduler, registry, leadership.leader_epoch, catalog),
        sessions=AgentSessions(
            SessionParts(
                store=store,
                clock=clock,
                settings=settings,
                leadership=leadership,
                registry=registry,
                assignments=assignments,
                scheduler=scheduler,
                changes=changes,
                version=version("fast-flow"),
            )
        ),
        pipelines_interval=settings.pipelines_interval,
    )


def _server(settings: ControlPlaneSettings, parts: _Parts) -> tuple[grpc.aio.Server, Any]:
    token = settings.token.get_secret_value() if settings.token else None
    server = grpc.aio.server(
        interceptors=[CallInterceptor(SharedToken(token))],
        options=[
            *channel_options(),
            ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MS),
            # Two control planes must not share a port by chance.
            ("grpc.so_reuseport", 0),
        ],
    )
    follower = LogFollower(parts.logs, parts.runs.get, parts.changes)
    ingest = LogIngest(parts.logs, AttemptLogRecords(parts.store, parts.changes, parts.registry))
    services = add_services(
        server,
        Parts(
            runs=parts.runs,
            follower=follower,
            catalog=parts.catalog,
            registry=parts.registry,
            secrets=parts.secrets,
            sessions=parts.sessions,
            ingest=ingest,
        ),
    )
    status = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs know the threaded one alone
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, status


async def _listen(server: grpc.aio.Server, settings: ControlPlaneSettings) -> str:
    host, _ = settings.address
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        raise FailedPrecondition(
            f"{settings.listen} can not be listened on: another program has it, or this machine has no such address"
        ) from None
    await server.start()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _work(parts: _Parts, stopping: asyncio.Event) -> None:
    """Runs every task of the control plane; one that fails ends all, since half a control plane misleads."""
    async with asyncio.TaskGroup() as tasks:
        working = [
            tasks.create_task(work, name=name)
            for name, work in (
                ("scheduler", parts.scheduler.run(parts.assignments.assign)),
                ("liveness", parts.registry.watch()),
                ("reaper", parts.reaper.run()),
                ("pipelines", parts.catalog.watch(parts.pipelines_interval)),
                ("secrets", parts.secrets.watch()),
            )
        ]
        await stopping.wait()
        for task in working:
            task.cancel()


@asynccontextmanager
async def _data_folder(settings: ControlPlaneSettings) -> AsyncIterator[None]:
    """Makes the data folder and holds its lock: two control planes on one folder would place each run twice."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(settings.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"another control plane uses the data folder {settings.data_dir}: stop it, or set another data_dir"
            ) from None
        yield
    finally:
        os.close(descriptor)
