"""What the promise that nothing is lost costs, and how soon all is well again after an outage."""

import asyncio
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fastflow.client import open_channel
from fastflow.ids import new_id
from fastflow.v1 import runs_pb2, runs_pb2_grpc
from fastflow_agent.clock import Clock
from fastflow_agent.facts import ContainerGone, Ended, Fact, StateChanged
from fastflow_agent.journal import Journal
from fastflow_agent.model import Limits, SlotId, State
from fastflow_agent.records import (
    Created,
    Exited,
    Forget,
    Intent,
    Prepared,
    Released,
    Releasing,
    Sealed,
    Started,
    Step,
)

from tests.bench.crowd import ATTEMPTS, SimulatedAgent
from tests.bench.figures import Figure
from tests.cluster import Cluster

AGENTS = 200
SUBMITTING = 16
"""Requests for runs under way at once."""
PATIENCE = 240.0
"""Seconds in which the crowd must be at work, and back at work, before the measure is given up."""

HEARTBEAT = 1
MISSED = 4
LOST_AFTER = 3
LIMIT = HEARTBEAT * MISSED + LOST_AFTER
"""Seconds from a host's last sign of life until its runs are LOST, as set for the measure."""
OUTAGES = 3

JOURNALS = 200


def recovery() -> list[Figure]:
    """All of it."""
    return [*asyncio.run(_reconnect()), *_outage(), asyncio.run(_journal())]


async def _reconnect() -> list[Figure]:
    """Kills the control plane under a crowd of agents, starts it again, and waits until all know of all."""
    with (
        tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder,
        Cluster(Path(folder) / "cluster", "process") as cluster,
    ):
        cluster.add_pipeline("endless", "print(1)\n")
        cluster.controlplane.start()
        crowd = [SimulatedAgent(cluster.server, number) for number in range(AGENTS)]
        lives = [asyncio.create_task(agent.live()) for agent in crowd]
        try:
            async with open_channel(cluster.server) as channel:
                stub = runs_pb2_grpc.RunServiceStub(channel)
                await _submit(stub, AGENTS * ATTEMPTS)
                await _until(lambda: all(agent.attempts == ATTEMPTS for agent in crowd))
                await _until_running(stub)
                cluster.controlplane.kill()
                begun = time.monotonic()
                cluster.controlplane.start()
                await _until(lambda: all(agent.synced_at > begun for agent in crowd))
                seconds = max(agent.synced_at for agent in crowd) - begun
                states = await _states(stub)
        finally:
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
    harmed = sum(state != runs_pb2.RUN_STATE_RUNNING for state in states) + AGENTS * ATTEMPTS - len(states)
    title = f"{AGENTS} agents with {ATTEMPTS} attempts each"
    return [
        Figure(f"{title}: control plane killed, to all in sync", seconds, "s", 20),
        Figure(f"{title}: runs that do not run on", harmed, "runs", 0),
    ]


async def _submit(stub: Any, count: int) -> None:
    async def some(number: int) -> None:
        for _ in range(number):
            request = runs_pb2.CreateRunRequest(pipeline="endless", request_id=new_id())
            await stub.CreateRun(request, wait_for_ready=True)

    await asyncio.gather(*(some(count // SUBMITTING) for _ in range(SUBMITTING)))


async def _until_running(stub: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(state != runs_pb2.RUN_STATE_RUNNING for state in await _states(stub)):
        assert time.monotonic() < deadline, "the crowd is not at work"
        await asyncio.sleep(0.5)


async def _states(stub: Any) -> list[int]:
    states: list[int] = []
    token = ""
    while True:
        request = runs_pb2.ListRunsRequest(page_size=500, page_token=token)
        page = await stub.ListRuns(request, wait_for_ready=True)
        states += [run.state for run in page.runs]
        token = page.next_page_token
        if not token:
            return states


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the crowd is not at work"
        await asyncio.sleep(0.02)


def _outage() -> list[Figure]:
    """Stops an agent dead, as a power cut does its host: to LOST, and to the retry that runs on the other one."""
    lost: list[float] = []
    retried: list[float] = []
    settings = {
        "FASTFLOW_HEARTBEAT_INTERVAL": str(HEARTBEAT),
        "FASTFLOW_SILENT_AFTER": str(MISSED),
        "FASTFLOW_LOST_AFTER": str(LOST_AFTER),
        "FASTFLOW_RECOVERY_WINDOW": "0",
    }
    with (
        tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder,
        Cluster(Path(folder) / "cluster", "process", **settings) as cluster,
    ):
        sleeper = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
        cluster.add_pipeline("sleeper", sleeper, pipeline={"retry_on": ["lost"]})
        cluster.controlplane.start()
        for name in ("worker-1", "worker-2"):
            cluster.add_agent(name, FASTFLOW_SLOTS="1")
        for name in ("worker-1", "worker-2"):
            cluster.wait_for_agent(name)
        runs = runs_pb2_grpc.RunServiceStub(grpc.insecure_channel(cluster.server))
        for _ in range(OUTAGES):
            run = cluster.run("sleeper")
            cluster.wait_for_log(run, b"up")
            victim = cluster.agents[cluster.show(run)["attempts"][0]["agent"]]
            begun = time.monotonic()
            victim.freeze()
            for response in runs.WatchRun(runs_pb2.WatchRunRequest(id=run)):
                attempts = response.run.attempts
                if attempts[0].state == runs_pb2.RUN_STATE_LOST and len(lost) == len(retried):
                    lost.append(time.monotonic() - begun)
                if len(attempts) > 1 and attempts[1].state == runs_pb2.RUN_STATE_RUNNING:
                    retried.append(time.monotonic() - begun)
                    break
            victim.thaw()
            runs.CancelRun(runs_pb2.CancelRunRequest(id=run))
            cluster.finish(run)
            for name in cluster.agents:
                cluster.wait_for_agent(name)
    title = f"a host goes silent, limits of {LIMIT} s"
    return [
        Figure(f"{title}: beyond them to LOST", statistics.median(lost) - LIMIT, "s", 2),
        Figure(f"{title}: beyond them to the retry that runs", statistics.median(retried) - LIMIT, "s", 2),
    ]


async def _journal() -> Figure:
    """Writes the journal of a run that succeeds, as an agent does; the yardstick is one write and sync a run."""
    with tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder, ThreadPoolExecutor(1) as executor:
        begun = time.monotonic()
        size = 0
        for number in range(JOURNALS):
            path = Path(folder) / str(number) / "journal"
            await _write_journal(path, executor)
            size = max(size, len(path.read_bytes().rstrip(b"\0")))
        ours = (time.monotonic() - begun) / JOURNALS
        begun = time.monotonic()
        for number in range(JOURNALS):
            await asyncio.get_running_loop().run_in_executor(
                executor, _write_once, Path(folder) / f"plain-{number}", b"x" * size
            )
        plain = (time.monotonic() - begun) / JOURNALS
    return Figure("journal of one run on the agent", ours * 1000, "ms", None, plain * 1000, "one write and sync")


async def _write_journal(path: Path, executor: ThreadPoolExecutor) -> None:
    now = datetime.now(UTC)
    limits = Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=1 << 30)
    slot = SlotId("0123456789abcdef")
    intent = Intent(
        new_id(), 1, "t" * 32, slot, "hello", "sha256:" + "0" * 64, limits, 600.0, 10.0, "", 1 << 30, "boot", now
    )
    journal = await Journal.create(path, intent, executor, Clock(), facts=(StateChanged(State.PREPARING, slot=slot),))
    writes: list[tuple[tuple[Step, ...], tuple[Fact, ...]]] = [
        ((Prepared("1"),), ()),
        ((Created(4711),), ()),
        ((Started(), Releasing(now, 1.0, "boot")), ()),
        ((Released(),), (StateChanged(State.RUNNING, slot=slot),)),
        ((Exited("EXITED", oom_flag=False, error="", exit_code=0),), (Ended(State.SUCCEEDED, exit_code=0),)),
        ((), (ContainerGone(),)),
        ((Sealed(100),), ()),
        ((Forget(),), ()),
    ]
    for steps, facts in writes:
        await journal.append(*steps, facts=facts)
    await journal.close()


def _write_once(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fdatasync(file.fileno())
