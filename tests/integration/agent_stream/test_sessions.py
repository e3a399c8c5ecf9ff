"""Streams that begin, break, return and are refused, and agents that are away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.v1 import (
    agents_pb2,
    runs_pb2,
)
from fastflow_controlplane.logs.files import log_file

from tests.integration.agent_stream.plane import FORGET, ORPHAN, RUN, STOP, Agent, ControlPlane, Start, until
from tests.integration.agent_stream.scripted_agent import Journal, ScriptedAgent, state_of
from tests.trees import files_below


async def test_a_reconnect_needs_no_replay(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create()
    key = (await stream.assignment()).key
    journal = Journal(key)
    await stream.report([journal.moved("PREPARING"), journal.moved("RUNNING")])
    await agent.upload(key, b"some output\n", seal=False)
    assert (await plane.run(run.id)).attempts[0].log_bytes == len(b"some output\n")
    await stream.close()

    again = await agent.connect([journal.inventory("RUNNING", 2)])
    (attempt,) = again.full
    assert (attempt.key, attempt.action) == (key, RUN)
    assert (attempt.known_seq, attempt.durable_log_offset) == (2, len(b"some output\n"))
    await again.report([journal.ended()])
    assert state_of(await plane.run(run.id)) == "SUCCEEDED"


async def test_an_agent_that_flaps_leaves_no_task_behind(plane: ControlPlane, agent: ScriptedAgent) -> None:
    await (await agent.connect()).close()
    for _ in range(30):
        await (await agent.connect()).close()
    for _ in range(10):
        await (await agent.open()).close()

    async def none_is_left() -> bool:
        return not any(task.get_name().startswith("agent stream") for task in asyncio.all_tasks())

    await until(none_is_left)
    assert (await plane.agent()).session_epoch >= 31


async def test_a_restart_of_the_control_plane_loses_nothing(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    first = await stream.assignment()
    waiting = await plane.create(environment={"NOT": "lost"})
    second = await stream.assignment()
    journal = Journal(first.key)
    await stream.report([journal.moved("RUNNING")])
    await plane.stop()
    await stream.ended()
    ended = journal.ended("FAILED", exit_code=3)

    await plane.start()
    again = await agent.connect([journal.inventory("FAILED", 2), Journal(second.key).inventory("ASSIGNED", 0)])
    assert again.session_epoch == stream.session_epoch + 1
    assert again.revision >= stream.revision
    delivered = {attempt.key.run_id: attempt for attempt in again.full}
    assert delivered[run.id].known_seq == 1
    assert delivered[waiting.id].spec == second.spec
    await again.report([ended])
    assert (state_of(await plane.run(run.id)), (await plane.run(run.id)).exit_code) == ("FAILED", 3)


async def test_runs_wait_over_a_restart_and_are_placed_after_it(plane: ControlPlane, agent: ScriptedAgent) -> None:
    run = await plane.create()
    await plane.stop()
    await plane.start()
    stream = await agent.connect()
    # Placed at once: with the full set or right after it.
    assignment = stream.full[0] if stream.full else await stream.assignment()
    assert (assignment.action, assignment.key.run_id) == (RUN, run.id)


async def test_a_restarted_agent_takes_over_from_a_stream_that_is_silent_and_writes_nothing_any_more(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    agent.answers_probes = False
    old = await agent.connect()
    run = await plane.create()
    journal = Journal((await old.assignment()).key)
    agent.instance_id = "another process"
    new = await agent.connect([journal.inventory("ASSIGNED", 0)])
    assert (await old.rejected()).code == gateway_pb2.REJECTION_CODE_SUPERSEDED
    assert [attempt.action for attempt in new.full] == [RUN]
    assert (await plane.agent()).session_epoch == new.session_epoch
    await new.report([journal.moved("RUNNING")])
    assert state_of(await plane.run(run.id)) == "RUNNING"


async def test_each_attempt_of_the_inventory_is_answered(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    await plane.create()
    known = Journal((await stream.assignment()).key)
    await stream.close()
    unknown = Journal(attempts_pb2.AttemptKey(run_id="01890000-0000-7000-8000-000000000001", attempt=1))
    forged = Journal(attempts_pb2.AttemptKey(run_id=known.key.run_id, attempt=1, claim_token="forged"))
    again = await agent.connect([journal.inventory("RUNNING", 5) for journal in (known, unknown, forged)])
    answers = {(attempt.key.run_id, attempt.key.claim_token): attempt.action for attempt in again.full}
    assert answers == {
        (known.key.run_id, known.key.claim_token): RUN,
        (unknown.key.run_id, ""): ORPHAN,
        (known.key.run_id, "forged"): ORPHAN,
    }


@pytest.mark.parametrize("protocol", [1, 2])
async def test_an_ended_attempt_that_its_agent_no_longer_has_is_closed_and_freed_once_nothing_of_it_is_left(
    plane: ControlPlane, agent: ScriptedAgent, protocol: int
) -> None:
    agent.protocol = protocol
    stream = await agent.connect()
    run = await plane.create()
    journal = Journal((await stream.assignment()).key)
    await agent.upload(journal.key, b"half of it", seal=False)
    await stream.report([journal.moved("RUNNING"), journal.ended()])
    assert (await plane.agent()).reserved.slots == 1
    await stream.close()
    again = await agent.connect()
    attempt = (await plane.run(run.id)).attempts[0]
    assert (attempt.released, attempt.log_sealed, attempt.log_bytes) == (False, True, len(b"half of it"))
    assert len(attempt.log_losses) == 1
    assert (await plane.agent()).reserved.slots == 1
    if protocol == 1:
        # It would report an end of its own: it is given time instead.
        assert again.full == []
        return
    (asked,) = again.full
    assert (asked.key, asked.ended, asked.known_seq) == (journal.key, True, 2)
    await again.report([journal.gone()])
    assert (await plane.agent()).reserved.slots == 0
    (forgotten,) = (await again.desired()).attempts
    assert (forgotten.key, forgotten.action) == (journal.key, FORGET)


async def test_a_retry_goes_elsewhere_once_the_agent_that_has_its_lost_attempt_is_removed(
    plane: ControlPlane, agent: ScriptedAgent, agent_of: Agent
) -> None:
    plane.pipeline("retried", '{"retry_on": ["lost"]}')
    stream = await agent.connect()
    run = await plane.create("retried")
    key = (await stream.assignment()).key
    await stream.report([Journal(key).moved("RUNNING")])
    await plane.runs.AbandonRun(runs_pb2.AbandonRunRequest(id=run.id))
    (stopped,) = (await stream.desired()).attempts
    assert (stopped.key, stopped.action) == (key, STOP)
    (waits,) = (await plane.run(run.id)).placements
    assert "is being stopped there first" in waits.explanation

    await stream.close()

    async def away() -> bool:
        return (await plane.agent()).state == agents_pb2.AGENT_STATE_SUSPECT

    await until(away)
    await plane.agents.RemoveAgent(agents_pb2.RemoveAgentRequest(name="worker-1"))
    other = await (await agent_of("worker-2")).connect()
    assignment = other.full[0] if other.full else await other.assignment()
    assert (assignment.key.run_id, assignment.key.attempt) == (run.id, 2)


async def test_a_log_that_retention_removed_does_not_come_back_with_its_agent(start: Start, tmp_path: Path) -> None:
    plane = await start(log_max_total="1", retention_interval=0.1)
    logs = tmp_path / "data" / "logs"
    async with ScriptedAgent(plane.address) as agent:
        stream = await agent.connect()
        run = await plane.create()
        key = (await stream.assignment()).key
        await stream.report([Journal(key).moved("RUNNING")])
        await plane.runs.AbandonRun(runs_pb2.AbandonRunRequest(id=run.id))
        await stream.close()

        async def away() -> bool:
            return (await plane.agent()).state == agents_pb2.AGENT_STATE_SUSPECT

        await until(away)
        await plane.agents.RemoveAgent(agents_pb2.RemoveAgentRequest(name="worker-1"))
        log = log_file(logs, run.id, 1)
        log.parent.mkdir(parents=True)
        log.write_bytes(b"what it said\n")
        await plane.create()

        async def removed() -> bool:
            return (await plane.run(run.id)).attempts[0].log_removed_by == "log_max_total"

        await until(removed)
        await agent.connect()
        attempt = (await plane.run(run.id)).attempts[0]
        assert (attempt.log_bytes, [*attempt.log_losses]) == (13, [])
        assert list(files_below(logs)) == []


async def test_a_large_desired_set_comes_in_pages(start: Start) -> None:
    # On a busy machine this takes longer than an agent may be silent.
    plane = await start(heartbeat_interval=60.0)
    async with ScriptedAgent(plane.address, "large", cpu=1_000_000, memory=10**15) as large:
        stream = await large.connect()
        runs = [await plane.create() for _ in range(250)]
        seen = set[str]()
        while len(seen) < len(runs):
            seen |= {attempt.key.run_id for attempt in (await stream.desired()).attempts}
        await stream.close()
        again = await large.connect()
        assert {attempt.key.run_id for attempt in again.full} == {run.id for run in runs} == seen


async def test_a_silent_agent_becomes_suspect_then_offline_and_its_run_lost(start: Start) -> None:
    plane = await start(
        heartbeat_interval=1.0, suspect_after=3, silent_after=4, offline_after=0.3, lost_after=0.5, recovery_window=0
    )
    async with ScriptedAgent(plane.address) as agent:
        stream = await agent.connect()
        run = await plane.create()
        journal = Journal((await stream.assignment()).key)
        await stream.report([journal.moved("RUNNING")])
        watch = plane.runs.WatchRun(runs_pb2.WatchRunRequest(id=run.id))
        await stream.ended()
        assert (await plane.agent()).state in (agents_pb2.AGENT_STATE_OFFLINE, agents_pb2.AGENT_STATE_SUSPECT)
        states = [state_of(answer.run) async for answer in watch]
        assert (states[0], states[-1]) == ("RUNNING", "LOST")

        late = await agent.connect([journal.inventory("RUNNING", 1)])
        (attempt,) = late.full
        assert (attempt.action, attempt.stop_cause) == (STOP, desired_pb2.STOP_CAUSE_SUPERSEDED)
        (ack,) = await late.report([journal.ended()])
        assert ack.rejection == attempts_pb2.EVENT_REJECTION_ALREADY_TERMINAL
        assert state_of(await plane.run(run.id)) == "LOST"
        assert (await plane.agent()).reserved.slots == 1
        await late.report([journal.gone()])
        assert (await plane.agent()).reserved.slots == 0


async def test_no_run_is_lost_within_the_recovery_window_after_a_restart(start: Start) -> None:
    plane = await start(offline_after=0.1, lost_after=0.1, recovery_window=30.0)
    async with ScriptedAgent(plane.address) as agent:
        stream = await agent.connect()
        run = await plane.create()
        journal = Journal((await stream.assignment()).key)
        await stream.report([journal.moved("RUNNING")])
        await plane.stop()
        await plane.start()
        await asyncio.sleep(2.5)  # two rounds of the reaper, far beyond lost_after
        assert state_of(await plane.run(run.id)) == "RUNNING"
        again = await agent.connect([journal.inventory("RUNNING", 1)])
        await again.report([journal.ended()])
        assert state_of(await plane.run(run.id)) == "SUCCEEDED"


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"protocol_min": 7, "protocol_max": 9}, gateway_pb2.REJECTION_CODE_PROTOCOL, "the control plane is too old"),
        ({"agent_id": ""}, gateway_pb2.REJECTION_CODE_BAD_REQUEST, "agent_id"),
        ({"agent_name": "a\nb"}, gateway_pb2.REJECTION_CODE_BAD_REQUEST, "agent_name"),
        ({"capacity": None}, gateway_pb2.REJECTION_CODE_BAD_REQUEST, "capacity"),
    ],
)
async def test_a_hello_that_can_not_be_served_is_refused_with_the_reason(
    agent: ScriptedAgent, changes: dict[str, Any], code: int, says: str
) -> None:
    stream = await agent.open(gateway_pb2.ConnectRequest(hello=agent.hello(**changes)))
    rejection = await stream.rejected()
    assert rejection.code == code
    assert says in rejection.message


async def test_an_agent_that_speaks_another_protocol_is_listed_as_refused_until_it_connects(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    await (await agent.connect()).close()
    stream = await agent.open(gateway_pb2.ConnectRequest(hello=agent.hello(protocol_min=7, protocol_max=9)))
    await stream.rejected()
    assert "is refused: " in (await plane.agent()).message
    await agent.connect()
    assert (await plane.agent()).message == ""


async def test_a_stream_that_does_not_begin_with_hello_is_refused(agent: ScriptedAgent) -> None:
    stream = await agent.open(gateway_pb2.ConnectRequest(heartbeat=gateway_pb2.Heartbeat(number=1)))
    assert (await stream.rejected()).code == gateway_pb2.REJECTION_CODE_BAD_REQUEST


async def test_two_connected_agents_can_not_have_one_name(agent_of: Agent) -> None:
    first, second = await agent_of("twin"), await agent_of("twin")
    await first.connect()
    rejection = await (await second.open()).rejected()
    assert "set agent_name" in rejection.message


async def test_a_second_control_plane_on_the_same_folder_refuses_to_start(plane: ControlPlane, tmp_path: Path) -> None:
    second = ControlPlane(tmp_path)
    try:
        with pytest.raises(Exception, match="another control plane uses the data folder"):
            await second.start()
    finally:
        await second.close()
