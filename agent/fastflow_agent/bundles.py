"""The code of pipelines on this host: fetched once, verified, unpacked read-only, and shared by all its runs.

What was not used for the longest time goes once all of it takes more room than it may; never what a slot uses.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import grpc
import grpc.aio
import structlog
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.backoff import Backoff
from fastflow.deletion import delete_trees
from fastflow.finishing import finish, take_over
from fastflow.pipelines import bundle

from fastflow_agent.bundle_store import BundleStore
from fastflow_agent.clock import Clock
from fastflow_agent.model import SlotId
from fastflow_agent.singleflight import SingleFlight

log = structlog.get_logger(__name__)

T = TypeVar("T")

TRANSFERS = 3
"""Transfers that may arrive damaged or break off in disorder before the code counts as not to be had."""

SIZE_LIMIT = 2 << 30
"""Bytes on disk of all unpacked code; most pipelines have some kilobytes, few megabytes."""

LEASE_SECONDS = 60.0
"""Code just handed out is not removed for this long: its new user needs a moment to pin it."""

THREADS = 2
"""Reading a large bundle to see whether it is whole, or deleting one, must not hold up another run's start."""

_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
"""The control plane can not be reached at present: waited for, as everything is that it has assigned."""
_REFUSED = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""Asking again gives the same answer."""

_REMEDY = (
    "see to the disk of the control plane's data folder (its log tells if a bundle there is damaged) and to what is on "
    "the way from there, then run it again"
)


class BundleFault(Exception):
    """The code can not be had; the message says why."""


class _Damaged(Exception):
    """What arrived is not what was asked for."""


class Bundles:
    """Unpacked bundles under one folder, each named by its digest and never changed. Use from one event loop.

    After a restart, first pin what is in use, then ask for code.
    """

    def __init__(
        self,
        folder: Path,
        channel: grpc.aio.Channel,
        *,
        size_limit: int = SIZE_LIMIT,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """`size_limit` is in bytes on disk; code in use counts, and may exceed it."""
        self._folder = folder
        self._stub = gateway_pb2_grpc.AgentGatewayServiceStub(channel)
        self._size_limit = size_limit
        self._clock = clock or Clock()
        self._backoff = backoff or Backoff(0.2, 5.0)
        self._fetching: SingleFlight[Path] = SingleFlight()
        self._store = BundleStore(folder)
        self._disk = ThreadPoolExecutor(1, "bundle")
        self._slow = ThreadPoolExecutor(THREADS, "bundle-content")
        self._pins: dict[SlotId, str] = {}
        self._users: dict[str, int] = {}
        self._leases: dict[str, float] = {}
        self._removing = asyncio.Lock()
        self._pruning: asyncio.Task[None] | None = None
        self.removal_allowed = True
        """False while containers may live that no journal is bound to: what code they use can not be told."""

    async def ensure(self, digest: str, size: int) -> Path:
        """Returns the folder with the code of a bundle, `size` bytes long as an archive; fetches it if need be.

        What is on the disk is handed out only while it is what its digest says; else it is fetched anew. Pin it before,
        or within LEASE_SECONDS. Waits while the control plane is out of reach. Raises BundleFault, or OSError for this
        host's disk.
        """
        try:
            name = bundle.digest_hex(digest)
        except ValueError as error:
            raise BundleFault(str(error)) from error
        self._lease(name)
        path = await self._fetching.do(name, lambda: self._ensure(digest, size, name))
        self._lease(name)
        return path

    def pin(self, digest: str, slot: SlotId) -> None:
        """Keeps a bundle, whether it is here yet or not, while `slot` uses it. A slot pins one; again replaces."""
        self._release(slot)
        name = digest.removeprefix("sha256:")
        self._pins[slot] = name
        self._users[name] = self._users.get(name, 0) + 1

    def unpin(self, slot: SlotId) -> None:
        """Ends the use by `slot`, if there is one; what there is no room for is removed in the background."""
        if self._release(slot):
            self._prune_soon()

    async def prune(self) -> None:
        """Removes code nobody uses until the rest keeps to the limit, and what was found damaged."""
        if not self.removal_allowed:
            return
        now = self._clock.monotonic()
        self._leases = {name: until for name, until in self._leases.items() if until > now}
        try:
            async with self._removing:
                await self._on_disk(self._store.open)
                gone = await self._on_disk(lambda: self._store.excess(self._size_limit, self._in_use))
                await self._on_content(lambda: delete_trees(*gone))
        except OSError as error:
            log.warning("code that is not used can not be removed", error=str(error))
            return
        if gone:
            log.info("code removed that was not used", bundles=len(gone), bytes_left=self._store.size)

    async def _ensure(self, digest: str, size: int, name: str) -> Path:
        if not (await self._on_disk(lambda: self._find(name)) and await self._is_whole(digest, name)):
            await self._fetch_until_right(digest, size, name)
            log.info("code fetched", digest=digest, bytes=size)
            self._prune_soon()
        return self._store.path(name)

    def _find(self, name: str) -> bool:
        self._store.open()
        found = self._store.has(name)
        if found:
            self._store.touch(name, self._clock.now())
        return found

    async def _is_whole(self, digest: str, name: str) -> bool:
        """False once a damaged bundle was set aside; a container that has it mounted goes on with what it has."""
        fault = await self._on_content(lambda: self._store.broken(name))
        if fault:
            log.error("code on this host is damaged: it is fetched again", digest=digest, fault=fault)
            await self._on_disk(lambda: self._store.set_aside(name))
        return not fault

    def _in_use(self, name: str) -> bool:
        # Asked from the thread that takes bundles away, at that very moment: so each look is at one entry.
        return bool(self._users.get(name)) or self._leases.get(name, 0.0) > self._clock.monotonic()

    def _lease(self, name: str) -> None:
        self._leases[name] = self._clock.monotonic() + LEASE_SECONDS

    def _release(self, slot: SlotId) -> bool:
        name = self._pins.pop(slot, None)
        if name is not None:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
        return name is not None

    def _prune_soon(self) -> None:
        if self._pruning is None or self._pruning.done():
            self._pruning = asyncio.create_task(self.prune(), name="prune code")

    async def _fetch_until_right(self, digest: str, size: int, name: str) -> None:
        failures = 0
        while True:
            try:
                await self._fetch(digest, size, name)
                self._backoff.reset()
                return
            except grpc.aio.AioRpcError as error:
                reason = f"the control plane answered {error.code().name}: {error.details()}"
                if error.code() in _REFUSED:
                    raise BundleFault(f"the code {digest} can not be fetched: {reason}") from error
                failures += error.code() not in _AWAY
            except _Damaged as error:
                reason = str(error)
                failures += 1
            if failures >= TRANSFERS:
                raise BundleFault(f"the code {digest} can not be fetched: {reason} ({failures} times); {_REMEDY}")
            delay = self._backoff.next()
            log.info("code not fetched", digest=digest, reason=reason, retry_seconds=round(delay, 2))
            await asyncio.sleep(delay)

    async def _fetch(self, digest: str, size: int, name: str) -> None:
        # Without a name: whatever ends this process, nothing of it stays.
        archive = await take_over(self._begun(self._nameless_file), lambda file: file.close())
        try:
            await self._receive(digest, size, archive)
            await self._on_disk(lambda: self._unpack(archive, name))
        finally:
            # After whatever still writes to it.
            await finish(self._begun(archive.close))

    async def _receive(self, digest: str, size: int, archive: IO[bytes]) -> None:
        hashed = hashlib.sha256()
        received = 0

        def take(data: bytes) -> None:
            hashed.update(data)
            archive.write(data)

        # No deadline: a broken connection is noticed by keepalive, a slow one is no error.
        call = self._stub.FetchBundle(gateway_pb2.FetchBundleRequest(digest=digest))
        try:
            async for piece in call:
                if piece.offset != received or received + len(piece.data) > size:
                    raise _Damaged(f"a piece at {piece.offset} does not follow {received} of {size} bytes")
                received += len(piece.data)
                await self._on_disk(partial(take, piece.data))
        finally:
            call.cancel()
        found = f"sha256:{hashed.hexdigest()}"
        if received != size or found != digest:
            raise _Damaged(f"{received} of {size} bytes arrived, with the digest {found}")

    def _nameless_file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)

    def _unpack(self, archive: IO[bytes], name: str) -> None:
        try:
            self._store.put(archive, name, self._clock.now())
        except bundle.BundleFault as fault:
            raise BundleFault(f"the code can not be unpacked: it {fault}") from fault

    async def _on_disk(self, operation: Callable[[], T]) -> T:
        return await self._begun(operation)

    def _begun(self, operation: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._disk, operation)

    async def _on_content(self, operation: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._slow, operation)
