"""Runs that wait: a lane per priority, pipeline and shape; round robin across pipelines; aging; parked shapes.

Runs of one lane fit on the same agents, so only a lane's first run is ever tried. A shape that fits nowhere is parked:
its lanes are not looked at again until something changed that could make it fit. So a decision costs by the number of
lanes that can run, not by the length of the queue.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fastflow_controlplane.runs.model import WaitingRun
from fastflow_controlplane.scheduler.placement import Shape

LaneKey = tuple[int, str, Shape]


@dataclass(slots=True)
class _Lane:
    priority: int
    pipeline: str
    shape: Shape
    runs: OrderedDict[str, WaitingRun] = field(default_factory=OrderedDict)

    @property
    def first(self) -> WaitingRun:
        return next(iter(self.runs.values()))


class WaitingQueue:
    """All waiting runs. `aging_usec` = waiting time that counts as one step of priority, in microseconds."""

    def __init__(self, aging_usec: int) -> None:
        self._aging_usec = aging_usec
        self._lanes: dict[LaneKey, _Lane] = {}
        self._lane_of: dict[str, LaneKey] = {}
        self._parked: set[Shape] = set()
        self._served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._lane_of)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._lane_of

    def add(self, run: WaitingRun, shape: Shape) -> None:
        """Lets a run wait; it keeps its place among runs of its lane that came with it or later."""
        key = (run.priority, run.pipeline, shape)
        lane = self._lanes.setdefault(key, _Lane(*key))
        returning = bool(lane.runs) and (run.queue_time, run.run_id) < _age(next(reversed(lane.runs.values())))
        lane.runs[run.run_id] = run
        if returning:
            lane.runs = OrderedDict(sorted(lane.runs.items(), key=lambda item: _age(item[1])))
        self._lane_of[run.run_id] = key

    def remove(self, run_id: str) -> WaitingRun | None:
        """Takes a run out; None = it was not waiting."""
        key = self._lane_of.pop(run_id, None)
        if key is None:
            return None
        lane = self._lanes[key]
        run = lane.runs.pop(run_id)
        if not lane.runs:
            del self._lanes[key]
        return run

    def find(self, run_id: str) -> tuple[WaitingRun, Shape] | None:
        """Returns a waiting run with its shape."""
        key = self._lane_of.get(run_id)
        return None if key is None else (self._lanes[key].runs[run_id], key[2])

    def next_runs(self, now: int) -> Iterator[tuple[WaitingRun, Shape]]:
        """Gives runs in the order they are to be placed; `now` is microseconds UTC.

        After each the caller takes it out (`take`) or parks its shape (`park`); a run that is left as it is ends its
        lane for this time.
        """
        ready = ((key, lane) for key, lane in self._lanes.items() if lane.shape not in self._parked)
        entries = [(self._rank(lane, now), number, key) for number, (key, lane) in enumerate(ready)]
        heapq.heapify(entries)
        while entries:
            rank, number, key = heapq.heappop(entries)
            lane = self._lanes.get(key)
            if lane is None or lane.shape in self._parked:
                continue
            fresh = self._rank(lane, now)
            if fresh != rank:
                heapq.heappush(entries, (fresh, number, key))
                continue
            first = lane.first
            yield first, lane.shape
            if key in self._lanes and first.run_id not in self._lane_of:
                heapq.heappush(entries, (self._rank(lane, now), number, key))

    def take(self, run_id: str) -> None:
        """Takes out a run that was placed; its pipeline goes to the end of the round."""
        run = self.remove(run_id)
        if run is not None:
            self._turn += 1
            self._served[run.pipeline] = self._turn

    def park(self, shape: Shape) -> None:
        """Leaves all runs of this shape alone until `wake`."""
        self._parked.add(shape)

    def wake(self, may_fit: Callable[[Shape], bool]) -> bool:
        """Looks again at parked shapes that may fit now; returns whether there were any."""
        woken = {shape for shape in self._parked if may_fit(shape)}
        self._parked -= woken
        waiting = {shape for _, _, shape in self._lanes}
        self._parked &= waiting
        return bool(woken)

    def _rank(self, lane: _Lane, now: int) -> tuple[int, int, int]:
        first = lane.first
        aged = lane.priority + max(0, now - first.queue_time) // self._aging_usec
        return (-aged, self._served.get(lane.pipeline, 0), first.queue_time)


def _age(run: WaitingRun) -> tuple[int, str]:
    return run.queue_time, run.run_id
