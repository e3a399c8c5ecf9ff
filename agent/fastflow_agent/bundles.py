"""The code of pipelines on this host: fetched once, verified, unpacked read-only, and shared by all its runs."""

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
from fastflow.pipelines import bundle

from fastflow_agent.singleflight import SingleFlight

log = structlog.get_logger(__name__)

T = TypeVar("T")

TRANSFERS = 3
"""Transfers that may arrive damaged or break off in disorder before the code counts as not to be had."""

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


class BundleFault(Exception):
    """The code can not be had; the message says why."""


class _Damaged(Exception):
    """What arrived is not what was asked for."""


class Bundles:
    """Unpacked bundles under one folder, each named by its digest and never changed. Use from one event loop."""

    def __init__(self, folder: Path, channel: grpc.aio.Channel, *, backoff: Backoff | None = None) -> None:
        self._folder = folder
        self._stub = gateway_pb2_grpc.AgentGatewayServiceStub(channel)
        self._backoff = backoff or Backoff(0.2, 5.0)
        self._fetching: SingleFlight[Path] = SingleFlight()
        self._disk = ThreadPoolExecutor(1, "bundle")
        self._tidy = False

    async def ensure(self, digest: str, size: int) -> Path:
        """Returns the folder with the code of a bundle, `size` bytes long as an archive; fetches it if need be.

        Waits while the control plane is out of reach. Raises BundleFault, or OSError for this host's disk.
        """
        try:
            target = self._folder / bundle.digest_hex(digest)
        except ValueError as error:
            raise BundleFault(str(error)) from error
        return await self._fetching.do(target.name, lambda: self._ensure(digest, size, target))

    async def _ensure(self, digest: str, size: int, target: Path) -> Path:
        if not self._tidy:
            await self._on_disk(self._clear_remains)
            self._tidy = True
        if not await self._on_disk(target.is_dir):
            await self._fetch_until_right(digest, size, target)
            log.info("code fetched", digest=digest, bytes=size)
        return target

    async def _fetch_until_right(self, digest: str, size: int, target: Path) -> None:
        failures = 0
        while True:
            try:
                await self._fetch(digest, size, target)
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
                raise BundleFault(f"the code {digest} can not be fetched: {reason} ({failures} times)")
            delay = self._backoff.next()
            log.info("code not fetched", digest=digest, reason=reason, retry_seconds=round(delay, 2))
            await asyncio.sleep(delay)

    async def _fetch(self, digest: str, size: int, target: Path) -> None:
        # Without a name: whatever ends this process, nothing of it stays.
        archive = await self._on_disk(self._nameless_file)
        try:
            await self._receive(digest, size, archive)
            await self._on_disk(lambda: _unpack(archive, target))
        finally:
            await self._on_disk(archive.close)

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
            raise _Damaged(f"{received} bytes arrived with digest {found}, {size} bytes were announced")

    def _nameless_file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)

    def _clear_remains(self) -> None:
        """Makes the folder, and removes what a process that died left half unpacked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"{bundle.PARTIAL_PREFIX}*"):
            bundle.discard(path)

    async def _on_disk(self, operation: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, operation)


def _unpack(archive: IO[bytes], target: Path) -> None:
    archive.seek(0)
    try:
        bundle.unpack(archive, target)
    except bundle.BundleFault as fault:
        raise BundleFault(f"the code can not be unpacked: it {fault}") from fault
