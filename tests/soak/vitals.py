"""What a program and its data folder hold, seen from outside: /proc and the file system."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

MIB = 1024 * 1024
BLOCK = 512
"""Bytes of `st_blocks`; see stat(2)."""


@dataclass(frozen=True)
class Bound:
    """How much a measure may grow, by its fitted line, over the second half of the runs: `noise` + runs * `per_run`."""

    unit: str
    noise: float
    per_run: float
    reason: str


BOUNDS = {
    "resident": Bound(
        "B",
        3 * MIB,
        512,
        "arenas and SQLite's page caches (2 MB per connection) fill late; a leak is an object or more per run",
    ),
    "descriptors": Bound("", 4, 0, "those of runs and connections under way"),
    "threads": Bound("", 2, 0, "pools are filled when warm"),
    "disk": Bound("B", 6 * MIB, 0, "SQLite's write-ahead log, reserved journals and spools of runs under way"),
    "files": Bound("", 120, 0, "folders of runs under way, and what was not removed since the last look"),
}
"""By measure."""


@dataclass(frozen=True)
class Sample:
    """One look at one program, after so many `runs` had ended."""

    program: str
    runs: int
    seconds: float
    resident: int
    descriptors: int
    threads: int
    disk: int
    files: int


@dataclass(frozen=True)
class Trend:
    """How a measure of a program went over the second half: from `first` to `last` on the fitted line."""

    program: str
    measure: str
    first: float
    last: float
    runs: int

    @property
    def growth(self) -> float:
        """By how much the line rose."""
        return self.last - self.first

    @property
    def allowed(self) -> float:
        """The most it may rise."""
        bound = BOUNDS[self.measure]
        return bound.noise + bound.per_run * self.runs

    @property
    def flat(self) -> bool:
        """Whether it stayed within its bound."""
        return self.growth <= self.allowed


def look(program: str, pid: int, data_dir: Path, runs: int, seconds: float) -> Sample:
    """Looks at a living program."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    disk, files = held(data_dir)
    return Sample(
        program=program,
        runs=runs,
        seconds=seconds,
        resident=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
        disk=disk,
        files=files,
    )


def held(folder: Path) -> tuple[int, int]:
    """Returns bytes on disk and number of files and folders below `folder`; what goes meanwhile does not count."""
    size = count = 0
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return 0, 0
    for entry in entries:
        try:
            size += entry.stat(follow_symlinks=False).st_blocks * BLOCK
        except FileNotFoundError:
            continue
        count += 1
        if entry.is_dir(follow_symlinks=False):
            more = held(Path(entry.path))
            size, count = size + more[0], count + more[1]
    return size, count


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Fits a line through the second half, by runs, of each measure of each program."""
    found = []
    for program in dict.fromkeys(sample.program for sample in samples):
        mine = [sample for sample in samples if sample.program == program]
        half = [sample for sample in mine if sample.runs >= mine[-1].runs / 2]
        at = [sample.runs for sample in half]
        for measure in BOUNDS:
            line = linear_regression(at, [getattr(sample, measure) for sample in half])
            first, last = (line.intercept + line.slope * runs for runs in (at[0], at[-1]))
            found.append(Trend(program, measure, first, last, at[-1] - at[0]))
    return found
