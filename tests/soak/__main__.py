"""`make soak`: many short runs over several agents, whose connections are cut again and again.

Prints how memory, descriptors, threads and disk of both sides went, writes build/soak.json, and fails where something
grew, was left behind, or did not end as it should.
"""

import argparse
import json
import random
import re
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import grpc
from fastflow.client import channel_options
from fastflow.v1 import runs_pb2, runs_pb2_grpc
from rich.console import Console
from rich.table import Table

from tests.cluster import Cluster
from tests.cluster.leftovers import left_behind
from tests.soak.vitals import MIB, Sample, Trend, look, trends
from tests.soak.wire import Wire

RESULT = Path(__file__).parents[2] / "build" / "soak.json"
LOOK_SECONDS = 0.2
"""Pause between two looks at who is back."""
SAMPLES = 100
"""Looks at each program over the whole time: enough for a fit."""
QUIET_SECONDS = 90.0
"""How long both sides may take to forget the last runs."""
RUN_SECONDS = 300.0
"""A short run that has not ended by then never will."""
PIPELINES = ("quick", "chatty")


class Soak:
    """One cluster, and what is done to it. `wires` by agent; `minutes` bounds the time."""

    def __init__(self, cluster: Cluster, wires: dict[str, Wire], runs: int, reconnects: int, minutes: float) -> None:
        self._cluster = cluster
        self._wires = wires
        self._wanted = runs
        self._reconnects_wanted = reconnects
        self._greeted_at_cut: dict[str, int] = {}
        self._greeted_first = sum(greeted(cluster).values())
        self._deadline = time.monotonic() + minutes * 60
        self._begun = time.monotonic()
        self._stub = runs_pb2_grpc.RunServiceStub(grpc.insecure_channel(cluster.server, channel_options()))
        self._lock = threading.Lock()
        self._turns = iter(range(runs))
        self.states: Counter[str] = Counter()
        self.samples: list[Sample] = []

    @property
    def done(self) -> int:
        """Runs that ended."""
        return self.states.total()

    @property
    def reconnects(self) -> int:
        """How often agents came back, as the control plane counts their sessions."""
        return sum(greeted(self._cluster).values()) - self._greeted_first

    def go(self, at_once: int) -> None:
        """Does all of it."""
        with ThreadPoolExecutor(at_once, thread_name_prefix="runs") as pool:
            working = [pool.submit(self._run_all) for _ in range(at_once)]
            pace = random.Random(0)
            try:
                while not all(each.done() for each in working) or self._keeps_cutting:
                    time.sleep(LOOK_SECONDS)
                    self._keep_cutting(pace)
                    self._keep_looking()
            finally:
                # Where this was broken off, the pool ends only with its last run.
                self._deadline = time.monotonic()
            for each in working:
                each.result()
        self._look()

    def _run_all(self) -> None:
        while (number := self._next()) is not None:
            request = runs_pb2.CreateRunRequest(pipeline=PIPELINES[number % len(PIPELINES)])
            run = self._stub.CreateRun(request).run
            state = runs_pb2.RUN_STATE_UNSPECIFIED
            for answer in self._stub.WatchRun(runs_pb2.WatchRunRequest(id=run.id), timeout=RUN_SECONDS):
                state = answer.run.state
            with self._lock:
                self.states[runs_pb2.RunState.Name(state).removeprefix("RUN_STATE_")] += 1

    def _next(self) -> int | None:
        with self._lock:
            return None if time.monotonic() > self._deadline else next(self._turns, None)

    @property
    def _keeps_cutting(self) -> bool:
        return self.reconnects < self._reconnects_wanted and time.monotonic() < self._deadline

    def _keep_cutting(self, pace: random.Random) -> None:
        """Cuts as often as fits the runs that ended, an agent that has come back since its last cut."""
        now = greeted(self._cluster)
        back = [name for name in self._wires if now[name] > self._greeted_at_cut.get(name, 0)]
        fits = self._reconnects_wanted * self.done / self._wanted
        if back and sum(now.values()) - self._greeted_first < fits:
            name = pace.choice(back)
            self._greeted_at_cut[name] = now[name]
            self._wires[name].cut()

    def _keep_looking(self) -> None:
        last = self.samples[-1].runs if self.samples else -1
        if self.done - last >= max(1, self._wanted // SAMPLES):
            self._look()

    def _look(self) -> None:
        seconds, runs = time.monotonic() - self._begun, self.done
        folder = self._cluster.folder
        programs = {"controlplane": self._cluster.controlplane, **self._cluster.agents}
        self.samples += [look(name, each.pid, folder / name, runs, seconds) for name, each in programs.items()]

    def leftovers(self) -> Iterator[str]:
        """Says what is still there once both sides have had the time to forget."""
        deadline = time.monotonic() + QUIET_SECONDS
        for name, agent in self._cluster.agents.items():
            slots = set(re.findall(r'"slot": "([0-9a-f]{16})"', agent.log.read_text()))
            while next(left_behind(agent, slots), "") and time.monotonic() < deadline:
                time.sleep(0.5)
            yield from (f"{name}: {what} is left" for what in left_behind(agent, slots))
        kept = self._kept()
        logs = {path.parent.name for path in (self._cluster.folder / "controlplane" / "logs").rglob("*.log")}
        if not logs <= kept:
            yield f"logs of {len(logs - kept)} runs that are not kept"

    def _kept(self) -> set[str]:
        kept: set[str] = set()
        token = ""
        while True:
            page = self._stub.ListRuns(runs_pb2.ListRunsRequest(page_size=1000, page_token=token))
            kept |= {run.id for run in page.runs}
            if not (token := page.next_page_token):
                return kept


def greeted(cluster: Cluster) -> dict[str, int]:
    """How many sessions the control plane has opened for each agent."""
    with closing(sqlite3.connect(f"file:{cluster.folder / 'controlplane' / 'fastflow.db'}?mode=ro", uri=True)) as rows:
        return dict(rows.execute("SELECT name, session_epoch FROM agents"))


def show(found: list[Trend]) -> None:
    """Prints the trends as a table."""
    table = Table("program", "measure", "at half", "at the end", "growth", "allowed", "")
    for trend in found:
        scale, unit = (MIB, " MiB") if trend.measure in ("resident", "disk") else (1, "")
        cells = (f"{value / scale:.2f}{unit}" for value in (trend.first, trend.last, trend.growth, trend.allowed))
        table.add_row(trend.program, trend.measure, *cells, "[green]flat[/]" if trend.flat else "[red]grows[/]")
    Console(width=120).print(table)


def main() -> int:
    """Runs the soak; returns 1 where something is not as it should be."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--reconnects", type=int, default=1_000)
    options.add_argument("--minutes", type=float, default=120.0, help="no run begins later than this")
    options.add_argument("--agents", type=int, default=3)
    options.add_argument("--at-once", type=int, default=6, help="runs under way at a time")
    options.add_argument("--kept", type=int, default=100, help="runs kept of each of two pipelines")
    options.add_argument("--runtime", choices=("process", "docker"), default="process")
    options.add_argument("--folder", type=Path, help="work in this folder, and leave it  [default: a temporary one]")
    wanted = options.parse_args()
    # As Ctrl-C, which does not reach what runs in the background: programs are stopped, folders removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        folder = wanted.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastflow-soak-")))
        cluster = stack.enter_context(
            Cluster(
                folder / "cluster",
                wanted.runtime,
                FASTFLOW_RUN_MAX_COUNT=str(wanted.kept),
                FASTFLOW_LOG_MAX_TOTAL=f"{wanted.kept}k",
                FASTFLOW_RETENTION_INTERVAL="2",
            )
        )
        cluster.add_pipeline("quick", "print('done')\n")
        cluster.add_pipeline("chatty", "for number in range(500):\n    print('line', number, 'x' * 20)\n")
        cluster.controlplane.start()
        cluster.controlplane.wait_for_log("control plane is ready")
        names = [f"worker-{number}" for number in range(1, wanted.agents + 1)]
        wires = {name: stack.enter_context(Wire(cluster.server)) for name in names}
        for name, wire in wires.items():
            cluster.add_agent(
                name,
                FASTFLOW_CONTROLPLANE=wire.address,
                FASTFLOW_RECONNECT_INITIAL="0.1",
                FASTFLOW_RECONNECT_MAXIMUM="1",
                # So that runs spread over all agents.
                FASTFLOW_CPU_CAPACITY=str(max(1, wanted.at_once // wanted.agents)),
            )
        for name in cluster.agents:
            cluster.wait_for_agent(name)
        soak = Soak(cluster, wires, wanted.runs, wanted.reconnects, wanted.minutes)
        soak.go(wanted.at_once)
        faults = list(soak.leftovers())
        reconnects = soak.reconnects
    if reconnects < wanted.reconnects:
        faults.append(f"only {reconnects} of {wanted.reconnects} reconnects in the time there was")
    return report(wanted.runs, soak, reconnects, faults)


def report(wanted: int, soak: Soak, reconnects: int, faults: list[str]) -> int:
    """Prints and writes what came out; returns the exit code."""
    found = trends(soak.samples)
    show(found)
    if soak.done < wanted:
        faults.append(f"only {soak.done} of {wanted} runs in the time there was")
    if failed := {state: count for state, count in soak.states.items() if state != "SUCCEEDED"}:
        faults.append(f"runs that did not succeed: {failed}")
    grown = [f"{trend.program}: {trend.measure} grows" for trend in found if not trend.flat]
    RESULT.parent.mkdir(exist_ok=True)
    figures = {"runs": soak.done, "reconnects": reconnects, "faults": faults + grown}
    rows = {"trends": [asdict(trend) for trend in found], "samples": [asdict(sample) for sample in soak.samples]}
    RESULT.write_text(json.dumps({**figures, **rows}, indent=1))
    seconds = soak.samples[-1].seconds
    print(f"{soak.done} runs, {reconnects} reconnects in {seconds / 60:.1f} min: {'; '.join(faults + grown) or 'flat'}")
    return 1 if faults or grown else 0


if __name__ == "__main__":
    sys.exit(main())
