"""What troubles the control plane itself, as operators are told."""

import asyncio
from dataclasses import dataclass

import pytest
from fastflow_controlplane.api import health
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.conditions import CHECK_SECONDS, DATABASE_UNAVAILABLE, Conditions, Part, Problem, repeat
from fastflow_controlplane.errors import Unavailable
from grpc_health.v1.health_pb2 import HealthCheckResponse
from structlog.testing import capture_logs

FULL = Problem("DISK_FULL", "the disk is full")


@dataclass
class ScriptedPart:
    """A part that works again at the recheck after `cured`."""

    problem: Problem | None = None
    cured: bool = False

    async def recheck(self) -> None:
        if self.cured:
            self.problem = None


@dataclass
class Told:
    """A health service."""

    statuses: dict[str, int]

    async def set(self, service: str, status: int) -> None:
        self.statuses[service] = status


def test_a_condition_keeps_the_moment_it_began_while_its_words_change() -> None:
    clock, database = ManualClock(), ScriptedPart(FULL)
    conditions = Conditions({Part.DATABASE: database, Part.LOGS: ScriptedPart()}, clock)
    (first,) = conditions.all()
    database.problem = Problem("DATABASE_UNAVAILABLE", "the database does not answer")
    (second,) = conditions.all()
    assert (first.type, first.message, first.blocks_placement) == ("DiskFull", FULL.message, True)
    assert (second.type, second.since) == ("DatabaseUnavailable", first.since)
    database.problem = None
    assert conditions.all() == []


async def test_a_part_that_works_again_is_noticed_though_nobody_uses_it() -> None:
    clock, logs = ManualClock(), ScriptedPart(FULL)
    conditions = Conditions({Part.LOGS: logs}, clock)
    watching = asyncio.create_task(conditions.watch())
    await clock.advance(CHECK_SECONDS)
    assert conditions.changed.is_set()
    conditions.changed.clear()
    await clock.advance(CHECK_SECONDS)
    assert not conditions.changed.is_set()
    logs.cured = True
    await clock.advance(CHECK_SECONDS)
    assert conditions.changed.is_set()
    watching.cancel()


async def test_repeated_work_goes_on_after_a_refusal_which_is_logged_unless_a_condition_tells_of_it() -> None:
    refusals = [
        Unavailable("the disk is full", reason="DISK_FULL"),
        Unavailable("no database answers", reason=DATABASE_UNAVAILABLE),
        Unavailable("try again later"),
    ]
    worked = 0

    async def work() -> None:
        nonlocal worked
        worked += 1
        if refusals:
            raise refusals.pop(0)

    clock = ManualClock()
    with capture_logs() as logged:
        repeating = asyncio.create_task(repeat(clock, 5.0, work, "nothing came of it"))
        await clock.advance(4)
        assert worked == 0
        await clock.advance(16)
    assert worked == 4
    assert logged == [{"event": "nothing came of it", "log_level": "warning", "why": "try again later"}]
    repeating.cancel()


async def test_work_that_is_broken_is_not_repeated() -> None:
    async def work() -> None:
        raise ValueError("a defect")

    clock = ManualClock()
    repeating = asyncio.create_task(repeat(clock, 5.0, work, "nothing came of it"))
    await clock.advance(5)
    with pytest.raises(ValueError, match="a defect"):
        await repeating


async def test_a_service_is_not_serving_while_a_part_it_needs_fails() -> None:
    names = ("fastflow.v1.RunService", "fastflow.v1.AgentService", "fastflow.agent.v1.AgentGatewayService")
    logs, told, clock = ScriptedPart(FULL), Told({}), ManualClock()
    conditions = Conditions({Part.DATABASE: ScriptedPart(), Part.LOGS: logs}, clock)
    telling = asyncio.create_task(health.tell(told, names, conditions))
    await clock.advance(0)
    serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    assert [told.statuses[name] for name in names] == [serving, serving, not_serving]
    logs.cured = True
    await conditions.check()
    await clock.advance(0)
    assert set(told.statuses.values()) == {serving}
    telling.cancel()
