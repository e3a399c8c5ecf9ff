"""Domain values as protobuf messages. Names of states and fields are the same on both sides."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from fastflow.v1 import agents_pb2, limits_pb2, pipelines_pb2, runs_pb2, secrets_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from fastflow_controlplane.agents.model import (
    AgentView,
    Capacity,
    Condition,
    DrainView,
    EnvironmentView,
    UnknownAttempt,
)
from fastflow_controlplane.conditions import PartCondition
from fastflow_controlplane.logs.wire import loss_message
from fastflow_controlplane.runs.differences import RunDifferences, VariableDifference
from fastflow_controlplane.runs.model import (
    AttemptView,
    LateResult,
    OutOfMemory,
    Placement,
    Provenance,
    Rerun,
    RunView,
    SoftLimitWarning,
    Usage,
)
from fastflow_controlplane.runs.retry import RetryPolicy, policy_of
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.secrets.service import source_of
from fastflow_controlplane.sources.model import PipelineView
from fastflow_controlplane.store.queries.secrets import SecretView

PLACEMENTS_NAMED = 3
"""Agents whose reason stands in a waiting run's sentence; the run's placements name them all."""


UNKNOWN_NAMED = 1000
"""Attempts that an answer names of an agent in quarantine, which may have more than fit."""


class LimitValues(Protocol):
    """Limits of a run or pipeline, wherever they come from: milli-cores and bytes, 0 = no soft limit."""

    @property
    def cpu_hard_milli_cores(self) -> int:
        """Hard limit of CPU."""

    @property
    def memory_hard_bytes(self) -> int:
        """Hard limit of memory."""

    @property
    def cpu_soft_milli_cores(self) -> int:
        """Soft limit of CPU."""

    @property
    def memory_soft_bytes(self) -> int:
        """Soft limit of memory."""


def run_message(run: RunView) -> runs_pb2.Run:
    """Translates a run; of one that waits, the message says why."""
    message = runs_pb2.Run(
        id=run.id,
        pipeline=run.pipeline,
        state=f"RUN_STATE_{run.state}",
        reason=_reason(run.reason),
        message=_waiting(run) if run.state is RunState.QUEUED else run.message,
        exit_code=run.exit_code,
        attempt=run.attempt,
        attempts=[_attempt(attempt) for attempt in run.attempts],
        limits=limits_message(run.limits),
        create_time=time_message(run.create_time),
        start_time=time_message(run.start_time),
        end_time=time_message(run.end_time),
        environment_names=run.environment_names,
        placements=[_placement(placement) for placement in run.placements if placement.agent],
        request_id=run.request_id,
        bundle_digest=run.bundle_digest,
        commit=run.commit,
        tree=run.tree,
        trigger=run.trigger,
        priority=run.priority,
        python_version=run.python_version,
        provenance=_provenance(run.provenance),
        etag=run.etag,
        commit_author=run.commit_author,
        commit_subject=run.commit_subject,
        ref=run.ref,
        default_environment_names=sorted(run.default_environment),
        rerun=_rerun(run.rerun),
        retry=_retry(run.retry),
    )
    message.timeout.FromMicroseconds(run.timeout_usec)
    return message


def differences_message(found: RunDifferences) -> runs_pb2.DiffRunsResponse:
    """Translates what differs between two runs."""
    return runs_pb2.DiffRunsResponse(
        a=run_message(found.a),
        b=run_message(found.b),
        identical=found.identical,
        code=None if found.code is None else runs_pb2.CodeDifference(unified_diff=found.code),
        packages=[runs_pb2.PackageDifference(name=each.name, a=each.a, b=each.b) for each in found.packages],
        parameters=map(_variable, found.parameters),
        default_environment=map(_variable, found.default_environment),
        values=[runs_pb2.ValueDifference(field=each.field, a=each.a, b=each.b) for each in found.values],
        notes=found.notes,
    )


def limits_message(limits: LimitValues) -> limits_pb2.Limits:
    """Translates limits."""
    return limits_pb2.Limits(
        cpu_hard_milli_cores=limits.cpu_hard_milli_cores,
        memory_hard_bytes=limits.memory_hard_bytes,
        cpu_soft_milli_cores=limits.cpu_soft_milli_cores,
        memory_soft_bytes=limits.memory_soft_bytes,
    )


def condition_message(condition: Condition | PartCondition) -> agents_pb2.Condition:
    """Translates a condition of an agent, or of the control plane itself."""
    return agents_pb2.Condition(
        type=condition.type,
        message=condition.message,
        blocks_placement=condition.blocks_placement,
        since=time_message(condition.since),
    )


def agent_message(agent: AgentView) -> agents_pb2.Agent:
    """Translates an agent."""
    facts = agent.facts
    return agents_pb2.Agent(
        name=facts.name,
        state=f"AGENT_STATE_{agent.state}",
        capacity=_capacity(facts.capacity),
        reserved=_capacity(agent.reserved),
        labels=facts.labels,
        conditions=map(condition_message, agent.conditions),
        version=facts.version,
        runtime=facts.runtime.runtime,
        runtime_version=facts.runtime.runtime_version,
        cgroup=facts.runtime.cgroup,
        python_versions=facts.runtime.python_versions,
        image=facts.runtime.image,
        last_seen_time=time_message(agent.last_seen_time),
        connect_time=time_message(agent.connect_time),
        attempts=[
            agents_pb2.AgentAttempt(run_id=attempt.run_id, attempt=attempt.attempt, pipeline=attempt.pipeline)
            for attempt in agent.attempts
        ],
        host_name=facts.host_name,
        kernel=facts.kernel,
        message=agent.message,
        agent_id=facts.agent_id,
        session_epoch=agent.session_epoch,
        drain=_drain(agent.drain) if agent.drain else None,
        unknown_attempts=None if agent.unknown_attempts is None else _unknown(agent.unknown_attempts),
    )


def _unknown(unknown: Sequence[UnknownAttempt]) -> agents_pb2.UnknownAttempts:
    return agents_pb2.UnknownAttempts(
        attempts=[
            agents_pb2.UnknownAttempt(
                run_id=attempt.run_id,
                attempt=attempt.attempt,
                pipeline=attempt.pipeline,
                state=f"RUN_STATE_{attempt.state or 'UNSPECIFIED'}",
                run_state=f"RUN_STATE_{attempt.run_state or 'UNSPECIFIED'}",
            )
            for attempt in unknown[:UNKNOWN_NAMED]
        ],
        more=len(unknown) > UNKNOWN_NAMED,
    )


def _drain(drain: DrainView) -> agents_pb2.Drain:
    return agents_pb2.Drain(
        start_time=time_message(drain.start_time),
        deadline_time=time_message(drain.deadline_time),
        attempts=drain.attempts,
        logs=drain.logs,
        complete=drain.complete,
    )


def pipeline_message(pipeline: PipelineView) -> pipelines_pb2.Pipeline:
    """Translates a pipeline; of an invalid one, what its metadata would say is left out."""
    message = pipelines_pb2.Pipeline(
        name=pipeline.name,
        state=f"PIPELINE_STATE_{pipeline.state.value}",
        problems=[
            pipelines_pb2.Problem(
                severity=f"PROBLEM_SEVERITY_{problem.severity.value}",
                file=problem.file,
                field=problem.field,
                message=problem.message,
            )
            for problem in pipeline.problems
        ],
        has_requirements=pipeline.has_requirements,
        has_script_header=pipeline.has_header,
        metadata_file=pipeline.metadata_file,
        source=pipeline.source,
        bundle_digest=pipeline.bundle_digest,
        commit=pipeline.commit,
        tree=pipeline.tree,
        path=pipeline.path,
    )
    metadata = pipeline.metadata
    if metadata is not None:
        message.description = metadata.description
        message.tags.extend(metadata.tags)
        message.limits.CopyFrom(limits_message(metadata.limits))
        message.timeout.FromMicroseconds(round(metadata.timeout_seconds * 1_000_000))
        message.on_log_backlog = (
            pipelines_pb2.ON_LOG_BACKLOG_PAUSE
            if metadata.on_log_backlog == "pause"
            else pipelines_pb2.ON_LOG_BACKLOG_DROP
        )
        message.python_version = metadata.python_version
        message.default_environment.update(metadata.default_environment)
        if (retry := _retry(policy_of(metadata.retry_on, metadata.retry_attempts))) is not None:
            message.retry.CopyFrom(retry)
    return message


def counts_message(counts: Mapping[str, int]) -> pipelines_pb2.EnvironmentCounts:
    """Translates on how many agents the packages of a pipeline are in which state."""
    return pipelines_pb2.EnvironmentCounts(
        waiting=counts.get("WAITING", 0),
        preparing=counts.get("PREPARING", 0),
        ready=counts.get("READY", 0),
        failed=counts.get("FAILED", 0),
    )


def environment_message(environment: EnvironmentView) -> pipelines_pb2.PipelineEnvironment:
    """Translates how far the packages of a pipeline are on an agent."""
    result = environment.result
    message = pipelines_pb2.PipelineEnvironment(
        agent=environment.agent,
        state=f"ENVIRONMENT_STATE_{result.state}",
        message=result.message,
        packages=result.packages,
        prepare_time=time_message(result.prepare_time),
        retry_time=time_message(result.retry_time),
    )
    if result.duration_usec is not None:
        message.duration.FromMicroseconds(result.duration_usec)
    return message


def secret_message(secret: SecretView) -> secrets_pb2.Secret:
    """Translates what may be shown of a secret."""
    return secrets_pb2.Secret(
        name=secret.name,
        pipeline="" if source_of(secret.pipeline) else secret.pipeline,
        source=source_of(secret.pipeline),
        version=secret.version,
        update_time=time_message(secret.update_time),
        masked=secret.masked,
    )


def _attempt(attempt: AttemptView) -> runs_pb2.Attempt:
    return runs_pb2.Attempt(
        number=attempt.number,
        agent=attempt.agent,
        state=f"RUN_STATE_{attempt.state}",
        reason=_reason(attempt.reason),
        message=attempt.message,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        assign_time=time_message(attempt.assign_time),
        start_time=time_message(attempt.start_time),
        end_time=time_message(attempt.end_time),
        usage=_usage(attempt.usage),
        out_of_memory=_out_of_memory(attempt.out_of_memory),
        warnings=[_warning(warning) for warning in attempt.warnings],
        log_bytes=attempt.log_bytes,
        log_sealed=attempt.log_sealed,
        log_losses=[loss_message(loss) for loss in attempt.log_losses],
        released=attempt.released,
        log_remove_time=time_message(attempt.log_remove_time),
        log_removed_by=attempt.log_removed_by,
        late_result=_late_result(attempt.late_result),
    )


def _late_result(result: LateResult | None) -> runs_pb2.LateResult | None:
    if result is None:
        return None
    return runs_pb2.LateResult(
        state=f"RUN_STATE_{result.state}",
        reason=_reason(result.reason),
        message=result.message,
        exit_code=result.exit_code,
        signal=result.signal,
        end_time=time_message(result.time),
    )


def _usage(usage: Usage | None) -> limits_pb2.Usage | None:
    # Absent stays absent: a field that the host can not tell must not become 0.
    return None if usage is None else limits_pb2.Usage(**_present(usage))


def _present(value: Usage) -> dict[str, Any]:
    pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: number for name, number in pairs if number is not None}


def _out_of_memory(verdict: OutOfMemory | None) -> runs_pb2.OutOfMemory | None:
    if verdict is None:
        return None
    return runs_pb2.OutOfMemory(
        limit_bytes=verdict.limit_bytes,
        peak_bytes=verdict.peak_bytes,
        process=verdict.process,
        evidence=verdict.evidence,
    )


def _warning(warning: SoftLimitWarning) -> runs_pb2.SoftLimitWarning:
    return runs_pb2.SoftLimitWarning(
        kind=f"SOFT_LIMIT_KIND_{warning.kind}",
        limit=warning.limit,
        peak=warning.peak,
        raise_time=time_message(warning.raise_time),
        clear_time=time_message(warning.clear_time),
        seconds_above=warning.seconds_above,
    )


def _provenance(provenance: Provenance | None) -> runs_pb2.Provenance | None:
    if provenance is None:
        return None
    return runs_pb2.Provenance(
        image=provenance.image,
        image_digest=provenance.image_digest,
        uv_version=provenance.uv_version,
        python_version=provenance.python_version,
        packages=provenance.packages,
        secret_versions=provenance.secret_versions,
    )


def _rerun(rerun: Rerun | None) -> runs_pb2.Rerun | None:
    if rerun is None:
        return None
    return runs_pb2.Rerun(run_id=rerun.run_id, latest=rerun.latest, packages=rerun.packages)


def _retry(policy: RetryPolicy) -> limits_pb2.RetryPolicy | None:
    if not policy.on:
        return None
    return limits_pb2.RetryPolicy(attempts=policy.attempts, on_lost=RunState.LOST in policy.on)


def _variable(difference: VariableDifference) -> runs_pb2.VariableDifference:
    return runs_pb2.VariableDifference(name=difference.name, change=f"VARIABLE_CHANGE_{difference.change}")


def _placement(placement: Placement) -> runs_pb2.Placement:
    return runs_pb2.Placement(agent=placement.agent, fits=placement.fits, explanation=placement.explanation)


def _waiting(run: RunView) -> str:
    """Returns in one sentence why a run waits: what happened to it before, and what placement says now."""
    return "; ".join(part for part in (run.message, _obstacle(run.placements)) if part)


def _obstacle(placements: Sequence[Placement]) -> str:
    summary = next((placement.explanation for placement in placements if not placement.agent), "")
    if summary or any(placement.fits for placement in placements):
        return summary
    named = "; ".join(f"{placement.agent}: {placement.explanation}" for placement in placements[:PLACEMENTS_NAMED])
    more = len(placements) - PLACEMENTS_NAMED
    return f"{named}; and {more} more agents" if more > 0 else named


def _capacity(capacity: Capacity) -> agents_pb2.Capacity:
    return agents_pb2.Capacity(
        cpu_milli_cores=capacity.cpu_milli_cores, memory_bytes=capacity.memory_bytes, slots=capacity.slots
    )


def _reason(reason: str) -> str:
    return f"REASON_{reason or 'UNSPECIFIED'}"


def time_message(microseconds: int | None) -> Timestamp | None:
    """Translates microseconds UTC; None stays absent."""
    if microseconds is None:
        return None
    moment = Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment
