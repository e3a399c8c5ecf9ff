"""Ends of containers: one events stream for all of them, and a look at all of them now and then."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import requests
import structlog

from fastflow_agent.runtime.base import RuntimeUnavailable, Sent
from fastflow_agent.runtime.docker_engine import Client, Engine, EngineRefused
from fastflow_agent.runtime.docker_options import DockerTimes

Event: TypeAlias = Mapping[str, Any]
"""One event as the engine writes it."""

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 2.0
"""An engine that is well answers within milliseconds, and one that hangs must not hold up the agent's own end."""

LOOK_BACK_SECONDS = 5.0
"""The first stream asks for events from this long ago: the engine answers before it listens. Old ones do no harm."""


@dataclass
class Ending:
    """What is told of one container. `wake` is set whenever it may have ended or gone.

    `exit_code` and `finished_at` (UTC) are those of its end, None until an event told them; events may be missed, so
    who is woken without them has to look. `from_start` is true if every event since before its start was listened for.
    `signals` are those that the engine was told to send to it.
    """

    from_start: bool
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int | None = None
    finished_at: datetime | None = None
    signals: set[Sent] = field(default_factory=set)

    def take(self, event: Event) -> None:
        """Take over what an event of this container tells; one that was heard before does no harm."""
        time = datetime.fromtimestamp(event["timeNano"] / 1e9, UTC)
        attributes = event["Actor"]["Attributes"]
        if event["Action"] == "kill":
            self.signals.add(Sent(int(attributes["signal"]), time))
        elif event["Action"] == "die":
            self.exit_code, self.finished_at = int(attributes["exitCode"]), time


class Ends:
    """Tells those who wait for a container that it ended, and how; or only wakes them, where events were missed."""

    def __init__(self, engine: Engine, label: str, times: DockerTimes) -> None:
        """`label` ("key=value") is on every container that is waited for."""
        self._engine = engine
        self._label = label
        self._times = times
        self._endings: dict[str, Ending] = {}
        self._stream: _Stream | None = None
        self._looking: asyncio.Task[None] | None = None

    def expect(self, container: str) -> None:
        """Listen for the end of a container that is about to be started; until `forget`."""
        self._begin()
        self._endings[container] = Ending(from_start=True)

    def ending(self, container: str) -> Ending:
        """What is told of a container from now on, or since it was expected; until `forget`."""
        self._begin()
        return self._endings.setdefault(container, Ending(from_start=False))

    async def recall(self, container: str) -> None:
        """Take over what the engine still tells of the container's past, for events that nobody here listened for.

        It keeps its last 256 events, and loses them with its own restart.
        """

        def past(client: Client) -> list[Event]:
            now = time.time_ns()
            filters = json.dumps({"type": ["container"], "event": ["die", "kill"], "container": [container]})
            parameters = {"since": "0", "until": f"{now // 10**9}.{now % 10**9:09}", "filters": filters}
            with client.get(_url(client), params=parameters, timeout=self._times.question) as response:
                response.raise_for_status()
                return [json.loads(line) for line in response.iter_lines()]

        events = await self._engine.call(past, self._times.question)
        if ending := self._endings.get(container):
            for event in events:
                ending.take(event)

    def forget(self, container: str) -> None:
        """The container is gone, or nobody waits for it any more. No error for one never heard of."""
        self._endings.pop(container, None)

    async def aclose(self) -> None:
        """Stop listening."""
        if self._stream:
            await asyncio.to_thread(self._stream.close)
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _begin(self) -> None:
        if self._stream is not None:
            return
        loop = asyncio.get_running_loop()

        def told(event: Event) -> None:
            # The loop may be closed already when the last event arrives.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._take, event)

        self._stream = _Stream(self._engine, self._label, self._times.event_retry, told)
        self._looking = loop.create_task(self._look_again(), name="docker-reinspection")

    def _take(self, event: Event) -> None:
        ending = self._endings.get(event["Actor"]["Attributes"].get("name", ""))
        if ending is None:
            return
        ending.take(event)
        if event["Action"] != "kill":
            ending.wake.set()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self._times.reinspect)
            if not self._endings:
                continue
            try:
                running = await self._engine.call(self._list_running, self._times.question)
            except RuntimeUnavailable:
                continue
            except EngineRefused as error:
                log.warning("containers could not be listed", error=str(error))
                continue
            for name, ending in self._endings.items():
                if name not in running:
                    ending.wake.set()

    def _list_running(self, client: Any) -> set[str]:
        found = client.containers(filters={"label": self._label, "status": ["running", "paused"]})
        return {name.removeprefix("/") for container in found for name in container["Names"]}


class _Stream:
    """The thread that reads the engine's events, opens them again when they break off, and resumes where it was."""

    def __init__(self, engine: Engine, label: str, retry: float, told: Callable[[Event], None]) -> None:
        self._engine = engine
        self._filters = json.dumps({"type": ["container"], "event": ["die", "destroy", "kill"], "label": [label]})
        self._retry = retry
        self._told = told
        self._closing = threading.Event()
        self._socket: socket.socket | None = None
        self._since_ns = time.time_ns() - int(LOOK_BACK_SECONDS * 1e9)
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Have the thread end, and wait for it; not for long, in case that the engine hangs in its first answer."""
        self._closing.set()
        if self._socket is not None:
            with suppress(OSError):
                # Wakes the thread from its read; closing the descriptor under it would not.
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except (RuntimeUnavailable, requests.RequestException, ValueError) as error:
                if not self._closing.is_set():
                    log.debug("the events stream broke off", error=str(error))
            self._closing.wait(self._retry)

    def _listen(self) -> None:
        since = f"{self._since_ns // 10**9}.{self._since_ns % 10**9:09}"
        parameters = {"since": since, "filters": self._filters}
        with (
            self._engine.connection() as client,
            # Not the SDK's own `events`: its stream can not be closed without leaking the socket.
            client.get(_url(client), params=parameters, stream=True, timeout=None) as response,
        ):
            response.raise_for_status()
            self._socket = response.raw.connection.sock
            if self._closing.is_set():
                return  # whoever closes may not have seen the socket
            for line in response.iter_lines():
                if self._closing.is_set():
                    return
                self._take(json.loads(line))

    def _take(self, event: Event) -> None:
        self._since_ns = event.get("timeNano") or self._since_ns
        self._told(event)


def _url(client: Client) -> str:
    return f"{client.base_url}/v{client.api_version}/events"
