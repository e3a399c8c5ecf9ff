"""`make bench`: measures Fast-Flow beside its yardsticks, prints a table and writes build/bench.json."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from fastflow.v1 import logs_pb2, logs_pb2_grpc, runs_pb2, runs_pb2_grpc

from tests.bench.bare import Bare
from tests.bench.disk import disk
from tests.bench.figures import Figure, print_table, write_json
from tests.bench.recovery import recovery
from tests.bench.sync import sync
from tests.cluster import Cluster, Program
from tests.cluster.preheat import wait_for_environment

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
STARTS = 15
NOOPS = 40
AT_ONCE = 4
LINE = b"x" * 99 + b"\n"
LINES = 3_000_000
LOG_PASSES = 3
PASSES = 3
LIVE = 20
IDLE_SECONDS = 20.0
UP_PASSES = 5

CLOCK = "import time\nprint(repr(time.time()))\n"
FRAMES = f"import pandas, requests\n{CLOCK}"
PRINTER = f"line = {LINE[:-1].decode()!r}\nfor _ in range({LINES}):\n    print(line)\n"
SLEEPER = "import time\nprint('up')\ntime.sleep(600)\n"
LIMITS = {"cpu_hard_limit": 1.0, "mem_hard_limit": "256m"}


class Bench:
    """One cluster with a Docker agent, and what is measured on it."""

    def __init__(self, cluster: Cluster, image: str, folder: Path) -> None:
        self._cluster = cluster
        self._image = image
        self._folder = folder
        # Output of full speed is collected by the programs under test alone, so plain blocking calls serve here.
        channel = grpc.insecure_channel(cluster.server)
        self._runs = runs_pb2_grpc.RunServiceStub(channel)
        self._logs = logs_pb2_grpc.LogServiceStub(channel)

    def starts(self) -> list[Figure]:
        """Submit to first user byte and to the terminal state, in turns with a bare `docker run`."""
        ours, theirs = self._in_turns("clock", self._bare("clock", CLOCK))
        return [
            Figure(title, _median(ours, part), "s", 1.15, _median(theirs, part), "bare docker run")
            for part, title in enumerate(("submit to first user byte", "submit to terminal state"))
        ]

    def packages(self) -> list[Figure]:
        """The same with packages: the first runs after the agent prepared them ahead, and later ones."""
        firsts = []
        for number in range(PASSES):
            name = f"frames-{number}"
            requirements = f"pandas\nrequests\n# an environment of its own: {number}\n"
            code = self._cluster.add_pipeline(name, FRAMES, pipeline=LIMITS, requirements=requirements)
            wait_for_environment(self._cluster, name, "READY")
            firsts.append(self._time(name))
        bare = self._beside(code, options="--with-requirements requirements.txt")
        ours, theirs = self._in_turns(name, bare)
        warm = _median(ours, 0)
        title = "pandas and requests: submit to first user byte"
        return [
            Figure(title, warm, "s", 1.15, _median(theirs, 0), "bare docker run"),
            Figure("the same, first run after the sync", _median(firsts, 0), "s", 1.15, warm, "warm run"),
        ]

    def _in_turns(self, name: str, bare: Bare) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """First byte and end of runs of a pipeline that prints the time, ours and bare ones."""
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for number in range(-1, STARTS):
            mine = self._time(name)
            began, seconds, log = bare.docker_run(number + 1)
            if number >= 0:  # the first pair warms caches
                ours.append(mine)
                theirs.append((float(log.read_text()) - began, seconds))
        return ours, theirs

    def _time(self, name: str) -> tuple[float, float]:
        begun = time.time()
        run = self._submit(name)
        self._watch(run)
        ended = time.time()
        return float(self._log(run)) - begun, ended - begun

    def throughput(self) -> Figure:
        """No-op containers, four at a time, against a loop of the Docker SDK."""
        bare = self._bare("noop", "pass\n")
        self._finish(self._submit("noop"))
        rates, yardsticks = [], []
        for number in range(-1, PASSES):
            begun = time.monotonic()
            for run in [self._submit("noop") for _ in range(NOOPS)]:
                self._watch(run)
            mine = NOOPS / (time.monotonic() - begun)
            other = bare.sdk_loop(NOOPS, AT_ONCE)
            bare = self._bare("noop", "pass\n")
            if number >= 0:  # the first pair opens connections and warms caches
                rates.append(mine)
                yardsticks.append(other)
        return Figure(
            f"{NOOPS} no-op containers, {AT_ONCE} at a time",
            *(statistics.median(rates), "runs/s", 0.95, statistics.median(yardsticks), "Docker SDK loop"),
            smaller_is_better=False,
        )

    def log_volume(self) -> Figure:
        """A run printing 300 MB, until its log is stored whole, against writing to a bind-mounted file."""
        bare = self._bare("printer", PRINTER)
        ours, theirs = [], []
        for number in range(LOG_PASSES):
            begun = time.time()
            run = self._submit("printer")
            self._finish(run)
            ours.append(time.time() - begun)
            _check_stored(self._cluster.folder, run)
            _, seconds, log = bare.docker_run(number)
            theirs.append(seconds)
            assert log.stat().st_size == LINES * len(LINE)
            log.unlink()
        return Figure(
            "printing 300 MB of 100-byte lines, until stored",
            *(statistics.median(ours), "s", 1.3, statistics.median(theirs), "file alone"),
        )

    def footprint(self) -> Iterator[Figure]:
        """Memory and CPU of both programs: idle, and the agent's with 20 live containers."""
        plane, agent = self._cluster.controlplane, self._cluster.agent
        before = plane.cpu_seconds(), agent.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        yield Figure("control plane, idle memory", plane.resident_bytes() / MIB, "MiB", 120)
        yield Figure("control plane, idle CPU", _share(plane, before[0]), "% of a core", 1)
        yield Figure("agent, idle CPU", _share(agent, before[1]), "% of a core", 1)
        limits = {"cpu_hard_limit": 0.05, "mem_hard_limit": "64m"}
        self._cluster.add_pipeline("sleeper", SLEEPER, pipeline=limits)
        runs = [self._submit("sleeper") for _ in range(LIVE)]
        for run in runs:
            self._cluster.wait_for_log(run, b"up", timeout=120)
        used = agent.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        yield Figure(f"agent, memory with {LIVE} live containers", agent.resident_bytes() / MIB, "MiB", 90)
        yield Figure(f"agent, CPU with {LIVE} quiet containers", _share(agent, used), "% of a core", 5)
        for run in runs:
            self._runs.CancelRun(runs_pb2.CancelRunRequest(id=run))
        for run in runs:
            self._finish(run)

    def _bare(self, name: str, main: str) -> Bare:
        code = self._cluster.add_pipeline(name, main, pipeline=LIMITS)
        self._finish(self._submit(name))
        return self._beside(code)

    def _beside(self, code: Path, options: str = "") -> Bare:
        generations = (self._cluster.folder / "worker-1" / "uv" / "generations").iterdir()
        newest = max(generations, key=lambda path: int(path.name))
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return Bare(self._image, code, newest, folder, cpus=1.0, memory=256 * MIB, options=options)

    def _submit(self, pipeline: str) -> str:
        return str(self._runs.CreateRun(runs_pb2.CreateRunRequest(pipeline=pipeline)).run.id)

    def _watch(self, run: str) -> runs_pb2.Run:
        """Returns at the terminal state."""
        last = runs_pb2.Run()
        for response in self._runs.WatchRun(runs_pb2.WatchRunRequest(id=run)):
            last = response.run
        return last

    def _finish(self, run: str) -> None:
        """Returns once the run is terminal and its log is stored whole."""
        self._watch(run)
        while not all(attempt.log_sealed for attempt in self._get(run).attempts):
            time.sleep(0.01)

    def _get(self, run: str) -> runs_pb2.Run:
        return self._runs.GetRun(runs_pb2.GetRunRequest(id=run)).run

    def _log(self, run: str) -> bytes:
        request = logs_pb2.ReadLogRequest(run_id=run, follow=True)
        return b"".join(response.data for response in self._logs.ReadLog(request))


def up() -> Figure:
    """From `ffctl up` to an agent that takes runs."""
    passes = []
    for _ in range(UP_PASSES):
        with (
            tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder,
            Cluster(Path(folder) / "cluster", "docker") as cluster,
        ):
            listen = ["--listen", cluster.server, "--data", f"{folder}/data", "--pipelines", str(cluster.pipelines)]
            program = Program(["ffctl", "up", *listen], Path(folder) / "up.log", {})
            begun = time.monotonic()
            program.start()
            program.wait_for_log("Fast-Flow is ready")
            passes.append(time.monotonic() - begun)
            program.stop()
    return Figure("ffctl up to ready", statistics.median(passes), "s", 2)


def _median(pairs: list[tuple[float, float]], part: int) -> float:
    return statistics.median(pair[part] for pair in pairs)


def _share(program: Program, before: float) -> float:
    return 100 * (program.cpu_seconds() - before) / IDLE_SECONDS


def _check_stored(folder: Path, run: str) -> None:
    """Compares the stored log with what was printed, byte for byte."""
    (stored,) = (folder / "controlplane" / "logs").rglob(f"{run}/*.log")
    block = LINE * 10_000
    with stored.open("rb") as log:
        for _ in range(LINES // 10_000):
            assert log.read(len(block)) == block, "the stored log differs from what was printed"
        assert log.read(1) == b"", "the stored log is longer than what was printed"


def main() -> int:
    """Runs the measures named on the command line, or all; exits with 0 whatever they show."""
    image = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "runner" / "build"), "--print-tag"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    measures: dict[str, Callable[[Bench], list[Figure]]] = {
        "starts": lambda bench: bench.starts(),
        "packages": lambda bench: bench.packages(),
        "throughput": lambda bench: [bench.throughput()],
        "logs": lambda bench: [bench.log_volume()],
        "footprint": lambda bench: list(bench.footprint()),
        "up": lambda bench: [up()],
        "sync": lambda bench: [sync()],
        "disk": lambda bench: [disk()],
        "recovery": lambda bench: recovery(),
    }
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("measure", nargs="*", choices=[*measures, []], help="what to measure (default: all)")
    chosen = parser.parse_args().measure or list(measures)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder:
        for name in chosen:
            # A fresh cluster each: no measure feels what another left in memory or caches.
            with Cluster(Path(folder) / name, "docker") as cluster:
                slots = str(LIVE if name == "footprint" else AT_ONCE)
                # Runs of a core each: the slots are to be what bounds them, as threads bound the yardstick.
                cluster.start(FASTFLOW_IMAGE=image, FASTFLOW_SLOTS=slots, FASTFLOW_CPU_CAPACITY=slots)
                figures += measures[name](Bench(cluster, image, Path(folder)))
    print_table(figures)
    write_json(figures, ROOT / "build" / "bench.json")
    print(f"{os.cpu_count()} cores; figures in build/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
