"""Calls to the Docker engine off the event loop, each bounded in time.

The SDK blocks, so calls run in a small pool of threads of their own. The probe has a thread and a connection to
itself: whatever hangs in the pool, whether the engine answers is always known within the probe's patience.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound
from docker.transport import UnixHTTPAdapter
from docker.transport.unixconn import UnixHTTPConnection, UnixHTTPConnectionPool

from fastflow_agent.runtime.base import RuntimeFault, RuntimeUnavailable

T = TypeVar("T")

Client: TypeAlias = Any
"""The SDK's APIClient: what the methods of it that we need take and give is not typed."""

MINIMUM_API = "1.41"
"""Docker 20.10: the first that tells the version of its control groups."""


class EngineRefused(RuntimeFault):
    """The engine is there and does not do this. `status` is its answer's in HTTP, `words` are its own."""

    def __init__(self, host: str, error: APIError) -> None:
        self.status = int(error.status_code)
        self.words = str(error.explanation)
        self.no_image = isinstance(error, ImageNotFound)
        super().__init__(f"The Docker engine at {host} refused: {self.words}")

    def says(self, words: str) -> bool:
        """Whether it gives `words` as its reason; for many it has no status of their own."""
        return words in self.words


class Engine:
    """One Docker engine, addressed as `host` ("unix:///var/run/docker.sock")."""

    def __init__(self, host: str, threads: int) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._probe_pool = ThreadPoolExecutor(1, thread_name_prefix="docker-probe")
        self._clients = threading.local()
        self._opened: list[Client] = []

    async def call(self, operation: Callable[[Client], T], patience: float) -> T:
        """Run `operation` with a client of its thread, within `patience` seconds, waiting for a thread included.

        Raises RuntimeUnavailable when the engine is gone, does not answer or takes no work at all; what it refuses in
        particular is EngineRefused. No error of the SDK gets past here.
        """
        return await self._run(self._pool, operation, patience)

    async def probe(self, operation: Callable[[Client], T], patience: float) -> T:
        """As `call`, but out of the way of all other calls. An engine that refuses to answer here is no engine."""
        try:
            return await self._run(self._probe_pool, operation, patience)
        except EngineRefused as refusal:
            raise self._unavailable(refusal) from refusal

    @contextmanager
    def connection(self) -> Iterator[Client]:
        """A connection of its own without patience, for the thread that reads events. Raises RuntimeUnavailable."""
        client = self._open(None)
        try:
            yield client
        finally:
            self._close(client)

    def close(self) -> None:
        """Let go of threads and connections; a call under way ends at its own patience."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._probe_pool.shutdown(wait=False, cancel_futures=True)
        for client in list(self._opened):
            self._close(client)

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
        except requests.RequestException as error:
            raise self._unavailable(error) from error
        try:
            return self._once(operation, patience)
        except requests.RequestException as error:
            raise self._unavailable(error) from error

    def _once(self, operation: Callable[[Client], T], patience: float) -> T:
        client = getattr(self._clients, "client", None)
        if client is None:
            client = self._clients.client = self._open(patience)
        client.timeout = patience
        try:
            return operation(client)
        except APIError as error:
            # First, as it is a RequestException too: the engine has answered, and the connection is as good as before.
            refusal = EngineRefused(self._host, error)
            if refusal.status == 503 or refusal.says("shutting down"):
                raise self._unavailable(refusal) from error
            raise refusal from error
        except requests.RequestException:
            self._close(client)
            self._clients.client = None
            raise

    def _open(self, patience: float | None) -> Client:
        try:
            client = _connect(self._host, patience)
        except (requests.RequestException, DockerException) as error:
            raise self._unavailable(error) from error
        self._opened.append(client)
        return client

    def _close(self, client: Client) -> None:
        client.close()
        with suppress(ValueError):
            self._opened.remove(client)

    def _unavailable(self, error: Exception) -> RuntimeUnavailable:
        causes = list(_causes(error))
        if any(isinstance(cause, requests.Timeout) for cause in causes):
            problem = "does not answer"
        elif isinstance(error, EngineRefused):
            problem = f"refuses work ({error.words})"
        else:
            problem = f"can not be reached ({getattr(causes[-1], 'strerror', None) or causes[-1]})"
        return RuntimeUnavailable(
            f"The Docker engine at {self._host} {problem}; see that dockerd runs and this user may use it."
        )


class _Connection(UnixHTTPConnection):  # type: ignore[misc]  # the SDK has no types
    """Closes its socket where the engine is away, which the SDK leaves to the garbage collector."""

    def connect(self) -> None:
        """See the base class."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self.unix_socket)
        except BaseException:
            self.close()
            raise


class _Pool(UnixHTTPConnectionPool):  # type: ignore[misc]  # the SDK has no types
    def _new_conn(self) -> _Connection:
        return _Connection(self.base_url, self.socket_path, self.timeout)


class _Adapter(UnixHTTPAdapter):  # type: ignore[misc]  # the SDK has no types
    """Keeps connections to the engine open. The SDK keeps some for each URL, and most of ours are asked only once."""

    def __init__(self, socket_url: str, timeout: float | None) -> None:
        super().__init__(socket_url, timeout)
        self.pools["engine"] = _Pool("engine", self.socket_path, timeout, maxsize=self.max_pool_size)

    def get_connection(self, url: str, proxies: Any = None) -> Any:
        """See the base class."""
        return super().get_connection("engine", proxies)


def _connect(host: str, patience: float | None) -> Client:
    """A client that speaks as new an API as the engine does. Raises DockerException, RequestException."""
    with closing(_client(host, patience, MINIMUM_API)) as asking:
        spoken = str(asking.version(api_version=False).get("ApiVersion"))
    if not re.fullmatch(r"\d+\.\d+", spoken):
        raise DockerException("it does not say which API it speaks")
    if tuple(map(int, spoken.split("."))) < tuple(map(int, MINIMUM_API.split("."))):
        raise DockerException(f"it speaks API {spoken}, and Docker 20.10 (API {MINIMUM_API}) is needed")
    return _client(host, patience, spoken)


def _client(host: str, patience: float | None, api: str) -> Client:
    client: Client = APIClient(base_url=host, version=api, timeout=patience)
    if host.startswith("unix://"):
        # No proxy leads to a socket; looking for one in the environment takes as long as the call.
        client.trust_env = False
        client.mount(client.base_url, _Adapter(host.replace("unix://", "http+unix://"), patience))
    return client


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was made from, the system's own word last: SDK and requests wrap it five times over."""
    while error is not None:
        yield error
        wrapped = (error.__cause__, error.__context__, *error.args, getattr(error, "reason", None))
        error = next((inner for inner in wrapped if isinstance(inner, BaseException)), None)
