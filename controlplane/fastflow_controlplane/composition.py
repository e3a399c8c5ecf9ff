"""The composition root: builds every part around the rows of the database and gives each what it needs."""

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from fastflow_controlplane.agents.acceptance import Acceptance
from fastflow_controlplane.agents.assignments import Assignments
from fastflow_controlplane.agents.duplicates import Duplicates
from fastflow_controlplane.agents.operations import AgentOperations
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions, SessionParts
from fastflow_controlplane.agents.unreported import Unreported
from fastflow_controlplane.api.services import Parts
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.conditions import Conditions, Part
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.follow import LogFollower
from fastflow_controlplane.logs.ingest import LogIngest
from fastflow_controlplane.runs.attempt_logs import AttemptLogRecords
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.retention import Retention
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.secrets.sealing import Sealer
from fastflow_controlplane.secrets.service import SecretService
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.fetch_process import FetchProcess, Workplace
from fastflow_controlplane.sources.opening import authorities, copy_of, home_of, open_sources
from fastflow_controlplane.sources.remote import Credentials, credentials_of
from fastflow_controlplane.sources.retention import CodeRetention
from fastflow_controlplane.sources.syncing import Fetching, SyncService
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts, runs

Task = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class ControlPlane:
    """What is served, and by name the tasks that must run beside it, each without end."""

    services: Parts
    tasks: Mapping[str, Task]


@asynccontextmanager
async def compose(settings: ControlPlaneSettings, clock: Clock) -> AsyncIterator[ControlPlane]:
    """Builds a control plane on its data folder, and closes its files at the end. Raises FastFlowError."""
    async with AsyncExitStack() as opened:
        store = Store(settings.database)
        opened.push_async_callback(store.close)
        store.open()
        await store.start()
        logs = FileLogStore(settings.data_dir / "logs")
        opened.push_async_callback(logs.aclose)
        changes = Changes()
        scheduler = Scheduler(clock, changes, settings.placement_delay, settings.priority_aging)
        catalog = Catalog(
            open_sources(
                settings.all_sources, settings.data_dir.absolute(), settings.default_limits, settings.max_code_bytes
            ),
            settings.data_dir.absolute(),
            scheduler.python_versions,
            lambda digest: store.read(partial(runs.code_with_bundle, digest=digest)),
            clock,
        )
        opened.push_async_callback(catalog.close)
        secrets = SecretService(
            store,
            clock,
            Sealer.load(settings.data_dir / "secret.key"),
            partial(_pipeline_names, catalog),
            tuple(catalog.readers),
        )
        await secrets.check()
        controlplane = await _compose(settings, clock, store, logs, changes, scheduler, catalog, secrets)
        opened.push_async_callback(controlplane.services.ingest.aclose)
        yield controlplane


async def _compose(
    settings: ControlPlaneSettings,
    clock: Clock,
    store: Store,
    logs: FileLogStore,
    changes: Changes,
    scheduler: Scheduler,
    catalog: Catalog,
    secrets: SecretService,
) -> ControlPlane:
    leadership = await store.lead(clock.now())
    registry = AgentRegistry(store, clock, settings, scheduler)
    unreported = Unreported(store, clock, logs, changes, scheduler, registry, settings.orphan_grace)
    assignments = Assignments(
        store,
        clock,
        secrets,
        logs,
        changes,
        scheduler,
        registry,
        unreported,
        leadership.leader_epoch,
        settings.stop_grace,
    )
    preheat = Preheat(settings.uv_pre_heat, catalog.as_written, registry)
    catalog.on_change = preheat.pipelines_changed
    reaper = Reaper(store, clock, settings, changes, scheduler, registry, leadership.leader_epoch)
    run_service = RunService(store, clock, settings, changes, catalog, secrets, logs, scheduler, registry)
    operations = AgentOperations(
        store, clock, changes, scheduler, registry, leadership.leader_epoch, settings.stop_grace
    )
    sessions = AgentSessions(
        SessionParts(
            store=store,
            clock=clock,
            settings=settings,
            leadership=leadership,
            registry=registry,
            duplicates=Duplicates(registry, clock, settings),
            assignments=assignments,
            preheat=preheat,
            scheduler=scheduler,
            changes=changes,
            version=version("fast-flow"),
        )
    )
    scheduler.restore(await store.read(runs.read_waiting), await store.read(attempts.read_held))
    await registry.restore()
    syncs = SyncService(store, clock, catalog, _fetching(settings, secrets), settings.sync_interval)
    retention = Retention(store, clock, settings, logs, registry.is_told, scheduler.forget)
    conditions = Conditions({Part.DATABASE: store, Part.LOGS: logs}, clock)
    return ControlPlane(
        services=Parts(
            runs=run_service,
            reaper=reaper,
            follower=LogFollower(logs, run_service.get, changes),
            catalog=catalog,
            preheat=preheat,
            syncs=syncs,
            registry=registry,
            acceptance=Acceptance(store, clock, registry, leadership.cluster_id),
            operations=operations,
            secrets=secrets,
            sessions=sessions,
            ingest=LogIngest(logs, AttemptLogRecords(store, changes, registry)),
            conditions=conditions,
        ),
        tasks={
            "scheduler": partial(scheduler.run, assignments.assign),
            "liveness": registry.watch,
            "preheat": preheat.watch,
            "reaper": reaper.run,
            "drains": operations.watch,
            "unreported": unreported.watch,
            "retention": retention.run,
            "code": CodeRetention(store, clock, catalog).run,
            "pipelines": partial(catalog.watch, settings.pipelines_interval),
            "sources": syncs.run,
            "secrets": secrets.watch,
            "conditions": conditions.watch,
            "ownership": store.until_deposed,
        },
    )


def _fetching(settings: ControlPlaneSettings, secrets: SecretService) -> dict[str, Fetching]:
    async def credentials(source: str) -> Credentials:
        return credentials_of(await secrets.for_source(source))

    data_dir = settings.data_dir.absolute()
    ca_bundle = authorities(settings.ca_bundle)
    return {
        source.name: Fetching(
            FetchProcess(
                source.remote,
                Workplace(copy_of(data_dir, source.name), home_of(data_dir, source.name), ca_bundle),
                settings.sync_timeout,
            ),
            partial(credentials, source.name),
            source.branch,
            settings.sync_timeout,
        )
        for source in settings.all_sources
        if source.url
    }


async def _pipeline_names(catalog: Catalog) -> Collection[str]:
    await catalog.refresh()
    return [pipeline.name for pipeline in catalog.list()]
