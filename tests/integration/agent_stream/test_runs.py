"""How runs go to an agent, and what is told of them."""

from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.v1 import (
    agents_pb2,
)

from tests.integration.agent_stream.plane import FORGET, STOP, Agent, ControlPlane, until
from tests.integration.agent_stream.scripted_agent import PATIENCE, Journal, ScriptedAgent, state_of


async def test_a_run_goes_to_the_agent_and_its_result_comes_back(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    assert stream.full == []
    run = await plane.create()
    assignment = await stream.assignment()
    assert (assignment.key.run_id, assignment.key.attempt, assignment.known_seq) == (run.id, 1, 0)
    assert assignment.spec.bundle_digest == run.bundle_digest
    assert assignment.spec.limits == run.limits

    journal = Journal(assignment.key)
    for event, state in ((journal.moved("PREPARING"), "PREPARING"), (journal.moved("RUNNING"), "RUNNING")):
        (ack,) = await stream.report([event])
        assert (ack.sequence, ack.rejection) == (event.sequence, 0)
        assert state_of(await plane.run(run.id)) == state
    await stream.report([journal.ended("FAILED", exit_code=7)])
    ended = await plane.run(run.id)
    assert (state_of(ended), ended.exit_code, ended.attempts[0].agent) == ("FAILED", 7, "worker-1")


async def test_the_code_of_an_assignment_can_be_fetched(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    await plane.create()
    spec = (await stream.assignment()).spec
    request = gateway_pb2.FetchBundleRequest(digest=spec.bundle_digest)
    data = b"".join([piece.data async for piece in agent.stub.FetchBundle(request)])
    assert len(data) == spec.bundle_size


async def test_an_attempt_is_forgotten_when_all_of_it_has_arrived(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create()
    key = (await stream.assignment()).key
    journal = Journal(key)
    await stream.report([journal.moved("RUNNING"), journal.ended(), journal.gone()])
    answer = await agent.upload(key, b"hello\n", seal=True)
    assert answer.sealed
    (forgotten,) = (await stream.desired()).attempts
    assert (forgotten.key, forgotten.action) == (key, FORGET)
    attempt = (await plane.run(run.id)).attempts[0]
    assert (attempt.log_sealed, attempt.log_bytes, attempt.released) == (True, 6, True)


async def test_a_cancel_reaches_the_agent_as_a_desired_stop(plane: ControlPlane, agent: ScriptedAgent) -> None:
    await plane.set_secret("PASSWORD", b"correct horse")
    stream = await agent.connect()
    run = await plane.create()
    key = (await stream.assignment()).key
    journal = Journal(key)
    await stream.report([journal.moved("RUNNING")])
    await plane.cancel(run.id)
    (stop,) = (await stream.desired()).attempts
    assert (stop.key, stop.action) == (key, STOP)
    assert (stop.stop_cause, stop.stop_grace.ToSeconds()) == (desired_pb2.STOP_CAUSE_CANCEL, 10)
    assert [(secret.name, secret.value) for secret in stop.secrets] == [("PASSWORD", b"correct horse")]
    assert not stop.HasField("spec")
    await stream.report([journal.moved("STOPPING"), journal.ended("CANCELLED", 143)])
    assert state_of(await plane.run(run.id)) == "CANCELLED"


async def test_a_cancel_while_the_agent_is_away_is_told_when_it_returns(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    run = await plane.create()
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("RUNNING")])
    await stream.close()
    await plane.cancel(run.id)
    again = await agent.connect([journal.inventory("RUNNING", 1)])
    assert [attempt.action for attempt in again.full] == [STOP]


async def test_a_run_that_one_agent_can_not_start_goes_to_another(plane: ControlPlane, agent_of: Agent) -> None:
    # Best fit: the smaller one is tried first.
    small, large = await agent_of("small", cpu=1000), await agent_of("large", cpu=8000)
    here, there = await small.connect(), await large.connect()
    run = await plane.create()
    journal = Journal((await here.assignment()).key)
    await here.report([journal.moved("QUEUED", "the image is missing")])
    elsewhere = await there.assignment()
    assert (elsewhere.key.run_id, elsewhere.key.attempt) == (run.id, 2)
    placed = await plane.run(run.id)
    assert [(attempt.agent, state_of(attempt)) for attempt in placed.attempts] == [
        ("small", "FAILED"),
        ("large", "ASSIGNED"),
    ]


async def test_a_gap_in_the_events_is_answered_with_the_number_to_go_on_from(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    await plane.create()
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("PREPARING")])
    lost, ended = journal.moved("RUNNING"), journal.ended()
    (ack,) = await stream.report([ended])
    assert (ack.sequence, ack.rejection) == (1, attempts_pb2.EVENT_REJECTION_GAP)
    (ack,) = await stream.report([lost, ended])
    assert (ack.sequence, ack.rejection) == (3, attempts_pb2.EVENT_REJECTION_UNSPECIFIED)


async def test_a_waiting_run_tells_why_at_once(plane: ControlPlane, agent: ScriptedAgent) -> None:
    plane.pipeline("big", '{"mem_hard_limit": "64g"}')
    run = await plane.create("big")
    assert run.message == "no agent is connected: start one with `fastflow-agent run`"
    stream = await agent.connect()
    run = await plane.run(run.id)
    assert run.message == "needs 64 GiB; largest agent worker-1 has 8 GiB"

    condition = agents_pb2.Condition(type="DockerUnavailable", message="no answer", blocks_placement=True)
    await stream.heartbeat(condition)
    run = await plane.create("hello")

    async def told() -> bool:
        rows = (await plane.run(run.id)).placements
        return [(row.agent, row.explanation) for row in rows] == [("worker-1", "DockerUnavailable: no answer")]

    await until(told)
    await stream.heartbeat()
    assert (await stream.assignment()).key.run_id == run.id


async def test_telemetry_shows_what_a_live_run_uses(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create()
    key = (await stream.assignment()).key
    await stream.report([Journal(key).moved("RUNNING")])
    await stream.telemetry(key, working_set_bytes=12345)

    async def shown() -> bool:
        return (await plane.run(run.id)).attempts[0].usage.working_set_bytes == 12345

    await until(shown)


async def test_what_an_agent_gives_back_when_it_is_drained_counts_as_no_failure(
    plane: ControlPlane, agent_of: Agent
) -> None:
    stream = await (await agent_of("worker-1")).connect()
    run = await plane.create()
    journal = Journal((await stream.assignment()).key)
    await plane.agents.DrainAgent(agents_pb2.DrainAgentRequest(name="worker-1"), timeout=PATIENCE)
    page = await stream.desired()
    assert (page.agent.draining, list(page.attempts)) == (True, [])
    changed = attempts_pb2.StateChanged(state="RUN_STATE_QUEUED", reason="REASON_AGENT_DRAINED", message="drained")
    event = attempts_pb2.AttemptEvent(key=journal.key, sequence=1, state_changed=changed)
    await stream.report([event])
    waiting = await plane.run(run.id)
    assert (state_of(waiting), state_of(waiting.attempts[0])) == ("QUEUED", "CANCELLED")
    assert "is draining" in waiting.placements[-1].explanation
    assert not (await plane.agent()).drain.complete
    # Resumed, it may get the run again at once: it did not fail there.
    await plane.agents.ResumeAgent(agents_pb2.ResumeAgentRequest(name="worker-1"), timeout=PATIENCE)
    assert not (await stream.desired()).agent.draining
    assert (await stream.assignment()).key.attempt == 2
