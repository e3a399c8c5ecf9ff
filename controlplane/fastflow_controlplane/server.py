"""Serves a control plane: its data folder's lock, the gRPC server, its tasks, and an end that harms nothing."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import structlog
from fastflow.client import channel_options
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fastflow_controlplane.api import health as health_status
from fastflow_controlplane.api.interceptors import CallInterceptor
from fastflow_controlplane.api.services import Parts, add_services
from fastflow_controlplane.clock import SystemClock
from fastflow_controlplane.composition import Task, compose
from fastflow_controlplane.disk import DISK_FULL, full_message, is_full
from fastflow_controlplane.errors import Deposed, FailedPrecondition, Unavailable
from fastflow_controlplane.identity.tokens import SharedToken
from fastflow_controlplane.settings import ControlPlaneSettings

log = structlog.get_logger(__name__)

FAREWELL_SECONDS = 1.0
"""How long calls under way may take to end at shutdown; followers of logs and runs never end by themselves."""
SHORTEST_PING_MS = 5_000
"""Peers ping each 10 s without traffic (`fastflow.client`); gRPC's default would take that for an attack."""


async def serve(
    settings: ControlPlaneSettings, stopping: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Serves until `stopping` is set; `ready` is called with the address once calls are answered.

    Stopping ends streams and writes what is waiting; it stops no run. Raises FastFlowError or OSError where it can not
    start, Deposed also later.
    """
    with _full_disk_explained(settings.data_dir), _locked_data_folder(settings):
        async with compose(settings, SystemClock()) as controlplane:
            server, status, names = _server(settings, controlplane.services)
            address = await _listen(server, settings)
            await status.set("", health_pb2.HealthCheckResponse.SERVING)
            log.info("control plane is ready", address=address, data_dir=str(settings.data_dir))
            if ready is not None:
                ready(address)
            try:
                told = partial(health_status.tell, status, names, controlplane.services.conditions)
                await _work({**controlplane.tasks, "health": told}, stopping)
            finally:
                log.info("control plane stops; runs go on")
                await status.enter_graceful_shutdown()
                controlplane.services.registry.close()
                await server.stop(FAREWELL_SECONDS)


def server_options() -> list[tuple[str, Any]]:
    """Returns the channel arguments of whatever agents and clients connect to."""
    return [
        *channel_options(),
        ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MS),
        # Two control planes must not share a port by chance.
        ("grpc.so_reuseport", 0),
    ]


def _server(settings: ControlPlaneSettings, services: Parts) -> tuple[grpc.aio.Server, Any, tuple[str, ...]]:
    """Makes the server, and with it what its health service is told by, and the names of its services."""
    token = settings.token.get_secret_value() if settings.token else None
    server = grpc.aio.server(
        interceptors=[CallInterceptor(SharedToken(token))],
        options=server_options(),
    )
    names = add_services(server, services)
    status = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs know the threaded one alone
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, status, names


async def _listen(server: grpc.aio.Server, settings: ControlPlaneSettings) -> str:
    host, _ = settings.address
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        raise FailedPrecondition(
            f"{settings.listen} can not be listened on: another program has it, or this machine has no such address"
        ) from None
    await server.start()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _work(tasks: Mapping[str, Task], stopping: asyncio.Event) -> None:
    """Runs every task of the control plane; one that fails ends all, since half a control plane misleads."""
    try:
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(task(), name=name) for name, task in tasks.items()]
            await stopping.wait()
            for task in working:
                task.cancel()
    except* Deposed as deposed:
        raise deposed.exceptions[0] from None


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """What is made at start may not fit; once started, each part tells of its own disk."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise Unavailable(full_message(folder, "the control plane can not start"), reason=DISK_FULL) from error
        raise


@contextmanager
def _locked_data_folder(settings: ControlPlaneSettings) -> Iterator[None]:
    """Makes the data folder and holds its lock: two control planes on one folder would place each run twice."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(settings.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"another control plane uses the data folder {settings.data_dir}: stop it, or set another data_dir"
            ) from None
        yield
    finally:
        os.close(descriptor)
