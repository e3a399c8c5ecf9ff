"""`ffctl up`: a control plane and an agent on this machine, in one command."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ffctl import engine, failures
from ffctl.address import DEFAULT_SERVER, token, with_port
from ffctl.children import Child
from ffctl.failures import Failure

READY_S = 120.0
"""For how long the two programs may start: they need about a second, and a minute where an image is new and slow."""
POLL_S = 0.03
STOP_GRACE_S = 15.0
"""For how long a program may end itself: the agent says goodbye, the control plane finishes its writes."""

NOT_ISOLATED = """\
Docker can not be had here: {why}.
Pipelines run as plain processes of this machine instead (runtime "process"). That means:
  - no isolation: a pipeline sees your files, your network and your other processes
  - no hard limits: neither cpu_hard_limit nor mem_hard_limit is enforced
With Docker installed, `ffctl up` uses it by itself."""


@dataclass(frozen=True)
class Plan:
    """What is started, and where."""

    listen: str
    data: Path
    pipelines: Path
    pipelines_given: bool
    runtime: str


@dataclass(frozen=True)
class Ready:
    """What is said once all is up: where pipelines come from, and why the agent takes no runs yet, if so."""

    sources: list[str]
    conditions: list[str]


@click.command("up")
@click.option(
    "--pipelines",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="FASTFLOW_PIPELINES_DIR",
    help="Folder of pipelines.  [default: ./pipelines if there is one, else .]",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_SERVER,
    show_default=True,
    envvar="FASTFLOW_LISTEN",
    help="Where the control plane listens.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".fastflow"),
    show_default=True,
    help="Folder of all that is kept: database, logs, caches.",
)
@click.option(
    "--runtime",
    type=click.Choice(["docker", "process"]),
    envvar="FASTFLOW_RUNTIME",
    help="What runs pipelines.  [default: docker, or process where Docker can not be had]",
)
def command(pipelines: Path | None, listen: str, data: Path, runtime: str | None) -> int:
    """Starts a control plane and an agent on this machine; Ctrl-C stops both.

    All data stays in ./.fastflow, so a second start finds everything again.

    \b
    Example: ffctl up --pipelines examples/pipelines
    """
    folder = pipelines or (Path("pipelines") if Path("pipelines").is_dir() else Path())
    if runtime is None:
        runtime = _choose_runtime()
    plan = Plan(with_port(listen), data.absolute(), folder.absolute(), pipelines is not None, runtime)
    with _only_one(plan):
        _refuse_taken(plan.listen)
        return asyncio.run(_Up(plan).run())


def _choose_runtime() -> str:
    why = engine.why_not()
    if why:
        click.echo(click.style(NOT_ISOLATED.format(why=why), fg="yellow"), err=True, color=_colours())
        return "process"
    return "docker"


@contextlib.contextmanager
def _only_one(plan: Plan) -> Iterator[None]:
    """Keeps a second `ffctl up` away from the same data."""
    plan.data.mkdir(parents=True, exist_ok=True)
    with (plan.data / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Failure(
                f"`ffctl up` runs already with {plan.data}: {lock.read().strip()}",
                hint="Use that one, end it with Ctrl-C, or name another folder and address with --data and --listen.",
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}, listening on {plan.listen}\n")
        lock.flush()
        yield


def _refuse_taken(address: str) -> None:
    """Raises Failure where something listens at `address`: its answers would be taken for those of our control plane.

    An address that can not be had for another reason is left to the control plane to explain.
    """
    host, port = _split(address)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Failure(
                f"another program listens at {address} already, perhaps another control plane",
                hint="End it, or name another address with --listen HOST:PORT.",
            ) from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class _Up:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._children: list[Child] = []
        self._interrupted = asyncio.Event()
        self._stopping = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        started = time.monotonic()
        try:
            await self._start()
            died = asyncio.create_task(self._first_to_die())
            interrupted = asyncio.create_task(self._interrupted.wait())
            ready = asyncio.create_task(self._until_ready())
            await asyncio.wait({died, interrupted, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                _welcome(self._plan, ready.result(), time.monotonic() - started)
                await asyncio.wait({died, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ready, interrupted):
                task.cancel()
            if died.done() and not self._interrupted.is_set():
                self._tell_death(died.result())
                return failures.RUN_FAILED
            died.cancel()
            return failures.SUCCEEDED
        finally:
            await self._stop()

    async def _start(self) -> None:
        plan = self._plan
        controlplane = {
            "FASTFLOW_LISTEN": plan.listen,
            "FASTFLOW_DATA_DIR": str(plan.data / "controlplane"),
            "FASTFLOW_PIPELINES_DIR": str(plan.pipelines),
        }
        agent = {
            "FASTFLOW_CONTROLPLANE": plan.listen,
            "FASTFLOW_DATA_DIR": str(plan.data / "agent"),
            "FASTFLOW_RUNTIME": plan.runtime,
        }
        if "SSL_CERT_FILE" in os.environ and "FASTFLOW_CA_BUNDLE" not in os.environ:
            agent["FASTFLOW_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"]
        await self._start_one("controlplane", ["fastflow-controlplane", "serve"], controlplane)
        await self._start_one("agent", ["fastflow-agent", "run"], agent)

    async def _start_one(self, name: str, arguments: list[str], settings: dict[str, str]) -> None:
        try:
            self._children.append(await Child.start(name, arguments, settings, _say))
        except FileNotFoundError:
            raise Failure(
                f"{arguments[0]} is not installed beside {sys.executable}",
                hint='Install it: pip install "fast-flow[agent,controlplane]"',
            ) from None

    async def _first_to_die(self) -> Child:
        ends = {asyncio.create_task(child.ended()): child for child in self._children}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return ends[done.pop()]

    def _tell_death(self, child: Child) -> None:
        repeated = "\n".join(f"  {line}" for line in child.last_lines) or "  (no output)"
        click.secho(
            f"ffctl: the {child.name} ended by itself with exit code {child.process.returncode}. Its last lines:\n"
            f"{repeated}",
            fg="red",
            err=True,
            color=_colours(),
        )

    async def _until_ready(self) -> Ready:
        """Returns what an operator should know, once the control plane answers and the agent has connected."""
        try:
            async with asyncio.timeout(READY_S):
                await _until_listening(self._plan.listen)
                return await _ask(self._plan.listen)
        except TimeoutError:
            raise Failure(
                f"control plane and agent were not ready within {READY_S:.0f} s", hint="The lines above say why."
            ) from None

    async def _stop(self) -> None:
        self._stopping = True
        for child in reversed(self._children):
            await child.stop(STOP_GRACE_S)

    def _on_signal(self) -> None:
        if self._stopping:
            for child in self._children:
                child.signal(signal.SIGKILL)
        elif not self._interrupted.is_set():
            click.echo(
                "\nStopping agent and control plane (Ctrl-C again: at once).\n"
                "Runs under way go on; the next `ffctl up` picks them up.",
                err=True,
            )
            self._interrupted.set()


async def _until_listening(address: str) -> None:
    host, port = _split(address)
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port, family=socket.AF_UNSPEC)
            writer.close()
            return
        await asyncio.sleep(POLL_S)


async def _ask(address: str) -> Ready:
    """Waits for an agent that has connected."""
    # Loaded now, while the two programs start: it would delay them, and this machine may have few cores.
    import grpc.aio
    from fastflow.v1 import agents_pb2, sources_pb2

    from ffctl.connection import Connection

    async with Connection(address, token()) as connection:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await connection.agents.ListAgents(agents_pb2.ListAgentsRequest(), timeout=1.0)
                for agent in answer.agents:
                    if agent.state == agents_pb2.AGENT_STATE_ACTIVE:
                        sources = await connection.sources.ListSources(sources_pb2.ListSourcesRequest(), timeout=1.0)
                        return Ready(
                            [source.place for source in sources.sources],
                            [
                                f"{condition.type}: {condition.message}"
                                for condition in agent.conditions
                                if condition.blocks_placement
                            ],
                        )
            await asyncio.sleep(POLL_S)


def _welcome(plan: Plan, ready: Ready, seconds: float) -> None:
    if plan.pipelines_given and str(plan.pipelines) not in ready.sources:
        message = f"warning: {plan.pipelines} is not used, as the settings name sources; add it there"
        click.secho(message, fg="yellow", err=True, color=_colours())
    for condition in ready.conditions:
        click.secho(f"warning: {condition}", fg="yellow", err=True, color=_colours())
    needed = [] if plan.listen == DEFAULT_SERVER else [f"  export FASTFLOW_SERVER={plan.listen}\n"]
    if not shutil.which("ffctl"):
        needed.append(f"  export PATH={Path(sys.executable).parent}:$PATH\n")
    click.echo(
        f"\nFast-Flow is ready at {plan.listen} after {seconds:.1f} s.\n"
        f"Pipelines from {', '.join(ready.sources)}, run by {plan.runtime}, data in {plan.data}.\n"
        f"Next, in another terminal:\n\n{''.join(needed)}  ffctl pipelines list\n  ffctl run NAME --follow\n\n"
        "Ctrl-C stops both.\n"
    )


def _say(name: str, line: str) -> None:
    click.echo(f"{click.style(f'{name:>12} |', dim=True)} {line}", err=True, color=_colours())


def _colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
