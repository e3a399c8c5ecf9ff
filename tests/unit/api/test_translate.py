"""Domain values as messages: names, times, and what stays absent."""

from dataclasses import replace

import pytest
from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.metadata import Limits, Metadata
from fastflow.pipelines.problems import error
from fastflow.v1 import pipelines_pb2, runs_pb2
from fastflow_controlplane.agents.model import AgentFacts, AgentState, AgentView, Capacity, UnknownAttempt
from fastflow_controlplane.api.translate import UNKNOWN_NAMED, agent_message, pipeline_message, run_message
from fastflow_controlplane.runs.model import AttemptView, OutOfMemory, Placement, RunView, SoftLimitWarning, Usage
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.sources.model import PipelineView

NOON = 1_763_900_000_000_000

AGENT = AgentView(AgentFacts("id", "w", "i"), AgentState.QUARANTINED, Capacity(), (), (), NOON, NOON, 1, "")

WAITING = RunView(
    id="01890a5d-ac96-774b-bcce-b302099a8057",
    pipeline="etl",
    state=RunState.QUEUED,
    reason=Reason.NONE,
    message="",
    exit_code=None,
    attempt=0,
    attempts=(),
    limits=Limits(500, 2**29, 0, 2**28),
    create_time=NOON,
    queue_time=NOON,
    start_time=None,
    end_time=None,
    cancel_time=None,
    timeout_usec=1_500_000,
    environment_names=("DAY",),
    placements=(),
    request_id="r",
    bundle_digest="sha256:00",
    commit="",
    tree="t",
    trigger="api",
    priority=0,
    python_version="",
    etag="1",
)

ATTEMPT = AttemptView(
    number=1,
    agent_id="a",
    agent="worker-1",
    state=RunState.FAILED,
    reason=Reason.OOM_KILLED,
    message="",
    exit_code=137,
    signal=None,
    assign_time=NOON,
    start_time=NOON + 1,
    end_time=NOON + 2,
    usage=Usage(peak_memory_bytes=0),
    out_of_memory=OutOfMemory(2**29, None, "unknown", "memory.events"),
    warnings=(SoftLimitWarning("MEMORY", 2**28, 2**29, NOON, None, 0.5),),
    log_bytes=3,
    log_sealed=True,
    log_losses=(),
    released=True,
    provenance=None,
    slot="s",
)


def test_a_run_that_waits_says_what_placement_says_of_all_agents() -> None:
    placements = (
        Placement("", False, "needs 64g; largest agent worker-1 has 8g"),
        Placement("worker-1", False, "needs 64g; worker-1 has 8g in all"),
    )
    run = run_message(replace(WAITING, placements=placements))
    assert run.state == runs_pb2.RUN_STATE_QUEUED
    assert run.message == "needs 64g; largest agent worker-1 has 8g"
    assert [(placement.agent, placement.fits) for placement in run.placements] == [("worker-1", False)]


def test_a_run_that_waits_for_busy_agents_names_them() -> None:
    placements = tuple(Placement(f"worker-{number}", False, "all 2 slots are taken") for number in range(1, 6))
    assert run_message(replace(WAITING, placements=placements)).message == (
        "worker-1: all 2 slots are taken; worker-2: all 2 slots are taken; worker-3: all 2 slots are taken; "
        "and 2 more agents"
    )


def test_a_run_that_is_about_to_be_placed_keeps_what_happened_before() -> None:
    run = replace(WAITING, message='agent "b" could not start it', placements=(Placement("a", True, "fits"),))
    assert run_message(run).message == 'agent "b" could not start it'


def test_what_is_unknown_is_absent_and_what_is_zero_is_zero() -> None:
    run = run_message(replace(WAITING, state=RunState.FAILED, attempts=(ATTEMPT,), attempt=1, exit_code=0))
    assert not run_message(WAITING).HasField("exit_code")
    assert run.HasField("exit_code")
    assert not run.HasField("start_time")
    (attempt,) = run.attempts
    assert attempt.usage.HasField("peak_memory_bytes")
    assert not attempt.usage.HasField("cpu_usec")
    assert not attempt.HasField("signal")
    assert not attempt.out_of_memory.HasField("peak_bytes")
    assert not attempt.warnings[0].HasField("clear_time")


def test_every_state_and_reason_has_its_name_in_the_protocol() -> None:
    for state in RunState:
        for reason in Reason:
            run = run_message(replace(WAITING, state=state, reason=reason))
            assert runs_pb2.RunState.Name(run.state) == f"RUN_STATE_{state}"
            assert runs_pb2.Reason.Name(run.reason).removeprefix("REASON_") == (reason or "UNSPECIFIED")


def test_an_agent_with_more_unknown_attempts_than_an_answer_names_is_said_to_have_more() -> None:
    attempt = UnknownAttempt("run", 1, "", None, RunState.QUEUED)
    for number, more in ((UNKNOWN_NAMED, False), (UNKNOWN_NAMED + 1, True)):
        message = agent_message(replace(AGENT, unknown_attempts=(attempt,) * number)).unknown_attempts
        assert (len(message.attempts), message.more) == (UNKNOWN_NAMED, more)
        first = message.attempts[0]
        assert (first.state, first.run_state) == (runs_pb2.RUN_STATE_UNSPECIFIED, runs_pb2.RUN_STATE_QUEUED)
    assert not agent_message(AGENT).HasField("unknown_attempts")


def test_times_and_limits_keep_their_units() -> None:
    run = run_message(WAITING)
    assert run.create_time.ToMicroseconds() == NOON
    assert run.timeout.ToMicroseconds() == 1_500_000
    assert (run.limits.cpu_hard_milli_cores, run.limits.memory_soft_bytes) == (500, 2**28)


@pytest.mark.parametrize("state", list(PipelineState))
def test_every_state_of_a_pipeline_has_its_name_in_the_protocol(state: PipelineState) -> None:
    view = PipelineView(
        name="etl",
        state=state,
        problems=(error("pipeline.json", "is no size", "mem_hard_limit"),),
        metadata=None if state is PipelineState.INVALID else Metadata(Limits(1000, 2**30), timeout_seconds=1.5),
        metadata_file="pipeline.json",
        has_requirements=True,
        source="/pipelines",
        path="etl",
        tree="",
        commit="",
        bundle_digest="",
    )
    pipeline = pipeline_message(view)
    assert pipelines_pb2.PipelineState.Name(pipeline.state) == f"PIPELINE_STATE_{state.value}"
    assert pipeline.problems[0].severity == pipelines_pb2.PROBLEM_SEVERITY_ERROR
    assert pipeline.HasField("limits") is (state is not PipelineState.INVALID)
