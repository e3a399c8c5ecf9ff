"""Calls to the Docker engine off the event loop, each bounded in time.

The SDK blocks, so calls run in a small pool of threads of their own. The probe has a thread and a connection to
itself: whatever hangs in the pool, whether the engine answers is always known within the probe's patience.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException

from fastflow_agent.runtime.base import RuntimeUnavailable

T = TypeVar("T")

Client: TypeAlias = Any
"""The SDK's APIClient: what the methods of it that we need take and give is not typed."""

MINIMUM_API = "1.41"
"""Docker 20.10: the first that tells the version of its control groups."""


class Engine:
    """One Docker engine, addressed as `host` ("unix:///var/run/docker.sock")."""

    def __init__(self, host: str, threads: int) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._probe_pool = ThreadPoolExecutor(1, thread_name_prefix="docker-probe")
        self._clients = threading.local()

    async def call(self, operation: Callable[[Client], T], patience: float) -> T:
        """Run `operation` with a client of its thread, within `patience` seconds, waiting for a thread included.

        Raises RuntimeUnavailable when the engine is gone or does not answer; what it refuses is an APIError.
        """
        return await self._run(self._pool, operation, patience)

    async def probe(self, operation: Callable[[Client], T], patience: float) -> T:
        """As `call`, but out of the way of all other calls."""
        return await self._run(self._probe_pool, operation, patience)

    def connect(self, patience: float | None) -> Client:
        """A new connection, for the events stream. Raises RuntimeUnavailable."""
        try:
            return _connect(self._host, patience)
        except (requests.RequestException, DockerException) as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Let go of the threads; a call under way ends at its own patience."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._probe_pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, operation: Callable[[Client], T], patience: float) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                return await loop.run_in_executor(pool, self._attempt, operation, patience)
        except TimeoutError:
            raise RuntimeUnavailable(
                f"The Docker engine at {self._host} does not answer (waited {patience:g} s)."
            ) from None

    def _attempt(self, operation: Callable[[Client], T], patience: float) -> T:
        try:
            return self._once(operation, patience)
        except requests.Timeout as error:
            raise self._unavailable(error) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            # A kept connection to an engine that was restarted fails once; every operation of ours may be repeated.
            pass
        try:
            return self._once(operation, patience)
        except requests.RequestException as error:
            raise self._unavailable(error) from error

    def _once(self, operation: Callable[[Client], T], patience: float) -> T:
        try:
            client = getattr(self._clients, "client", None)
            if client is None:
                client = self._clients.client = self.connect(patience)
            client.timeout = patience
            return operation(client)
        except requests.RequestException:
            self._clients.client = None
            raise
        except APIError as error:
            if error.status_code == 503 or "shutting down" in str(error.explanation):
                raise self._unavailable(error) from error
            raise

    def _unavailable(self, error: Exception) -> RuntimeUnavailable:
        if isinstance(error, requests.Timeout):
            problem = "does not answer"
        elif isinstance(error, APIError):
            problem = f"refuses work ({error.explanation})"
        else:
            problem = f"can not be reached ({_innermost(error)})"
        return RuntimeUnavailable(
            f"The Docker engine at {self._host} {problem}; see that dockerd runs and this user may use it."
        )


def _connect(host: str, patience: float | None) -> Client:
    client: Client = APIClient(base_url=host, version="auto", timeout=patience)  # type: ignore[arg-type, unused-ignore]
    if tuple(map(int, client.api_version.split("."))) < tuple(map(int, MINIMUM_API.split("."))):
        raise DockerException(f"it speaks API {client.api_version}, and Docker 20.10 (API {MINIMUM_API}) is needed")
    return client


def _innermost(error: BaseException) -> str:
    """The system's own word: the SDK and requests wrap a refused connection five times."""
    seen: Any = error
    for _ in range(10):
        inner = next(
            (
                value
                for value in (*getattr(seen, "args", ()), getattr(seen, "reason", None))
                if isinstance(value, BaseException)
            ),
            None,
        )
        if inner is None:
            break
        seen = inner
    return getattr(seen, "strerror", None) or str(seen)
