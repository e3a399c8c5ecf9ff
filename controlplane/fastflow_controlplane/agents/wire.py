"""The border between the agent stream's messages and the plain values of this package."""

from collections.abc import Iterable
from typing import Any

from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2
from fastflow.v1 import limits_pb2, runs_pb2

from fastflow_controlplane.agents.assignments import Delivery, SecretValue
from fastflow_controlplane.agents.events import (
    Acknowledgement,
    AttemptEvent,
    ContainerGone,
    Ended,
    Fact,
    LogLossFound,
    ProvenanceKnown,
    SoftLimitCrossed,
    StateChanged,
    Unrecognized,
)
from fastflow_controlplane.agents.model import AgentFacts, Capacity, Condition, ReportedAttempt, RuntimeFacts
from fastflow_controlplane.runs.model import (
    AttemptKey,
    LogLoss,
    OutOfMemory,
    Provenance,
    SoftLimitWarning,
    Usage,
)
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.queries.registration import Belonging

_STOP_CAUSES = {
    "CANCEL": desired_pb2.STOP_CAUSE_CANCEL,
    "SUPERSEDED": desired_pb2.STOP_CAUSE_SUPERSEDED,
    "DRAIN": desired_pb2.STOP_CAUSE_DRAIN,
}
_USAGE_FIELDS = tuple(field.name for field in limits_pb2.Usage.DESCRIPTOR.fields)


def read_hello(hello: gateway_pb2.Hello) -> AgentFacts:
    """Translates what an agent says of itself."""
    return AgentFacts(
        agent_id=hello.agent_id,
        name=hello.agent_name,
        instance_id=hello.instance_id,
        boot_id=hello.boot_id,
        machine_id=hello.machine_id,
        version=hello.agent_version,
        host_name=hello.host_name,
        kernel=hello.kernel,
        capacity=Capacity(hello.capacity.cpu_milli_cores, hello.capacity.memory_bytes, hello.capacity.slots),
        labels=dict(hello.labels),
        runtime=_runtime(hello.runtime),
    )


def read_belonging(hello: gateway_pb2.Hello) -> Belonging:
    """Translates where an agent says it belongs."""
    return Belonging(hello.cluster_id, hello.last_revision)


def read_key(key: attempts_pb2.AttemptKey) -> AttemptKey:
    """Translates the name of an assignment."""
    return AttemptKey(key.run_id, key.attempt, key.claim_token)


def read_reported(attempt: gateway_pb2.InventoryAttempt) -> ReportedAttempt:
    """Translates an attempt that an agent has."""
    return ReportedAttempt(read_key(attempt.key), _state(attempt.state), attempt.pipeline)


def read_conditions(heartbeat: gateway_pb2.Heartbeat) -> tuple[Condition, ...]:
    """Translates the conditions of a heartbeat."""
    return tuple(
        Condition(condition.type, condition.message, condition.blocks_placement, condition.since.ToMicroseconds())
        for condition in heartbeat.conditions
    )


def read_runtime(heartbeat: gateway_pb2.Heartbeat) -> RuntimeFacts | None:
    """Translates the runtime facts of a heartbeat; None = unchanged."""
    return _runtime(heartbeat.runtime) if heartbeat.HasField("runtime") else None


def read_telemetry(telemetry: gateway_pb2.Telemetry) -> dict[AttemptKey, Usage]:
    """Translates measured use."""
    return {read_key(attempt.key): _usage(attempt.usage) for attempt in telemetry.attempts}


def read_events(batch: attempts_pb2.AttemptEvents) -> list[AttemptEvent]:
    """Translates facts about attempts."""
    return [
        AttemptEvent(read_key(event.key), event.sequence, event.time.ToMicroseconds(), _fact(event))
        for event in batch.events
    ]


def acknowledgements(acks: Iterable[Acknowledgement]) -> gateway_pb2.ConnectResponse:
    """Makes the answer to a batch of events."""
    return gateway_pb2.ConnectResponse(
        events_ack=attempts_pb2.AttemptEventsAck(
            acks=[
                attempts_pb2.AttemptEventAck(
                    run_id=ack.run_id,
                    attempt=ack.attempt,
                    sequence=ack.sequence,
                    rejection=f"EVENT_REJECTION_{ack.rejection or 'UNSPECIFIED'}",
                )
                for ack in acks
            ]
        )
    )


PROBE = gateway_pb2.ConnectResponse(probe=gateway_pb2.Probe())
"""Asks for a heartbeat."""


def rejection(code: str, message: str) -> gateway_pb2.ConnectResponse:
    """Makes the last answer of a stream; `code` is a name of RejectionCode without prefix."""
    return gateway_pb2.ConnectResponse(rejection=gateway_pb2.Rejection(code=f"REJECTION_CODE_{code}", message=message))


def desired_attempt(delivery: Delivery) -> desired_pb2.DesiredAttempt:
    """Translates what an agent shall do with one attempt."""
    message = desired_pb2.DesiredAttempt(
        key=attempts_pb2.AttemptKey(
            run_id=delivery.key.run_id, attempt=delivery.key.attempt, claim_token=delivery.key.claim_token
        ),
        action=f"DESIRED_ACTION_{delivery.action}",
        known_seq=delivery.known_seq,
        durable_log_offset=delivery.durable_log_offset,
        ended=delivery.ended,
    )
    if delivery.action == "STOP":
        message.stop_cause = _STOP_CAUSES[delivery.stop_cause]
        message.stop_grace.FromMicroseconds(delivery.stop_grace_usec)
        message.secrets.extend(_secrets(delivery.secrets))
        message.masks_unknown = delivery.masks_unknown
    if delivery.action == "RUN":
        message.spec.CopyFrom(_spec(delivery))
    return message


def _spec(delivery: Delivery) -> desired_pb2.RunSpec:
    row = delivery.row
    if row is None:
        raise ValueError(f"{delivery.key} is to run and has no row")
    spec = desired_pb2.RunSpec(
        pipeline=row.pipeline,
        bundle_digest=row.bundle_digest,
        bundle_size=row.bundle_size,
        limits=limits_pb2.Limits(
            cpu_hard_milli_cores=row.limits.cpu_hard_milli_cores,
            memory_hard_bytes=row.limits.memory_hard_bytes,
            cpu_soft_milli_cores=row.limits.cpu_soft_milli_cores,
            memory_soft_bytes=row.limits.memory_soft_bytes,
        ),
        environment=delivery.environment,
        secrets=_secrets(delivery.secrets),
        python_version=row.python_version,
        pinned_packages=row.pinned_packages,
        log_limit_bytes=row.log_limit_bytes,
        on_log_backlog=f"LOG_BACKLOG_POLICY_{row.on_log_backlog}",
    )
    spec.timeout.FromMicroseconds(row.timeout_usec)
    spec.stop_grace.FromMicroseconds(delivery.stop_grace_usec)
    return spec


def _secrets(secrets: Iterable[SecretValue]) -> list[desired_pb2.SecretVariable]:
    return [
        desired_pb2.SecretVariable(name=secret.name, value=secret.value, version=secret.version) for secret in secrets
    ]


def _runtime(facts: gateway_pb2.RuntimeFacts) -> RuntimeFacts:
    return RuntimeFacts(
        runtime=facts.runtime,
        runtime_version=facts.runtime_version,
        cgroup=facts.cgroup,
        image=facts.image,
        image_digest=facts.image_digest,
        python_versions=tuple(facts.python_versions),
        uv_version=facts.uv_version,
    )


def _fact(event: attempts_pb2.AttemptEvent) -> Fact:
    match event.WhichOneof("fact"):
        case "state_changed":
            changed = event.state_changed
            state = _state(changed.state)
            if state is None:
                return Unrecognized()
            return StateChanged(state, _reason(changed.reason), changed.message, changed.slot)
        case "ended":
            return _ended(event.ended)
        case "soft_limit_crossed":
            crossed = event.soft_limit_crossed
            return SoftLimitCrossed(crossed.crossing, _warning(crossed.warning))
        case "log_loss_found":
            return LogLossFound(_loss(event.log_loss_found.loss))
        case "container_gone":
            return ContainerGone()
        case "provenance_known":
            return ProvenanceKnown(_provenance(event.provenance_known.provenance))
        case _:
            return Unrecognized()


def _ended(ended: attempts_pb2.Ended) -> Fact:
    state = _state(ended.state)
    if state is None:
        return Unrecognized()
    out_of_memory = ended.out_of_memory
    return Ended(
        state=state,
        reason=_reason(ended.reason),
        message=ended.message,
        exit_code=_optional(ended, "exit_code"),
        signal=_optional(ended, "signal"),
        usage=_usage(ended.usage) if ended.HasField("usage") else None,
        out_of_memory=OutOfMemory(
            limit_bytes=out_of_memory.limit_bytes,
            peak_bytes=_optional(out_of_memory, "peak_bytes"),
            process=out_of_memory.process,
            evidence=out_of_memory.evidence,
        )
        if ended.HasField("out_of_memory")
        else None,
    )


def _usage(usage: limits_pb2.Usage) -> Usage:
    return Usage(**{name: _optional(usage, name) for name in _USAGE_FIELDS})


def _warning(warning: runs_pb2.SoftLimitWarning) -> SoftLimitWarning:
    return SoftLimitWarning(
        kind=_name(runs_pb2.SoftLimitKind.DESCRIPTOR, warning.kind).removeprefix("SOFT_LIMIT_KIND_"),
        limit=warning.limit,
        peak=warning.peak,
        raise_time=warning.raise_time.ToMicroseconds(),
        clear_time=warning.clear_time.ToMicroseconds() if warning.HasField("clear_time") else None,
        seconds_above=warning.seconds_above,
    )


def _loss(loss: runs_pb2.LogLoss) -> LogLoss:
    return LogLoss(
        kind=_name(runs_pb2.LogLossKind.DESCRIPTOR, loss.kind).removeprefix("LOG_LOSS_KIND_"),
        offset=loss.offset,
        bytes=_optional(loss, "bytes"),
        time=loss.time.ToMicroseconds(),
        message=loss.message,
    )


def _provenance(provenance: runs_pb2.Provenance) -> Provenance:
    return Provenance(
        image=provenance.image,
        image_digest=provenance.image_digest,
        uv_version=provenance.uv_version,
        python_version=provenance.python_version,
        packages=tuple(provenance.packages),
    )


def _name(enum: Any, value: int) -> str:
    """A value of a later protocol has no name: the zero value's stands for it."""
    return str(enum.values_by_number[value if value in enum.values_by_number else 0].name)


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _state(value: int) -> RunState | None:
    """None = a state of a later protocol."""
    descriptor = runs_pb2.RunState.DESCRIPTOR.values_by_number.get(value)
    name = descriptor.name.removeprefix("RUN_STATE_") if descriptor else ""
    return RunState(name) if name in RunState.__members__ else None


def _reason(value: int) -> Reason:
    """A reason of a later protocol is none that can be told."""
    descriptor = runs_pb2.Reason.DESCRIPTOR.values_by_number.get(value)
    name = descriptor.name.removeprefix("REASON_") if descriptor else ""
    return Reason(name) if name in Reason.__members__ and name != "NONE" else Reason.NONE
