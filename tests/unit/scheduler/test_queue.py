"""The order in which waiting runs are tried."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.runs.model import WaitingRun
from fastflow_controlplane.scheduler.placement import Shape
from fastflow_controlplane.scheduler.queue import WaitingQueue

SMALL, LARGE = Shape(1000, 1), Shape(9000, 9)
AGING = 1_000


def run(name: str, pipeline: str = "p", *, priority: int = 0, since: int = 0) -> WaitingRun:
    return WaitingRun(name, pipeline, priority, since, Limits(1, 1), "", {})


def drain(queue: WaitingQueue, now: int = 0) -> list[str]:
    order = []
    for waiting, _ in queue.next_runs(now):
        queue.take(waiting.run_id)
        order.append(waiting.run_id)
    return order


def test_runs_of_a_pipeline_keep_their_order() -> None:
    queue = WaitingQueue(AGING)
    for name in ("a", "b", "c"):
        queue.add(run(name), SMALL)
    assert drain(queue) == ["a", "b", "c"]


def test_pipelines_take_turns() -> None:
    queue = WaitingQueue(AGING)
    for number in range(3):
        queue.add(run(f"many {number}", "many"), SMALL)
    queue.add(run("one", "few"), SMALL)
    assert drain(queue) == ["many 0", "one", "many 1", "many 2"]


def test_a_higher_priority_goes_first_and_waiting_makes_up_for_a_lower_one() -> None:
    queue = WaitingQueue(AGING)
    queue.add(run("old", "x", priority=0, since=0), SMALL)
    queue.add(run("urgent", "y", priority=2, since=3 * AGING), SMALL)
    assert next(iter(queue.next_runs(AGING)))[0].run_id == "urgent"
    assert next(iter(queue.next_runs(3 * AGING)))[0].run_id == "old"


def test_a_shape_that_fits_nowhere_does_not_hold_up_others_even_of_its_pipeline() -> None:
    queue = WaitingQueue(AGING)
    queue.add(run("big"), LARGE)
    queue.add(run("small"), SMALL)
    placed = []
    for waiting, shape in queue.next_runs(0):
        if shape == LARGE:
            queue.park(shape)
        else:
            queue.take(waiting.run_id)
            placed.append(waiting.run_id)
    assert placed == ["small"]
    assert drain(queue) == []

    assert not queue.wake(lambda shape: shape == SMALL)
    assert queue.wake(lambda shape: shape == LARGE)
    assert drain(queue) == ["big"]


def test_a_run_that_returns_gets_its_old_place() -> None:
    queue = WaitingQueue(AGING)
    queue.add(run("second", since=2), SMALL)
    queue.add(run("third", since=3), SMALL)
    queue.add(run("first", since=1), SMALL)
    assert drain(queue) == ["first", "second", "third"]


def test_a_cancelled_run_is_gone() -> None:
    queue = WaitingQueue(AGING)
    queue.add(run("a"), SMALL)
    queue.add(run("b"), SMALL)
    queue.remove("a")
    assert "a" not in queue
    assert drain(queue) == ["b"]


def test_parked_runs_cost_nothing_however_many_they_are() -> None:
    def steps(runs: int) -> int:
        queue = WaitingQueue(AGING)
        for number in range(runs):
            queue.add(run(f"{number:05}"), LARGE)
        queue.park(LARGE)
        with counted_steps() as counted:
            assert drain(queue) == []
        return counted()

    assert steps(20_000) == steps(1)


@contextmanager
def counted_steps() -> Iterator[Callable[[], int]]:
    """Counts what the interpreter executes of the queue, which how busy the machine is does not change."""
    steps = 0

    def count(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal steps
        if frame.f_globals["__name__"] != WaitingQueue.__module__:
            return None  # such as what the garbage collector calls
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield lambda: steps
    finally:
        sys.settrace(before)
