"""A network between two programs that a test may cut, stall and slow down."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

PIECE_BYTES = 16 * 1024
"""Bytes that pass at once: small beside what a slow network carries in a second."""
WAIT_SECONDS = 60.0
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST. Source: socket(7)."""


class Relay:
    """Listens on a loopback port of its own and passes TCP connections on to `target` ("host:port").

    A context manager. It works on a thread of its own; every method returns once it is done there.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._network = _Network()
        self._wires: dict[_Wire, asyncio.Task[None]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)
        self._loop.close()

    @property
    def address(self) -> str:
        """Where to connect to in place of the target, "host:port"."""
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset all connections, and every new one, until `heal`."""

        def change() -> None:
            self._network.cut = True
            self._reset()

        self._do(change)

    def drop(self) -> None:
        """Reset all connections; new ones pass."""
        self._do(self._reset)

    def stall(self, *, new_ones_pass: bool = False) -> None:
        """Leave all connections open, swallow what is sent, and pass on neither it nor their end; until `heal`.

        New connections are taken just so, or `new_ones_pass`, as behind a firewall that forgot the old ones.
        """

        def change() -> None:
            self._network.stalled = not new_ones_pass
            for wire in self._wires:
                wire.stalled = True

        self._do(change)

    def slow(self, latency: float, bytes_per_second: int = 0) -> None:
        """Pass everything on `latency` seconds later each way, and no more than so many bytes (0 = any)."""

        def change() -> None:
            self._network.latency, self._network.bytes_per_second = latency, bytes_per_second

        self._do(change)

    def heal(self) -> None:
        """Let all pass at once again; connections that swallowed something are reset."""

        def change() -> None:
            self._network = _Network()
            for wire in self._wires:
                if wire.stalled:
                    wire.abort()

        self._do(change)

    def _reset(self) -> None:
        for wire in self._wires:
            wire.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(reader, writer, stalled=self._network.stalled)
        task = asyncio.current_task()
        assert task is not None
        self._wires[wire] = task
        try:
            if not self._network.cut:
                await wire.carry(self._target, lambda: self._network)
        except* (OSError, _WireOver):
            pass
        finally:
            del self._wires[wire]
            wire.abort()

    async def _close(self) -> None:
        self._server.close()
        self._reset()
        await asyncio.gather(*self._wires.values(), return_exceptions=True)

    def _do(self, change: Callable[[], None]) -> None:
        async def apply() -> None:
            change()

        self._on_loop(apply())

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)


class _Network:
    """How the network is now. Seconds and bytes per second, 0 = any."""

    def __init__(self) -> None:
        self.cut = False
        self.stalled = False
        self.latency = 0.0
        self.bytes_per_second = 0


class _WireOver(Exception):
    """One end of a connection is gone."""


class _Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stalled: bool) -> None:
        self._reader = reader
        self._writers = [writer]
        self._aborted = asyncio.Event()
        self.stalled = stalled

    async def carry(self, target: str, network: Callable[[], _Network]) -> None:
        """Passes bytes on until either end closes. Raises OSError and _WireOver, in groups."""
        if self.stalled:
            await self._swallow(self._reader)
        host, _, port = target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=PIECE_BYTES)
        self._writers.append(writer)
        async with asyncio.TaskGroup() as directions:
            directions.create_task(self._pass_on(self._reader, writer, network))
            directions.create_task(self._pass_on(reader, self._writers[0], network))

    def abort(self) -> None:
        """Resets both ends."""
        self._aborted.set()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, network: Callable[[], _Network]
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._take_in(reader, under_way, network))
            ends.create_task(self._give_out(under_way, writer))

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, bytes]],
        network: Callable[[], _Network],
    ) -> None:
        clock = asyncio.get_running_loop().time
        free_at = clock()
        while data := await reader.read(PIECE_BYTES):
            if self.stalled:
                await self._swallow(reader)
            free_at = max(free_at, clock())
            if rate := network().bytes_per_second:
                # A slow wire takes no more than it carries: else all would be under way at once.
                free_at += len(data) / rate
                await asyncio.sleep(free_at - clock())
            under_way.put_nowait((free_at + network().latency, data))
        if self.stalled:
            await self._swallow(reader)
        raise _WireOver

    async def _give_out(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            if due > clock():
                await asyncio.sleep(due - clock())
            if not self.stalled:
                writer.write(data)
                await writer.drain()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        """Takes bytes, and the other end's farewell, and tells nobody; raises _WireOver once the wire is aborted."""
        with contextlib.suppress(OSError):
            while await reader.read(PIECE_BYTES):
                pass
        await self._aborted.wait()
        raise _WireOver
