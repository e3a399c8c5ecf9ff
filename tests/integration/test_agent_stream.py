"""The agent stream of a real control plane, with a scripted agent at the other end of a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.client import open_channel
from fastflow.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
)
from fastflow_controlplane.server import serve
from fastflow_controlplane.settings import ControlPlaneSettings

from tests.integration.scripted_agent import PATIENCE, Journal, ScriptedAgent, state_of

RUN = desired_pb2.DESIRED_ACTION_RUN
STOP = desired_pb2.DESIRED_ACTION_STOP
FORGET = desired_pb2.DESIRED_ACTION_FORGET
ORPHAN = desired_pb2.DESIRED_ACTION_ORPHAN


class ControlPlane:
    """A control plane on a folder, which can be started again, and a client of it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._settings = settings
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        channel = open_channel(self.address)
        self.channel = channel
        self.runs = runs_pb2_grpc.RunServiceStub(channel)
        self.agents = agents_pb2_grpc.AgentServiceStub(channel)
        self.secrets = secrets_pb2_grpc.SecretServiceStub(channel)

    def pipeline(self, name: str, metadata: str = "{}") -> None:
        folder = self._folder / "pipelines" / name
        folder.mkdir(parents=True)
        (folder / "main.py").write_text("print(1)\n")
        (folder / "pipeline.json").write_text(metadata)

    async def start(self) -> None:
        settings = ControlPlaneSettings(
            listen=self.address,
            data_dir=self._folder / "data",
            pipelines_dir=self._folder / "pipelines",
            **self._settings,
        )
        self._stopping = asyncio.Event()
        ready = asyncio.Event()
        self._task = asyncio.create_task(serve(settings, self._stopping, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiting.cancel()
            await self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._stopping.set()
            await self._task
            self._task = None

    async def create(self, pipeline: str = "hello", **fields: Any) -> runs_pb2.Run:
        request = runs_pb2.CreateRunRequest(pipeline=pipeline, **fields)
        return (await self.runs.CreateRun(request, wait_for_ready=True, timeout=PATIENCE)).run

    async def run(self, run_id: str) -> runs_pb2.Run:
        return (await self.runs.GetRun(runs_pb2.GetRunRequest(id=run_id), wait_for_ready=True, timeout=PATIENCE)).run

    async def agent(self, name: str = "worker-1") -> agents_pb2.Agent:
        return (await self.agents.GetAgent(agents_pb2.GetAgentRequest(name=name), timeout=PATIENCE)).agent

    async def cancel(self, run_id: str) -> None:
        await self.runs.CancelRun(runs_pb2.CancelRunRequest(id=run_id), timeout=PATIENCE)

    async def set_secret(self, name: str, value: bytes) -> None:
        request = secrets_pb2.SetSecretRequest(name=name, value=value, all_pipelines=True)
        await self.secrets.SetSecret(request, timeout=PATIENCE)


Start = Callable[..., Awaitable[ControlPlane]]
Agent = Callable[..., Awaitable[ScriptedAgent]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a control plane with settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> ControlPlane:
            plane = ControlPlane(tmp_path, **settings)
            stack.push_async_callback(plane.channel.close, None)
            plane.pipeline("hello")
            await plane.start()
            stack.push_async_callback(plane.stop)
            return plane

        yield start


@pytest.fixture
async def plane(start: Start) -> ControlPlane:
    """A control plane with standard settings."""
    return await start()


@pytest.fixture
async def agent_of(plane: ControlPlane) -> AsyncIterator[Agent]:
    """Makes agents of `plane`."""
    async with AsyncExitStack() as stack:

        async def make(name: str = "worker-1", **fields: Any) -> ScriptedAgent:
            return await stack.enter_async_context(ScriptedAgent(plane.address, name, **fields))

        yield make


@pytest.fixture
async def agent(agent_of: Agent) -> ScriptedAgent:
    """An agent of `plane`, not connected yet."""
    return await agent_of()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for something that no message announces."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - nothing tells when another process is so far
            await asyncio.sleep(0.02)


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


async def test_a_restart_of_the_control_plane_loses_nothing(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    waiting = await plane.create(environment={"NOT": "lost"})
    first, second = await stream.assignment(), await stream.assignment()
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


async def test_a_newer_stream_takes_over_and_the_older_one_writes_nothing_any_more(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
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


async def test_variables_come_from_the_pipeline_then_secrets_then_the_run(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    plane.pipeline("env", '{"default_env": {"A": "default", "B": "default", "C": "default"}}')
    await plane.set_secret("B", b"secret B")
    await plane.set_secret("C", b"secret C")
    stream = await agent.connect()
    run = await plane.create("env", environment={"C": "given", "D": "given"})
    spec = (await stream.assignment()).spec
    assert dict(spec.environment) == {"A": "default", "C": "given", "D": "given"}
    assert [(secret.name, secret.value) for secret in spec.secrets] == [("B", b"secret B")]
    assert list(run.environment_names) == ["C", "D"]


async def test_a_secret_that_is_set_anew_does_not_change_for_a_run_that_has_it(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    await plane.set_secret("KEY", b"first value")
    stream = await agent.connect()
    await plane.create()
    key = (await stream.assignment()).key
    await plane.set_secret("KEY", b"second value")
    await stream.close()
    again = await agent.connect([Journal(key).inventory("ASSIGNED", 0)])
    (attempt,) = again.full
    assert [(secret.value, secret.version) for secret in attempt.spec.secrets] == [(b"first value", 1)]


async def test_values_stand_in_no_file_of_the_control_plane(
    plane: ControlPlane, agent: ScriptedAgent, tmp_path: Path
) -> None:
    await plane.set_secret("KEY", b"a secret value")
    stream = await agent.connect()
    await plane.create(environment={"PARAMETER": "a given value"})
    await stream.assignment()
    await plane.stop()
    files = [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert any(file.name == "fastflow.db" for file in files)
    for file in files:
        content = file.read_bytes()
        assert b"a secret value" not in content, file
        assert b"a given value" not in content, file


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


async def test_an_ended_attempt_that_its_agent_no_longer_has_is_closed_and_its_capacity_freed(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    run = await plane.create()
    journal = Journal((await stream.assignment()).key)
    await agent.upload(journal.key, b"half of it", seal=False)
    await stream.report([journal.moved("RUNNING"), journal.ended()])
    assert (await plane.agent()).reserved.slots == 1
    await stream.close()
    again = await agent.connect()
    assert again.full == []
    attempt = (await plane.run(run.id)).attempts[0]
    assert (attempt.released, attempt.log_sealed, attempt.log_bytes) == (True, True, len(b"half of it"))
    assert len(attempt.log_losses) == 1
    assert (await plane.agent()).reserved.slots == 0


async def test_a_large_desired_set_comes_in_pages(plane: ControlPlane, agent_of: Agent) -> None:
    large = await agent_of("large", cpu=1_000_000, memory=10**15)
    stream = await large.connect()
    runs = [await plane.create() for _ in range(250)]
    seen = set[str]()
    while len(seen) < len(runs):
        seen |= {attempt.key.run_id for attempt in (await stream.desired()).attempts}
    await stream.close()
    again = await large.connect()
    assert {attempt.key.run_id for attempt in again.full} == {run.id for run in runs} == seen


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


async def test_a_silent_agent_becomes_suspect_then_offline_and_its_run_lost(start: Start) -> None:
    plane = await start(
        heartbeat_interval=0.3, suspect_after=3, silent_after=4, offline_after=0.3, lost_after=0.5, recovery_window=0
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
    plane = await start(heartbeat_interval=0.2, offline_after=0.1, lost_after=0.1, recovery_window=30.0)
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
        ({"protocol_min": 7, "protocol_max": 9}, gateway_pb2.REJECTION_CODE_PROTOCOL, "speaks protocol 1"),
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
        await second.channel.close(None)
