"""The agent as a whole: makes its parts, ties them together, and runs until it is told to stop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import structlog
from fastflow.backoff import Backoff
from fastflow.client import bearer, open_channel

from fastflow_agent.attempts.dossier import Services
from fastflow_agent.bundles import Bundles
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.clock import Clock
from fastflow_agent.conditions import BLOCKING, Conditions
from fastflow_agent.health import Health
from fastflow_agent.host import AgentHost
from fastflow_agent.identity import DataFolderLock, Identity, IdentityGiven, load_membership, save_agent_id
from fastflow_agent.logs.confirmed import load_confirmed_logs
from fastflow_agent.logs.shipper import Shipper, ShipSettings
from fastflow_agent.model import AttemptKey, SlotId
from fastflow_agent.runtime.base import Runtime, SlotPaths
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.indexes import Indexes
from fastflow_agent.runtime.process import ProcessOptions, ProcessRuntime
from fastflow_agent.runtime.release import environments_folder
from fastflow_agent.settings import AgentSettings
from fastflow_agent.shutdown import load_shutdown, note_shutdown
from fastflow_agent.strays import Strays
from fastflow_agent.stream.link import Link
from fastflow_agent.stream.outbox import Outbox
from fastflow_agent.uvcache import UvCache
from fastflow_agent.uvcache.preheat import Preheat
from fastflow_agent.worker import Worker

log = structlog.get_logger(__name__)

DISK_THREADS = 4
"""Threads for journals: a write is one sync of some milliseconds."""

CLEANUP_THREADS = 2
"""Threads for deletions, which may take long."""

SETTLE_SECONDS = 10.0
"""How long a stop waits for cancelled preparations; removing a container takes a second, on a busy disk some."""

TIDY_SECONDS = 3600.0
"""What grows is looked at when it does; this is for what only grows old."""

ENV_DIR = Path("/run/fastflow/env")


class _Stopped(Exception):
    """Ends the group of all tasks."""


async def run_agent(settings: AgentSettings, stopping: asyncio.Event) -> None:
    """Run an agent until `stopping` is set; its containers go on.

    Raises DataFolderInUse, UnknownRecord, RuntimeFault (no folder for environments) or OSError at the start.
    """
    data_dir = settings.data_dir.absolute()
    with ExitStack() as holds:
        lock = await asyncio.to_thread(DataFolderLock, data_dir)
        holds.callback(lock.release)
        env_dir = await asyncio.to_thread(environments_folder, settings.env_dir or ENV_DIR)
        while True:
            identity = await asyncio.to_thread(Identity.load, data_dir)
            runtime = make_runtime(settings, identity, data_dir, env_dir)
            noting = asyncio.create_task(note_shutdown(stopping, data_dir, identity.boot_id, Clock().now))
            try:
                await Agent(settings, identity, runtime, data_dir, env_dir, lock).run(stopping)
                await noting
                return
            except IdentityGiven as given:
                log.warning("the data folder was lost; starting anew as the agent of before", agent_id=given.agent_id)
                await asyncio.to_thread(save_agent_id, data_dir, given.agent_id)
            finally:
                noting.cancel()
                await runtime.aclose()


def make_runtime(settings: AgentSettings, identity: Identity, data_dir: Path, env_dir: Path) -> Runtime:
    """The runtime that the settings name; there is no falling back from one to the other."""
    if settings.runtime == "process":
        return ProcessRuntime(ProcessOptions(data_dir=data_dir, env_dir=env_dir, egress=settings.egress))
    return DockerRuntime(
        DockerOptions(
            agent_id=identity.agent_id,
            data_dir=data_dir,
            env_dir=env_dir,
            image=settings.image,
            docker_host=settings.docker_host,
            container_uid=settings.container_uid,
            egress=settings.egress,
        )
    )


async def open_uvcache(settings: AgentSettings, runtime: Runtime, data_dir: Path) -> UvCache:
    """The uv cache in `data_dir`, as the settings ask for it. Raises OSError."""
    in_containers = settings.runtime == "docker"
    return await UvCache.open(
        # Their files have other owners, and runs in containers can not use those of the agent's own user.
        data_dir / ("uv" if in_containers else "uv-process"),
        runtime,
        owner=settings.container_uid if in_containers else None,
        index_url=Indexes.of(settings.egress).names,
        size_limit=settings.uv_cache_bytes,
        max_idle=settings.env_max_idle,
        prepare_seconds=settings.prepare_timeout,
    )


async def _settle(uvcache: UvCache) -> None:
    """Has preparations that were cancelled clear up; the next agent clears up after an engine that hangs."""
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await uvcache.until_nothing_is_prepared()
    except TimeoutError:
        log.warning("a preparation could not be ended; the next agent removes it")


class Agent:
    """One agent on one data folder."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        runtime: Runtime,
        data_dir: Path,
        env_dir: Path,
        lock: DataFolderLock,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._runtime = runtime
        self._data_dir = data_dir
        self._env_dir = env_dir
        self._lock = lock
        self._clock = Clock()
        self._worker: Worker
        self._strays_gone = asyncio.Event()
        self._outbox = Outbox(lambda attempt: self._worker.unacknowledged(attempt))
        self._conditions = Conditions(self._clock, changed=self._outbox.ask_heartbeat)

    async def run(self, stopping: asyncio.Event) -> None:
        """Take up what is here, connect, and live until `stopping` is set.

        Raises IdentityGiven, and UnknownRecord or OSError if it can not start. Once it lives, its tasks deal with what
        disk, engine, network and control plane do to them: an ExceptionGroup is a defect.
        """
        reason: Exception | None = None
        async with AsyncExitStack() as open_parts:
            try:
                async with asyncio.TaskGroup() as tasks:
                    try:
                        link = await self._start(tasks, open_parts)
                    except Exception as error:
                        reason = error
                        raise _Stopped from error
                    try:
                        await link.run(stopping)
                    except IdentityGiven as error:
                        reason = error
                    raise _Stopped
            except* _Stopped:
                pass
        if reason is not None:
            raise reason
        log.info("stopped; containers go on")

    async def _start(self, tasks: asyncio.TaskGroup, open_parts: AsyncExitStack) -> Link:
        """Take up what is here and set all parts to work; what is left to do is to keep the link."""
        settings, clock = self._settings, self._clock
        disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="journal")
        cleanup = ThreadPoolExecutor(CLEANUP_THREADS, thread_name_prefix="cleanup")
        open_parts.callback(disk.shutdown)
        open_parts.callback(lambda: cleanup.shutdown(wait=False, cancel_futures=True))
        metadata = bearer(settings.token_value)
        control = open_channel(settings.controlplane, settings.token_value)
        bulk = open_channel(settings.controlplane, settings.token_value, own_connection=True)
        open_parts.push_async_callback(control.close, None)
        open_parts.push_async_callback(bulk.close, None)

        health = Health(
            self._runtime,
            self._conditions,
            clock,
            disk,
            data_dir=self._data_dir,
            disk_reserve=settings.disk_reserve_bytes,
            interval=settings.probe_interval,
            runtime_name=settings.runtime,
            folder_stands=self._lock.stands,
        )
        uvcache = await open_uvcache(settings, self._runtime, self._data_dir)
        open_parts.push_async_callback(_settle, uvcache)
        sampler = Sampler(
            clock,
            on_usage=lambda slot, used: self._worker.sampled(slot, used),
            on_crossing=lambda slot, crossing: self._worker.crossed(slot, crossing),
            on_oom=lambda slot, kills: self._worker.oom_killed(slot, kills),
        )
        open_parts.callback(sampler.close)
        shipper = Shipper(
            bulk,
            metadata=metadata,
            settings=ShipSettings(
                poll=settings.log_poll_interval,
                idle_poll=2 * settings.log_poll_interval,
                total_quota=settings.spool_total_bytes,
            ),
        )
        bundles = Bundles(self._data_dir / "bundles", bulk, size_limit=settings.bundle_cache_bytes)
        bundles.removal_allowed = False
        preheat = self._preheat(bundles, uvcache, health)
        services = Services(
            runtime=self._runtime,
            bundles=bundles,
            uvcache=uvcache,
            sampler=sampler,
            shipper=shipper,
            health=health,
            clock=clock,
            disk=disk,
            cleanup=cleanup,
            boot_id=self._identity.boot_id,
            paths=self._paths,
            changed=self._outbox.attempt_changed,
            start_patience=settings.start_patience,
            spool_quota=settings.spool_quota_bytes,
            cluster=lambda: host.cluster_id,
            environment_ready=preheat.note,
            last_shutdown=await asyncio.to_thread(load_shutdown, self._data_dir),
            confirmed_logs=await asyncio.to_thread(load_confirmed_logs, self._data_dir, self._identity.boot_id),
            until_strays_gone=self._strays_gone.wait,
        )
        self._worker = Worker(services, self._conditions, tasks, self._data_dir / "slots", self._sampled)
        membership = await asyncio.to_thread(load_membership, self._data_dir)
        host = AgentHost(
            settings,
            self._identity,
            membership,
            worker=self._worker,
            shipper=shipper,
            outbox=self._outbox,
            health=health,
            uvcache=uvcache,
            preheat=preheat,
            conditions=self._conditions,
            disk=disk,
            data_dir=self._data_dir,
        )
        open_parts.push_async_callback(host.aclose)

        await health.look()
        leftovers = await self._worker.adopt()
        log.info("agent", name=settings.agent_name, agent_id=self._identity.agent_id, attempts=len(self._worker.keys))
        tasks.create_task(health.run(), name="health")
        tasks.create_task(sampler.run(), name="sampler")
        tasks.create_task(shipper.run(), name="shipper")
        tasks.create_task(preheat.run(), name="preheat")
        strays = Strays(services, self._conditions, lambda: self._worker.bound_slots, leftovers)
        tasks.create_task(self._keep_tidy(strays, host.orphan_grace, bundles, uvcache), name="tidy")
        backoff = Backoff(settings.reconnect_initial, settings.reconnect_maximum)
        return Link(control, metadata, host, self._outbox, self._conditions, clock, backoff, host.opening)

    async def _keep_tidy(
        self, strays: Strays, orphan_grace: asyncio.Future[float], bundles: Bundles, uvcache: UvCache
    ) -> None:
        """Remove strays, and after them what nobody uses; say what a power cut or a person damaged."""
        await uvcache.verify()
        await strays.clear(orphan_grace)
        self._strays_gone.set()
        bundles.removal_allowed = True
        while True:
            await bundles.prune()
            await uvcache.tidy()
            await self._clock.sleep(TIDY_SECONDS)

    def _preheat(self, bundles: Bundles, uvcache: UvCache, health: Health) -> Preheat:
        def obstacle() -> str:
            # What keeps runs away keeps this away too.
            blocking = [held.message for held in self._conditions.all() if held.type in BLOCKING]
            return health.facts.problem or "; ".join(blocking)

        return Preheat(
            bundles,
            uvcache,
            self._clock,
            image=lambda: "" if health.facts.problem else health.facts.image_digest,
            obstacle=obstacle,
            max_age=self._settings.env_max_age,
            changed=self._outbox.preheat_changed,
        )

    def _paths(self, slot: SlotId) -> SlotPaths:
        return SlotPaths.of(self._data_dir, self._env_dir, slot)

    def _sampled(self, key: AttemptKey, used: Usage) -> None:
        self._outbox.sampled(key, self._clock.now(), used)
