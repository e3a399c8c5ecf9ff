"""One container of ours at a time: create, start, observe, await, signal, remove, in the words of `Runtime`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastflow_agent.runtime.base import (
    KILLED,
    WRAPPER_FAILED,
    ContainerRemoved,
    Observation,
    RuntimeFault,
    RuntimeUnavailable,
    Sent,
    SlotState,
)
from fastflow_agent.runtime.container_spec import LABEL_AGENT
from fastflow_agent.runtime.docker_engine import Client, Engine, EngineRefused
from fastflow_agent.runtime.docker_events import Ends
from fastflow_agent.runtime.docker_image import missing
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.release import Gate

REMOVAL_TRIES = 100
REMOVAL_PAUSE_SECONDS = 0.1
"""The engine refuses a second removal while one is under way; that takes it a moment, on a busy disk seconds."""

UNSEEN = 255
"""What the engine gives for an end that it did not see: the host or the engine was restarted meanwhile, and containerd
waits 5 s for a shim to tell of it. A program's own exit code may be the same one."""

_NOT_FOUND, _CONFLICT = 404, 409
_REMOVED = ("No such container", "marked for removal")
"""What the engine says of a container that is gone, or about to go."""

_STATES = {
    "created": SlotState.CREATED,
    "running": SlotState.RUNNING,
    "paused": SlotState.RUNNING,
    "restarting": SlotState.RUNNING,
}


class Containers:
    """Containers by name. All methods may raise RuntimeUnavailable, and RuntimeFault for what the engine refuses."""

    def __init__(self, options: DockerOptions, engine: Engine) -> None:
        self._image = options.image
        self._times = options.times
        self._engine = engine
        self._ends = Ends(engine, f"{LABEL_AGENT}={options.agent_id}", options.times)

    async def create(self, name: str, config: Mapping[str, Any]) -> None:
        """Create a container; one of that name is kept. Raises ImageMissing."""
        try:
            await self._engine.call(
                lambda client: client.create_container_from_config(config, name), self._times.action
            )
        except EngineRefused as error:
            if error.no_image:
                raise missing(self._image) from error
            if error.status != _CONFLICT:
                raise _fault("create", name, error) from error

    async def start(self, name: str) -> None:
        """Start it; no error if it runs. Raises ContainerRemoved."""
        self._ends.expect(name)
        try:
            await self._engine.call(lambda client: client.start(name), self._times.action)
        except EngineRefused as error:
            # Of other things that are missing, a network say, it tells with the same status.
            if any(map(error.says, _REMOVED)):
                raise ContainerRemoved(
                    f"The container {name} was removed before its start; look on the worker host for a clean-up job "
                    "that prunes containers."
                ) from error
            raise _fault("start", name, error) from error

    async def signal(self, name: str, signal: int) -> bool:
        """Signal its first process; false if it had ended. The engine itself lets a paused one go on for it."""
        try:
            await self._engine.call(lambda client: client.kill(name, signal), self._times.action)
        except EngineRefused as error:
            if error.status in (_NOT_FOUND, _CONFLICT) or error.says("is not running"):
                return False
            raise _fault("signal", name, error) from error
        return True

    async def pause(self, name: str) -> bool:
        """Freeze it by its control group; false if it had ended."""
        try:
            await self._engine.call(lambda client: client.pause(name), self._times.action)
        except EngineRefused as error:
            if error.says("already paused"):
                return True
            if error.status == _NOT_FOUND or error.says("not running"):
                return False
            raise _fault("pause", name, error) from error
        return True

    async def unpause(self, name: str) -> None:
        """Let it go on; no error if it is not paused, or has ended."""
        try:
            await self._engine.call(lambda client: client.unpause(name), self._times.action)
        except EngineRefused as error:
            ended = error.status == _NOT_FOUND or error.says("not running")
            if not ended and not error.says("is not paused"):
                raise _fault("unpause", name, error) from error

    async def remove(self, name: str) -> bool:
        """Remove it with its volume, killing what runs; returns once it is gone. False if there was none."""
        for _ in range(REMOVAL_TRIES):
            try:
                await self._engine.call(
                    lambda client: client.remove_container(name, v=True, force=True), self._times.action
                )
            except EngineRefused as error:
                if error.status == _NOT_FOUND:
                    self._ends.forget(name)
                    return False
                if error.status != _CONFLICT:
                    raise _fault("remove", name, error) from error
                await asyncio.sleep(REMOVAL_PAUSE_SECONDS)
            else:
                self._ends.forget(name)
                return True
        raise RuntimeFault(f"The Docker engine could not remove {name}: a removal is under way and does not end.")

    async def names(self, labels: Sequence[str]) -> list[str]:
        """Names of all containers that have these labels, whatever their state."""
        filters = {"label": list(labels)}
        found = await self._engine.call(
            lambda client: client.containers(all=True, filters=filters), self._times.question
        )
        return [str(container["Names"][0]).removeprefix("/") for container in found]

    async def remove_volumes(self, label: str) -> None:
        """Remove volumes by label ("key=value"): those of a container that somebody else removed, but not with them."""

        def remove(client: Client) -> None:
            for volume in client.volumes(filters={"label": label})["Volumes"] or []:
                client.remove_volume(volume["Name"], force=True)

        try:
            await self._engine.call(remove, self._times.action)
        except EngineRefused as error:
            raise _fault("remove", f"volume {label}", error) from error

    async def observe(self, name: str, gate: Gate) -> Observation:
        """Its state now; at its gate the wrapper leaves word."""
        try:
            found = await self._engine.call(lambda client: client.inspect_container(name), self._times.question)
        except EngineRefused as error:
            if error.status == _NOT_FOUND:
                return Observation(SlotState.ABSENT)
            raise _fault("inspect", name, error) from error
        return observation(found["State"], gate)

    async def wait(self, name: str, gate: Gate) -> Observation:
        """Its state once it is EXITED or ABSENT, however long the engine is away meanwhile.

        As a rule the event that tells the end suffices: an engine asked right then answers only once it has torn the
        container down. What was killed is looked for, as it may be gone. The OOM flag is not waited for. Of an end that
        the engine saw there was an event, so UNSEEN without one is no exit code; or it may be one, where nobody
        listened and the engine may have forgotten the event.
        """
        ending = self._ends.ending(name)
        if ending.from_start:
            await ending.wake.wait()
        while True:
            ending.wake.clear()
            if ending.exit_code is not None and ending.exit_code != KILLED:
                if not ending.from_start:
                    await self._ends.recall(name)
                seen = _ended(ending.exit_code, gate, finished_at=ending.finished_at)
                return replace(seen, signals=_ascending(ending.signals))
            looked = await self._try_observe(name, gate)
            if looked and looked.state in (SlotState.EXITED, SlotState.ABSENT):
                if ending.exit_code is None:
                    await self._ends.recall(name)
                if looked.exit_code == UNSEEN and ending.exit_code is None:
                    code = None if ending.from_start else UNSEEN
                    looked = replace(looked, exit_code=code, end_unseen=True)
                return replace(looked, signals=_ascending(ending.signals))
            await ending.wake.wait()

    async def oom_flag(self, name: str, gate: Gate) -> bool:
        """Whether the engine says that the ended container ran out of memory."""
        await asyncio.sleep(self._times.oom_flag)
        return (await self.observe(name, gate)).oom_flag

    async def aclose(self) -> None:
        """Stop listening for ends."""
        await self._ends.aclose()

    async def _try_observe(self, name: str, gate: Gate) -> Observation | None:
        try:
            return await self.observe(name, gate)
        except RuntimeUnavailable:
            # The engine will be back, and so will this container, or its end: both wake whoever waits.
            return None


def observation(state: Mapping[str, Any], gate: Gate) -> Observation:
    """The engine's `State` as an observation."""
    if state["Status"] == "removing" and int(state["ExitCode"]) == KILLED:
        # `docker rm --force` kills first: the end is part of the removal, and soon nothing tells of it.
        return Observation(SlotState.ABSENT)
    where = _STATES.get(state["Status"], SlotState.EXITED)
    if where is not SlotState.EXITED:
        return Observation(where)
    seen = _ended(int(state["ExitCode"]), gate, finished_at=_time(state.get("FinishedAt", "")))
    return replace(seen, oom_flag=bool(state.get("OOMKilled")), error=str(state.get("Error", "")))


def _ended(code: int, gate: Gate, *, finished_at: datetime | None) -> Observation:
    failed = code == WRAPPER_FAILED and gate.wrapper_failed()
    return Observation(SlotState.EXITED, code, wrapper_failed=failed, finished_at=finished_at)


def _ascending(sent: Iterable[Sent]) -> tuple[Sent, ...]:
    return tuple(sorted(sent, key=lambda signal: signal.time))


def _time(text: str) -> datetime | None:
    """The engine's time, which has nanoseconds; year 1 stands for none."""
    if not text or text.startswith("0001-"):
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}+00:00")


def _fault(verb: str, name: str, error: EngineRefused) -> RuntimeFault:
    return RuntimeFault(f"The Docker engine could not {verb} {name}: {error.words}")
