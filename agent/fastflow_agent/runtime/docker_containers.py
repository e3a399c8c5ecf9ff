"""One container of ours at a time: create, start, observe, await, signal, remove, in the words of `Runtime`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound

from fastflow_agent.runtime.base import WRAPPER_FAILED, Observation, RuntimeFault, RuntimeUnavailable, SlotState
from fastflow_agent.runtime.container_spec import LABEL_AGENT
from fastflow_agent.runtime.docker_engine import Client, Engine
from fastflow_agent.runtime.docker_events import Ends
from fastflow_agent.runtime.docker_image import missing
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.release import Gate

REMOVAL_TRIES = 100
REMOVAL_PAUSE_SECONDS = 0.1
"""The engine refuses a second removal while one is under way; that takes it a moment, on a busy disk seconds."""

_KILLED = 137
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
        except ImageNotFound as error:
            raise missing(self._image) from error
        except APIError as error:
            if error.status_code != 409:
                raise _fault("create", name, error) from error

    async def start(self, name: str) -> None:
        """Start it; no error if it runs."""
        try:
            await self._engine.call(lambda client: client.start(name), self._times.action)
        except APIError as error:
            raise _fault("start", name, error) from error

    async def signal(self, name: str, signal: int) -> bool:
        """Signal its first process; false if it had ended."""
        try:
            await self._engine.call(lambda client: client.kill(name, signal), self._times.action)
        except NotFound:
            return False
        except APIError as error:
            if error.status_code == 409 or "is not running" in str(error.explanation):
                return False
            raise _fault("signal", name, error) from error
        return True

    async def remove(self, name: str) -> bool:
        """Remove it with its volume, killing what runs; returns once it is gone. False if there was none."""
        for _ in range(REMOVAL_TRIES):
            try:
                await self._engine.call(
                    lambda client: client.remove_container(name, v=True, force=True), self._times.action
                )
            except NotFound:
                return False
            except APIError as error:
                if error.status_code != 409:
                    raise _fault("remove", name, error) from error
                await asyncio.sleep(REMOVAL_PAUSE_SECONDS)
            else:
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
        except APIError as error:
            raise _fault("remove", f"volume {label}", error) from error

    async def observe(self, name: str, gate: Gate) -> Observation:
        """Its state now; at its gate the wrapper leaves word."""
        try:
            found = await self._engine.call(lambda client: client.inspect_container(name), self._times.question)
        except NotFound:
            return Observation(SlotState.ABSENT)
        except APIError as error:
            raise _fault("inspect", name, error) from error
        return observation(found["State"], gate)

    async def wait(self, name: str, gate: Gate) -> Observation:
        """Its state once it is EXITED or ABSENT, however long the engine is away meanwhile."""
        with self._ends.watch(name) as wake:
            while True:
                wake.clear()
                seen = await self._try_observe(name, gate)
                if seen and seen.state is SlotState.ABSENT:
                    return seen
                if seen and seen.state is SlotState.EXITED:
                    return await self._with_oom_flag(seen, name, gate)
                await wake.wait()

    async def aclose(self) -> None:
        """Stop listening for ends."""
        await self._ends.aclose()

    async def _try_observe(self, name: str, gate: Gate) -> Observation | None:
        try:
            return await self.observe(name, gate)
        except RuntimeUnavailable:
            # The engine will be back, and so will this container, or its end: both wake whoever waits.
            return None

    async def _with_oom_flag(self, seen: Observation, name: str, gate: Gate) -> Observation:
        if seen.exit_code != _KILLED or seen.oom_flag:
            return seen
        await asyncio.sleep(self._times.oom_flag)
        return await self._try_observe(name, gate) or seen


def observation(state: Mapping[str, Any], gate: Gate) -> Observation:
    """The engine's `State` as an observation."""
    where = _STATES.get(state["Status"], SlotState.EXITED)
    ended = where is SlotState.EXITED
    code = int(state["ExitCode"]) if ended else None
    return Observation(
        state=where,
        exit_code=code,
        oom_flag=bool(state.get("OOMKilled")),
        error=str(state.get("Error", "")),
        wrapper_failed=code == WRAPPER_FAILED and gate.wrapper_failed(),
        finished_at=_time(state.get("FinishedAt", "")) if ended else None,
    )


def _time(text: str) -> datetime | None:
    """The engine's time, which has nanoseconds; year 1 stands for none."""
    if not text or text.startswith("0001-"):
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}+00:00")


def _fault(verb: str, name: str, error: APIError) -> RuntimeFault:
    return RuntimeFault(f"The Docker engine could not {verb} {name}: {error.explanation}")
