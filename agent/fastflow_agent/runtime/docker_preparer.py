"""Preparers as Docker containers: they fill a uv cache, and see whether it then serves without a network."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastflow.deletion import delete_trees
from fastflow.finishing import finish
from fastflow.pipelines.sizes import format_size
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.runtime import folders
from fastflow_agent.runtime.base import (
    KILLED,
    Observation,
    PreparerResult,
    PreparerSpec,
    PreparerStep,
    SlotPaths,
    SlotState,
)
from fastflow_agent.runtime.container_spec import (
    Folders,
    egress_environment,
    preparer_container,
    preparer_name,
    preparers_label,
)
from fastflow_agent.runtime.docker_containers import Containers
from fastflow_agent.runtime.docker_image import RunnerImage
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.indexes import Indexes
from fastflow_agent.runtime.preparer_end import TOO_LATE, preparer_result, read_output, was_killed
from fastflow_agent.runtime.release import Gate, render

T = TypeVar("T")


class _OnDisk(Protocol):
    async def __call__(self, operation: Callable[[], T]) -> T: ...


class Preparers:
    """Runs preparers of one agent."""

    def __init__(self, options: DockerOptions, containers: Containers, on_disk: _OnDisk) -> None:
        self._options = options
        self._containers = containers
        self._on_disk = on_disk
        self._sweeping = asyncio.Lock()
        self._swept = False

    async def run(
        self, spec: PreparerSpec, image: RunnerImage, template: Path, cgroup_parent: str | None
    ) -> PreparerResult:
        """See `Runtime.run_preparer`; `cgroup_parent` as for `preparer_container`."""
        await self.sweep()
        name = preparer_name(self._options.agent_id, spec.name)
        paths = self._paths(name)
        await self._clear(name)
        mounted = Folders(template, spec.code, paths.log, paths.out, paths.tmp, paths.env)
        container = preparer_container(spec, self._options, image, mounted, cgroup_parent)
        try:
            # To its end: what is made after it was cleared, nobody would remove.
            await finish(asyncio.ensure_future(self._begin(name, spec, paths, container)))
            return await self._finish(name, spec, paths)
        finally:
            await finish(asyncio.ensure_future(self._clear(name)))

    async def _begin(self, name: str, spec: PreparerSpec, paths: SlotPaths, container: Mapping[str, Any]) -> None:
        await self._on_disk(lambda: self._make_folders(spec, paths))
        await self._containers.create(name, container)
        await self._containers.start(name)

    async def sweep(self) -> None:
        """See `Runtime.remove_preparers`."""
        async with self._sweeping:
            if not self._swept:
                for name in await self._containers.names(preparers_label(self._options.agent_id)):
                    await self._clear(name)
                self._swept = True

    async def _clear(self, name: str) -> None:
        await self._containers.remove(name)
        paths = self._paths(name)
        await self._on_disk(lambda: delete_trees(paths.env, paths.root))

    def _paths(self, name: str) -> SlotPaths:
        # Both by the container's name: agents of one host may share the folder for environments.
        return SlotPaths(root=self._options.data_dir / "preparers" / name, env=self._options.env_dir / name)

    def _make_folders(self, spec: PreparerSpec, paths: SlotPaths) -> None:
        owner = self._options.container_uid
        folders.make_slot_folders(paths, owner)
        settings = paths.env / "settings"
        settings.write_bytes(render(spec.environment))
        os.chown(settings, owner, owner)

    async def _finish(self, name: str, spec: PreparerSpec, paths: SlotPaths) -> PreparerResult:
        gate = Gate(paths, self._options.container_uid)
        egress = self._options.egress
        indexes = await self._on_disk(lambda: Indexes.of(egress).with_logins(egress.index_netrc))
        logins = {} if spec.step is PreparerStep.INSTALL else indexes.environment_with_logins()
        ended = asyncio.ensure_future(self._containers.wait(name, gate))
        try:
            content = render(egress_environment(self._options.egress) | logins)

            async def lives() -> bool:
                return not ended.done()

            await gate.release(content, lives)
            reach(AgentPoint.PREPARER_RELEASED)
            seen, late = await self._wait_or_kill(name, spec, ended)
        finally:
            ended.cancel()
        output = await self._on_disk(lambda: read_output(paths.log, indexes.secrets))
        note = await self._note(name, seen, gate, late=late)
        return preparer_result(seen, gate, output, note)

    async def _wait_or_kill(
        self, name: str, spec: PreparerSpec, ended: asyncio.Future[Observation]
    ) -> tuple[Observation, bool]:
        done, _ = await asyncio.wait([ended], timeout=spec.seconds)
        if not done:
            await self._containers.signal(name, signal.SIGKILL)
        return await ended, not done

    async def _note(self, name: str, seen: Observation, gate: Gate, *, late: bool) -> str:
        """What uv could not say itself."""
        if late and was_killed(seen):
            return TOO_LATE
        if seen.exit_code == KILLED and await self._containers.oom_flag(name, gate):
            limit = format_size(self._options.preparer_memory_bytes)
            return f"fastflow: preparing needed more than its {limit} of memory\n"
        if seen.state is SlotState.ABSENT:
            return "fastflow: the preparing container was removed by someone else\n"
        return ""
