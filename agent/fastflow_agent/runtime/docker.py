"""Slots as Docker containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from fastflow.finishing import finish

from fastflow_agent.cgroups.paths import CgroupFault, CgroupHost, SlotGroup
from fastflow_agent.model import SlotId, parse_slot_id
from fastflow_agent.runtime import folders
from fastflow_agent.runtime.base import (
    Facts,
    HostFault,
    ImageMissing,
    Observation,
    PreparerResult,
    PreparerSpec,
    Runtime,
    RuntimeFault,
    RuntimeUnavailable,
    SlotPaths,
    SlotSpec,
    SlotState,
)
from fastflow_agent.runtime.container_spec import (
    LABEL_AGENT,
    LABEL_SLOT,
    container_name,
    egress_environment,
    slot_container,
)
from fastflow_agent.runtime.docker_containers import Containers
from fastflow_agent.runtime.docker_engine import Client, Engine
from fastflow_agent.runtime.docker_image import Images, image_id
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.docker_preparer import Preparers
from fastflow_agent.runtime.release import Gate, render

log = structlog.get_logger(__name__)

T = TypeVar("T")

REMOVAL_TRIES = 40
REMOVAL_PAUSE_SECONDS = 0.05
"""A killed container's processes leave its control group within milliseconds, those in disk wait within seconds."""


class DockerRuntime(Runtime):
    """Runs slots as containers of one Docker engine on this host. Keeps nothing in memory that a restart would miss."""

    def __init__(self, options: DockerOptions) -> None:
        self._options = options
        self._times = options.times
        self._engine = Engine(options.docker_host, options.threads)
        # Folders of ours, apart from the engine's calls: neither can hold up the other.
        self._disk = ThreadPoolExecutor(2, thread_name_prefix="slot-folders")
        self._containers = Containers(options, self._engine)
        self._images = Images(options, self._engine)
        self._preparers = Preparers(options, self._containers, self._on_disk)
        self._template: Path | None = None
        self._making_template = asyncio.Lock()
        self._cgroups: CgroupHost | None = None
        self._version = ""

    async def probe(self) -> Facts:
        """See `Runtime.probe`."""
        try:
            version, found = await self._engine.probe(self._ask, self._times.probe)
        except RuntimeUnavailable:
            # It may come back as another one.
            self._version = ""
            raise
        problem, image = "", None
        try:
            image = await self._images.known(found)
        except (ImageMissing, RuntimeFault) as error:
            problem = str(error)
        return Facts(
            runtime="docker",
            runtime_version=version,
            cgroup=self._cgroups.version if self._cgroups else "none",
            image=self._options.image,
            image_digest=image.id if image else "",
            python_versions=image.interpreters.versions if image else (),
            uv_version=image.interpreters.uv_version if image else "",
            problem=problem,
            unconfined="" if self._cgroups else "No control groups can be seen here, so use and OOM can not be told.",
        )

    async def prepare_folders(self, spec: SlotSpec) -> None:
        """See `Runtime.prepare_folders`."""
        await self._on_disk(lambda: folders.make_slot_folders(spec.paths, self._options.container_uid))

    async def create(self, spec: SlotSpec) -> None:
        """See `Runtime.create`."""
        image = await self._images.current()
        parent = await self._make_group(spec.slot)
        template = await self._made_template()
        config = slot_container(spec, self._options, image, template, parent)
        await self._containers.create(container_name(spec.slot), config)

    async def start(self, slot: SlotId) -> None:
        """See `Runtime.start`."""
        await self._containers.start(container_name(slot))
        group = self.group(slot)
        if group and group.version == "v2" and not await self._on_disk(group.end_together):
            log.warning("an OOM of one process will not end the whole container", slot=slot)

    async def release(self, slot: SlotId, environment: Mapping[str, str]) -> bool:
        """See `Runtime.release`."""
        content = render({**egress_environment(self._options.egress), **environment})

        async def lives() -> bool:
            return (await self.observe(slot)).state in (SlotState.CREATED, SlotState.RUNNING)

        return await self._gate(slot).release(content, lives)

    async def was_released(self, slot: SlotId) -> bool:
        """See `Runtime.was_released`."""
        taken = self._gate(slot).was_released()
        if taken is not None:
            return taken
        # The folder was lost with a reboot. A container that ran may have been released: never start a run twice.
        return (await self.observe(slot)).state in (SlotState.RUNNING, SlotState.EXITED)

    async def observe(self, slot: SlotId) -> Observation:
        """See `Runtime.observe`."""
        return await self._containers.observe(container_name(slot), self._gate(slot))

    async def wait(self, slot: SlotId) -> Observation:
        """See `Runtime.wait`."""
        return await self._containers.wait(container_name(slot), self._gate(slot))

    async def oom_flag(self, slot: SlotId) -> bool:
        """See `Runtime.oom_flag`."""
        return await self._containers.oom_flag(container_name(slot), self._gate(slot))

    async def signal(self, slot: SlotId, signal: int) -> bool:
        """See `Runtime.signal`."""
        return await self._containers.signal(container_name(slot), signal)

    async def freeze(self, slot: SlotId) -> bool:
        """See `Runtime.freeze`."""
        return await self._containers.pause(container_name(slot))

    async def thaw(self, slot: SlotId) -> None:
        """See `Runtime.thaw`."""
        await self._containers.unpause(container_name(slot))

    async def remove(self, slot: SlotId) -> None:
        """See `Runtime.remove`."""
        if not await self._containers.remove(container_name(slot)):
            await self._containers.remove_volumes(f"{LABEL_SLOT}={slot}")
        await self._on_disk(self._gate(slot).remove)
        cgroups = await self._cgroup_host()
        if cgroups is None:
            return
        for _ in range(REMOVAL_TRIES):
            if await self._on_disk(lambda: cgroups.remove(slot)):
                return
            await asyncio.sleep(REMOVAL_PAUSE_SECONDS)
        log.warning("the slot's control group could not be removed", slot=slot)

    async def slots(self) -> dict[SlotId, Observation]:
        """See `Runtime.slots`."""
        filters = {"label": [f"{LABEL_AGENT}={self._options.agent_id}", LABEL_SLOT]}
        listed = await self._engine.call(
            lambda client: client.containers(all=True, filters=filters), self._times.question
        )
        slots = [parse_slot_id(container["Labels"][LABEL_SLOT]) for container in listed]
        return {slot: await self.observe(slot) for slot in slots}

    def group(self, slot: SlotId) -> SlotGroup | None:
        """See `Runtime.group`. None before the first `probe` or `create`, too."""
        return self._cgroups.group(slot) if self._cgroups else None

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        """See `Runtime.run_preparer`."""
        image = await self._images.current()
        template = await self._made_template()
        return await self._preparers.run(spec, image, template, await self._make_root_group())

    async def remove_preparers(self) -> None:
        """See `Runtime.remove_preparers`."""
        await self._preparers.sweep()

    async def aclose(self) -> None:
        """See `Runtime.aclose`."""
        await self._containers.aclose()
        self._engine.close()
        self._disk.shutdown(wait=False, cancel_futures=True)

    def _gate(self, slot: SlotId) -> Gate:
        paths = SlotPaths.of(self._options.data_dir, self._options.env_dir, slot)
        return Gate(paths, self._options.container_uid)

    async def _made_template(self) -> Path:
        # One at a time: the first runs of an agent start together.
        async with self._making_template:
            if self._template is None:
                making = self._on_disk(lambda: folders.make_template(self._options.data_dir))
                self._template = await finish(asyncio.ensure_future(making))
            return self._template

    async def _on_disk(self, operation: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, operation)
        except OSError as error:
            raise HostFault(f"A folder of the slot could not be made or removed: {error}.") from error

    async def _cgroup_host(self) -> CgroupHost | None:
        if not self._version:
            await self.probe()
        return self._cgroups

    async def _make_group(self, slot: SlotId) -> str | None:
        return await self._made(lambda cgroups: cgroups.make(slot))

    async def _make_root_group(self) -> str | None:
        return await self._made(CgroupHost.make_root)

    async def _made(self, make: Callable[[CgroupHost], str]) -> str | None:
        cgroups = await self._cgroup_host()
        if cgroups is None:
            return None
        try:
            return await self._on_disk(lambda: make(cgroups))
        except CgroupFault as error:
            raise HostFault(str(error)) from error

    def _ask(self, client: Client) -> tuple[str, str]:
        version = str(client.version(api_version=False)["Version"])
        if version != self._version:
            # This question makes the engine count what it has; it is not for every few seconds.
            info = client.info()
            self._cgroups = CgroupHost.detect(
                str(info.get("CgroupVersion", "1")), str(info.get("CgroupDriver", "")), self._options.cgroup_base
            )
            self._version = version
        return version, image_id(client, self._options.image)
