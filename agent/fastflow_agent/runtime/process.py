"""Slots as plain processes of this host, for machines without Docker: the same life, no isolation, no limits."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import signal as signals
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastflow.deletion import delete_trees
from fastflow.finishing import finish
from fastflow.service.failpoints import AgentPoint, reach
from uv import find_uv_bin

from fastflow_agent.cgroups.paths import SlotGroup
from fastflow_agent.model import SlotId, parse_slot_id
from fastflow_agent.runtime import folders
from fastflow_agent.runtime.base import (
    Egress,
    Facts,
    HostFault,
    Observation,
    PreparerResult,
    PreparerSpec,
    PreparerStep,
    Runtime,
    RuntimeUnavailable,
    SlotPaths,
    SlotSpec,
    SlotState,
)
from fastflow_agent.runtime.container_spec import egress_environment, preparer_program
from fastflow_agent.runtime.indexes import Indexes
from fastflow_agent.runtime.interpreters import Interpreters, look_script, parse
from fastflow_agent.runtime.preparer_end import TOO_LATE, preparer_result, read_output, was_killed
from fastflow_agent.runtime.process_box import BOX, Box, lost_processes
from fastflow_agent.runtime.release import render

T = TypeVar("T")

UNCONFINED = (
    "The process runtime isolates and limits nothing: runs see this host's files and network, and their memory and "
    "CPU limits have no effect."
)

LOOK_SECONDS = 30.0
"""uv asks each interpreter it finds; on a slow disk with many of them that takes seconds."""

PREPARERS_OUTLIVE_AGENT_SECONDS = 60.0
"""How long a preparer goes on after its agent has died: the next agent ends it, but there may never be one."""

LINKS = {"UV_LINK_MODE": "hardlink"}
"""uv's symbolic links would name the folder that was prepared, and each slot has its cache in one of its own."""

POLL_SECONDS = 0.05
"""Pause between two looks at a slot that is not started yet; of one that is, the kernel tells the end."""


@dataclass(frozen=True)
class ProcessOptions:
    """How processes are run on this host. `env_dir` comes from `release.environments_folder`."""

    data_dir: Path
    env_dir: Path
    egress: Egress = field(default_factory=Egress)
    preparers_outlive_agent_seconds: float = PREPARERS_OUTLIVE_AGENT_SECONDS


class ProcessRuntime(Runtime):
    """Runs slots as processes of the agent's own user."""

    def __init__(self, options: ProcessOptions) -> None:
        self._options = options
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="slot-processes")
        self._interpreters: Interpreters | None = None
        self._sweeping = asyncio.Lock()
        self._swept = False

    async def probe(self) -> Facts:
        """See `Runtime.probe`."""
        here = await self._look()
        identity = hashlib.sha256(repr((here, platform.platform())).encode()).hexdigest()
        return Facts(
            runtime="process",
            runtime_version=platform.release(),
            cgroup="none",
            image_digest=f"host:{identity}",
            python_versions=here.versions,
            uv_version=here.uv_version,
            unconfined=UNCONFINED,
        )

    async def prepare_folders(self, spec: SlotSpec) -> None:
        """See `Runtime.prepare_folders`."""
        await self._run(lambda: folders.make_slot_folders(spec.paths, os.geteuid()))

    async def create(self, spec: SlotSpec) -> None:
        """See `Runtime.create`."""
        python = (await self._look()).path(spec.python_version)
        command = ["start", python, *(["--offline"] if spec.offline else [])]

        def make() -> None:
            box, cache = Box(spec.paths), spec.paths.upper
            if not box.exists():
                # uv would write into the generation, which must stay as it is: links cost little and keep it whole.
                delete_trees(cache)
                shutil.copytree(spec.cache, cache, symlinks=True, copy_function=os.link)
                box.make(spec.code, cache, _uv(), command)

        await self._run(make)

    async def start(self, slot: SlotId) -> None:
        """See `Runtime.start`."""
        await self._run(self._box(slot).start)

    async def release(self, slot: SlotId, environment: Mapping[str, str]) -> bool:
        """See `Runtime.release`."""
        return await self._release(self._box(slot), environment)

    async def was_released(self, slot: SlotId) -> bool:
        """See `Runtime.was_released`."""
        box = self._box(slot)
        taken = box.gate.was_released()
        # Without its folder nobody knows. What was started may have been released: never start a run twice.
        return await self._run(box.was_started) if taken is None else taken

    async def observe(self, slot: SlotId) -> Observation:
        """See `Runtime.observe`."""
        return await self._run(self._box(slot).observe)

    async def wait(self, slot: SlotId) -> Observation:
        """See `Runtime.wait`."""
        return await self._wait(self._box(slot))

    async def oom_flag(self, slot: SlotId) -> bool:
        """See `Runtime.oom_flag`. There is no engine, and so no guess."""
        return False

    async def signal(self, slot: SlotId, signal: int) -> bool:
        """See `Runtime.signal`."""
        box = self._box(slot)
        return await self._run(lambda: box.signal(signal))

    async def freeze(self, slot: SlotId) -> bool:
        """See `Runtime.freeze`. What left the program's process group goes on: there is no freezer."""
        box = self._box(slot)
        return await self._run(lambda: box.signal_group(signals.SIGSTOP))

    async def thaw(self, slot: SlotId) -> None:
        """See `Runtime.thaw`."""
        box = self._box(slot)
        await self._run(lambda: box.signal_group(signals.SIGCONT))

    async def remove(self, slot: SlotId) -> None:
        """See `Runtime.remove`."""
        await self._remove(self._box(slot))

    async def slots(self) -> dict[SlotId, Observation]:
        """See `Runtime.slots`."""

        def find() -> list[SlotId]:
            slots_dir = (self._options.data_dir / "slots").absolute()
            for name, (shim, program) in lost_processes(slots_dir).items():
                self._box(parse_slot_id(name)).recover(shim, program)
            commands = slots_dir.glob(f"*/{BOX}/command")
            return [parse_slot_id(command.parent.parent.name) for command in commands]

        return {slot: await self.observe(slot) for slot in await self._run(find)}

    def group(self, slot: SlotId) -> SlotGroup | None:
        """See `Runtime.group`."""
        return None

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        """See `Runtime.run_preparer`."""
        python = (await self._look()).path(spec.python_version)
        await self.remove_preparers()
        box = self._preparer(spec.name)
        await self._clear(box)

        name, *words = preparer_program(spec.step)
        settings = spec.environment if spec.step is PreparerStep.FETCH else {**LINKS, **spec.environment}

        def begin() -> None:
            folders.make_slot_folders(box.paths, os.geteuid())
            (box.paths.env / "settings").write_bytes(render(settings))
            box.make(spec.code, spec.cache, _uv(), [name, python, *words])
            box.start(outlives=self._options.preparers_outlive_agent_seconds)

        try:
            # To its end: what is started after it was cleared, nobody would end.
            await finish(asyncio.ensure_future(self._run(begin)))
            return await self._prepare(box, spec)
        finally:
            await finish(asyncio.ensure_future(self._clear(box)))

    async def remove_preparers(self) -> None:
        """See `Runtime.remove_preparers`."""
        async with self._sweeping:
            if not self._swept:
                left = (self._options.data_dir / "preparers").glob("*")
                for folder in await self._run(lambda: list(left)):
                    await self._clear(self._preparer(folder.name))
                self._swept = True

    async def aclose(self) -> None:
        """See `Runtime.aclose`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _box(self, slot: SlotId) -> Box:
        return Box(SlotPaths.of(self._options.data_dir, self._options.env_dir, slot))

    async def _run(self, operation: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, operation)
        except OSError as error:
            raise HostFault(f"A folder or process of the slot could not be had: {error}.") from error

    async def _look(self) -> Interpreters:
        """What uv finds on this host; RuntimeUnavailable while it does not work."""
        if self._interpreters is None:
            self._interpreters = await self._run(_look)
        return self._interpreters

    async def _release(self, box: Box, environment: Mapping[str, str]) -> bool:
        ca_bundle = str(self._options.egress.ca_bundle or "")
        content = render({**egress_environment(self._options.egress, ca_bundle), **environment})

        async def lives() -> bool:
            return (await self._run(box.observe)).state is SlotState.RUNNING

        return await box.gate.release(content, lives)

    async def _wait(self, box: Box) -> Observation:
        while True:
            seen = await self._run(box.observe)
            if seen.state in (SlotState.EXITED, SlotState.ABSENT):
                return seen
            shim = await self._open_shim(box)
            if shim is None:
                # Not started yet, or ended this moment.
                await asyncio.sleep(POLL_SECONDS)
            else:
                await _ended(shim)

    async def _remove(self, box: Box) -> None:
        await self._run(lambda: box.signal(signals.SIGKILL))
        shim = await self._open_shim(box)
        if shim is not None:
            await _ended(shim)
        await self._run(box.delete)

    async def _open_shim(self, box: Box) -> int | None:
        opening = asyncio.ensure_future(self._run(box.open_shim))
        try:
            return await finish(opening)
        except asyncio.CancelledError:
            # A thread can not be cancelled: it opened it for nobody.
            if not opening.exception() and (shim := opening.result()) is not None:
                os.close(shim)
            raise

    def _preparer(self, name: str) -> Box:
        # Agents of one host may share the folder for environments, but never a data folder.
        ours = hashlib.sha256(str(self._options.data_dir.absolute()).encode()).hexdigest()[:8]
        paths = SlotPaths(self._options.data_dir / "preparers" / name, self._options.env_dir / f"prepare-{ours}-{name}")
        return Box(paths)

    async def _clear(self, box: Box) -> None:
        await self._remove(box)
        await self._run(lambda: delete_trees(box.paths.root))

    async def _prepare(self, box: Box, spec: PreparerSpec) -> PreparerResult:
        egress = self._options.egress
        indexes = await self._run(lambda: Indexes.of(egress).with_logins(egress.index_netrc))
        await self._release(box, {} if spec.step is PreparerStep.INSTALL else indexes.environment_with_logins())
        reach(AgentPoint.PREPARER_RELEASED)
        late = False
        try:
            async with asyncio.timeout(spec.seconds):
                seen = await self._wait(box)
        except TimeoutError:
            await self._run(lambda: box.signal(signals.SIGKILL))
            seen, late = await self._wait(box), True
        output = await self._run(lambda: read_output(box.paths.log, indexes.secrets))
        return preparer_result(seen, box.gate, output, TOO_LATE if late and was_killed(seen) else "")


async def _ended(descriptor: int) -> None:
    """Wait until the process of a pid descriptor has ended, and close the descriptor."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _uv() -> str:
    return shutil.which("uv") or find_uv_bin()


def _look() -> Interpreters:
    try:
        found = subprocess.run(
            ["/bin/sh", "-c", look_script(_uv())],
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=LOOK_SECONDS,
            check=True,
        )
        return parse(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise RuntimeUnavailable(
            f"uv did not tell which Pythons this host has; install uv and Python ({said})."
        ) from error
