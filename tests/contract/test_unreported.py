"""Ended attempts whose agent no longer knows of them hold their capacity until nothing can be left of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastflow.protocol import REPORTS_STRAYS
from fastflow_controlplane.agents.assignments import Assignments, Delivery
from fastflow_controlplane.agents.model import Capacity
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.unreported import STRAY_STOP_SECONDS, Unreported
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.logs.files import FileLogStore
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.scheduler.loop import Scheduler
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.agents import NOTHING_HELD, AgentRow, read_holds

from tests.contract.rows import GIB, Journal, Rows
from tests.unit.agents.streams import NoSecrets

GRACE = 300.0
OLD = REPORTS_STRAYS - 1
TAKEN, FREE = Capacity(1000, GIB, 1), Capacity()


@dataclass
class Plane:
    """The part of a control plane that tells agents what to do."""

    rows: Rows
    clock: ManualClock
    logs: FileLogStore
    unreported: Unreported
    assignments: Assignments

    async def told(self, agent: AgentRow, protocol: int, *reported: AttemptKey) -> list[Delivery]:
        """The full set for a new session of the agent."""
        deliveries = await self.assignments.all(agent.facts.agent_id, reported, protocol)
        return list(deliveries.attempts)

    async def reserved(self, agent: AgentRow) -> Capacity:
        """What the agent's attempts hold, as it is shown."""
        agent_id = agent.facts.agent_id
        holds = await self.rows.store.read(lambda connection: read_holds(connection, [agent_id]))
        return holds.get(agent_id, NOTHING_HELD).reserved


@pytest.fixture
async def plane(store: Store, tmp_path: Path) -> AsyncIterator[Plane]:
    clock, changes, settings = ManualClock(), Changes(), ControlPlaneSettings(data_dir=tmp_path)
    scheduler = Scheduler(clock, changes, 5.0, 300.0)
    registry = AgentRegistry(store, clock, settings, scheduler)
    logs = FileLogStore(tmp_path / "logs")
    unreported = Unreported(store, clock, logs, changes, scheduler, registry, GRACE)
    assignments = Assignments(store, clock, NoSecrets(), logs, changes, scheduler, registry, unreported, 1, 10.0)
    yield Plane(Rows(store), clock, logs, unreported, assignments)
    await logs.aclose()


async def lost(plane: Plane) -> tuple[AgentRow, AttemptKey, Journal]:
    """An attempt that was running when its agent went away, and was declared LOST."""
    agent, (journal,) = await lose(plane, 1)
    return agent, journal.key, journal


async def lose(plane: Plane, count: int) -> tuple[AgentRow, list[Journal]]:
    """Some attempts that were running when their agent went away, and were declared LOST."""
    agent = await plane.rows.agent()
    journals = []
    for _ in range(count):
        key = await plane.rows.assign(await plane.rows.run(), agent)
        assert key is not None
        journals.append(Journal(key))
    await plane.rows.apply(agent, [journal.moved(RunState.RUNNING) for journal in journals])
    await plane.rows.lose(agent)
    return await plane.rows.agent(), journals


async def test_a_lost_attempt_holds_its_capacity_until_its_agent_reports_that_nothing_is_left(plane: Plane) -> None:
    agent, key, journal = await lost(plane)
    for _ in range(2):
        (told,) = await plane.told(agent, REPORTS_STRAYS)
        assert (told.key, told.action, told.known_seq, told.ended) == (key, "STOP", 1, True)
        assert await plane.reserved(agent) == TAKEN
        await plane.clock.advance(10 * GRACE)
        await plane.unreported.check()
    attempt = await plane.rows.newest(key.run_id)
    assert (attempt.log_sealed, len(attempt.log_losses), attempt.released) == (True, 1, False)

    gone = await plane.rows.apply(agent, [journal.gone()])
    assert (gone.released, gone.desired_changed) == ([key], True)
    assert await plane.reserved(agent) == FREE
    assert await plane.rows.desired(agent) == {key: "FORGET"}
    assert (await plane.rows.newest(key.run_id)).late_result is None


async def test_what_an_agent_does_not_know_any_more_holds_its_capacity_though_it_said_so_before_it_died_again(
    plane: Plane,
) -> None:
    agent, key = await plane.rows.assigned()
    journal = Journal(key)
    await plane.rows.apply(agent, [journal.moved(RunState.RUNNING)])
    agent = await plane.rows.agent()
    (told,) = await plane.told(agent, REPORTS_STRAYS)
    assert (told.action, told.known_seq, told.ended) == ("RUN", 1, False)
    await plane.rows.apply(agent, [journal.ended(RunState.FAILED, Reason.STATE_LOST, None)])
    assert await plane.reserved(agent) == TAKEN

    again = await plane.rows.agent()
    (told,) = await plane.told(again, REPORTS_STRAYS)
    assert (told.known_seq, told.ended) == (2, True)
    assert await plane.reserved(again) == TAKEN
    await plane.rows.apply(again, [journal.gone()])
    assert await plane.reserved(again) == FREE


async def test_an_attempt_whose_container_went_is_forgotten_as_soon_as_its_log_is_closed(plane: Plane) -> None:
    agent, key = await plane.rows.assigned()
    journal = Journal(key)
    await plane.rows.apply(agent, [journal.moved(RunState.RUNNING), journal.ended(RunState.SUCCEEDED), journal.gone()])
    async with plane.logs.open(LogKey(key.run_id, key.attempt)) as log:
        await log.append(0, [b"half of it"])
    assert await plane.told(agent, REPORTS_STRAYS) == []
    attempt = await plane.rows.newest(key.run_id)
    assert (attempt.log_sealed, attempt.log_bytes, len(attempt.log_losses)) == (True, 10, 1)
    assert await plane.rows.desired(agent) == {key: "FORGET"}


async def test_an_agent_that_can_not_report_it_holds_capacity_no_longer_than_it_leaves_strays_alive(
    plane: Plane,
) -> None:
    agent, key, _ = await lost(plane)
    assert await plane.told(agent, OLD) == []
    await plane.clock.advance(GRACE)
    # It comes and goes, which gives it no more time.
    agent = await plane.rows.agent()
    assert await plane.told(agent, OLD) == []
    await plane.unreported.check()
    assert await plane.reserved(agent) == TAKEN
    await plane.clock.advance(STRAY_STOP_SECONDS)
    await plane.unreported.check()
    assert await plane.reserved(agent) == FREE
    assert (await plane.rows.newest(key.run_id)).released
    assert await plane.rows.desired(agent) == {key: "FORGET"}


async def test_strays_of_an_agent_have_the_time_in_which_it_removes_them_one_after_the_other(plane: Plane) -> None:
    agent, _ = await lose(plane, 3)
    assert await plane.told(agent, OLD) == []
    await plane.clock.advance(GRACE + 2 * STRAY_STOP_SECONDS)
    await plane.unreported.check()
    assert (await plane.reserved(agent)).slots == 3
    await plane.clock.advance(STRAY_STOP_SECONDS)
    await plane.unreported.check()
    assert await plane.reserved(agent) == FREE


async def test_what_an_agent_reports_after_all_is_not_taken_for_gone(plane: Plane) -> None:
    agent, key, journal = await lost(plane)
    assert await plane.told(agent, OLD) == []
    agent = await plane.rows.agent()
    (told,) = await plane.told(agent, OLD, key)
    assert told.key == key
    await plane.clock.advance(10 * GRACE)
    await plane.unreported.check()
    assert await plane.reserved(agent) == TAKEN
    await plane.rows.apply(agent, [journal.gone()])
    assert await plane.reserved(agent) == FREE


async def test_what_an_agent_reports_while_others_are_freed_is_not_taken_for_gone(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, journals = await lose(plane, 2)
    keys = [journal.key for journal in journals]
    assert await plane.told(agent, OLD) == []
    await plane.clock.advance(10 * GRACE)
    store, write = plane.rows.store, plane.rows.store.write

    async def write_one(operation: Any, committed: Any = None) -> Any:
        monkeypatch.setattr(store, "write", write)
        result = await write(operation, committed)
        await plane.told(agent, OLD, *keys)
        return result

    monkeypatch.setattr(store, "write", write_one)
    await plane.unreported.check()
    assert [(await plane.rows.newest(key.run_id)).released for key in keys].count(True) == 1


async def test_an_agent_that_was_upgraded_meanwhile_is_waited_for(plane: Plane) -> None:
    agent, key, journal = await lost(plane)
    assert await plane.told(agent, OLD) == []
    agent = await plane.rows.agent()
    (told,) = await plane.told(agent, REPORTS_STRAYS)
    assert (told.key, told.ended) == (key, True)
    await plane.clock.advance(10 * GRACE)
    await plane.unreported.check()
    assert await plane.reserved(agent) == TAKEN
    await plane.rows.apply(agent, [journal.gone()])
    assert await plane.reserved(agent) == FREE


async def test_what_the_agent_reported_is_told_as_ever(plane: Plane) -> None:
    agent, key, _ = await lost(plane)
    for protocol in (OLD, REPORTS_STRAYS):
        (told,) = await plane.told(agent, protocol, key)
        assert (told.action, told.ended) == ("STOP", False)
    assert not (await plane.rows.newest(key.run_id)).log_sealed
