"""Between the agent's own values and protobuf. Nothing else in the agent's core knows of messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from fastflow.agent.v1 import attempts_pb2, desired_pb2, gateway_pb2, preheat_pb2
from fastflow.protocol import PROTOCOLS
from fastflow.v1 import agents_pb2, limits_pb2, pipelines_pb2, runs_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fastflow_agent import facts
from fastflow_agent.attempts.attempt import Report
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.conditions import Condition
from fastflow_agent.desired import Action, Desired, RunSpec, Secret
from fastflow_agent.facts import Event
from fastflow_agent.identity import Identity, Membership
from fastflow_agent.model import AttemptKey, Limits, Reason, State, StopCause
from fastflow_agent.runtime.base import Facts
from fastflow_agent.settings import VERSION, AgentSettings
from fastflow_agent.uvcache.preheat import Key, PreheatReport, Result, Wanted

INVENTORY_PAGE = 500
"""Attempts on one page of the inventory: far below the largest message."""


def hello(settings: AgentSettings, identity: Identity, membership: Membership, runtime: Facts) -> gateway_pb2.Hello:
    """The first message of a stream."""
    return gateway_pb2.Hello(
        protocol_min=PROTOCOLS.oldest,
        protocol_max=PROTOCOLS.newest,
        agent_version=VERSION,
        agent_id=identity.agent_id,
        agent_name=settings.agent_name,
        instance_id=identity.instance_id,
        boot_id=identity.boot_id,
        machine_id=identity.machine_id,
        cluster_id=membership.cluster_id,
        last_revision=membership.last_revision,
        capacity=agents_pb2.Capacity(
            cpu_milli_cores=settings.cpu_milli_cores, memory_bytes=settings.memory_bytes, slots=settings.slots
        ),
        labels=settings.labels,
        runtime=runtime_facts(runtime),
        host_name=identity.host_name,
        kernel=identity.kernel,
    )


def runtime_facts(found: Facts) -> gateway_pb2.RuntimeFacts:
    """What runs containers here."""
    return gateway_pb2.RuntimeFacts(
        runtime=found.runtime,
        runtime_version=found.runtime_version,
        cgroup=found.cgroup,
        image=found.image,
        image_digest=found.image_digest,
        python_versions=found.python_versions,
        uv_version=found.uv_version,
    )


def inventory(reports: Sequence[Report]) -> Iterator[gateway_pb2.InventoryPage]:
    """The attempts known here, in pages; an empty inventory is one empty page."""
    for start in range(0, max(1, len(reports)), INVENTORY_PAGE):
        page = reports[start : start + INVENTORY_PAGE]
        yield gateway_pb2.InventoryPage(
            attempts=[_inventory_attempt(report) for report in page],
            last_page=start + INVENTORY_PAGE >= len(reports),
        )


def condition(held: Condition) -> agents_pb2.Condition:
    """A condition as heartbeats carry it."""
    return agents_pb2.Condition(
        type=held.type.value, message=held.message, blocks_placement=held.blocks_placement, since=_time(held.since)
    )


def events(of_attempts: Iterable[tuple[AttemptKey, Event]]) -> attempts_pb2.AttemptEvents:
    """A batch of events."""
    return attempts_pb2.AttemptEvents(events=[_event(key, event) for key, event in of_attempts])


def telemetry(samples: Iterable[tuple[AttemptKey, datetime, Usage]]) -> gateway_pb2.Telemetry:
    """The newest sample of each attempt."""
    return gateway_pb2.Telemetry(
        attempts=[
            gateway_pb2.AttemptTelemetry(key=attempt_key(key), time=_time(time), usage=_usage(used))
            for key, time, used in samples
        ]
    )


def wanted(item: preheat_pb2.PreheatItem) -> Wanted:
    """An environment that is to be ready before a run needs it."""
    return Wanted(item.bundle_digest, item.bundle_size, item.python_version)


def no_longer_wanted(key: preheat_pb2.PreheatKey) -> Key:
    """An environment that nobody needs any longer."""
    return key.bundle_digest, key.python_version


def preheat_report(report: PreheatReport) -> preheat_pb2.PreheatReport:
    """How far environments are."""
    return preheat_pb2.PreheatReport(
        results=map(_preheat_result, report.results),
        gone=(preheat_pb2.PreheatKey(bundle_digest=key[0], python_version=key[1]) for key in report.gone),
        full=report.full,
    )


def attempt_key(key: AttemptKey) -> attempts_pb2.AttemptKey:
    """The key as messages carry it."""
    return attempts_pb2.AttemptKey(run_id=key.run_id, attempt=key.attempt, claim_token=key.claim_token)


def desired(word: desired_pb2.DesiredAttempt) -> Desired | None:
    """The control plane's word on one attempt; None for an action this version does not know."""
    action = _ACTIONS.get(word.action)
    if action is None:
        return None
    return Desired(
        key=AttemptKey(word.key.run_id, word.key.attempt, word.key.claim_token),
        action=action,
        known_seq=word.known_seq,
        durable_offset=word.durable_log_offset,
        spec=_spec(word.spec) if word.HasField("spec") else None,
        stop_cause=_STOP_CAUSES.get(word.stop_cause, StopCause.CANCEL),
        stop_grace=seconds(word.stop_grace) if word.HasField("stop_grace") else None,
        secrets=_secrets(word.secrets),
        masks_known=not word.masks_unknown,
        ended=word.ended,
    )


_ACTIONS = {
    desired_pb2.DESIRED_ACTION_RUN: Action.RUN,
    desired_pb2.DESIRED_ACTION_STOP: Action.STOP,
    desired_pb2.DESIRED_ACTION_FORGET: Action.FORGET,
    desired_pb2.DESIRED_ACTION_ORPHAN: Action.ORPHAN,
    desired_pb2.DESIRED_ACTION_WAIT: Action.WAIT,
}
_STOP_CAUSES = {
    desired_pb2.STOP_CAUSE_CANCEL: StopCause.CANCEL,
    desired_pb2.STOP_CAUSE_SUPERSEDED: StopCause.SUPERSEDED,
    desired_pb2.STOP_CAUSE_DRAIN: StopCause.DRAIN,
}


def _spec(spec: desired_pb2.RunSpec) -> RunSpec:
    return RunSpec(
        pipeline=spec.pipeline,
        bundle_digest=spec.bundle_digest,
        bundle_size=spec.bundle_size,
        limits=Limits(
            cpu_hard_milli_cores=spec.limits.cpu_hard_milli_cores,
            memory_hard_bytes=spec.limits.memory_hard_bytes,
            cpu_soft_milli_cores=spec.limits.cpu_soft_milli_cores,
            memory_soft_bytes=spec.limits.memory_soft_bytes,
        ),
        timeout=seconds(spec.timeout),
        stop_grace=seconds(spec.stop_grace),
        python_version=spec.python_version,
        log_limit=spec.log_limit_bytes,
        variables=dict(spec.environment),
        secrets=_secrets(spec.secrets),
        packages=tuple(spec.pinned_packages),
        pause_on_backlog=spec.on_log_backlog == desired_pb2.LOG_BACKLOG_POLICY_PAUSE,
    )


def _secrets(variables: Iterable[desired_pb2.SecretVariable]) -> tuple[Secret, ...]:
    return tuple(Secret(variable.name, variable.value, variable.version) for variable in variables)


def name(enum: EnumDescriptor, value: int) -> str:
    """The name of an enum's value; of one that only a newer control plane knows, its number."""
    known = enum.values_by_number.get(value)
    return known.name if known else str(value)


def seconds(duration: Duration) -> float:
    """The duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _time(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _preheat_result(result: Result) -> preheat_pb2.PreheatResult:
    environment = pipelines_pb2.PipelineEnvironment(
        state=f"ENVIRONMENT_STATE_{result.state.value}", message=result.message, packages=result.packages
    )
    if result.seconds:
        environment.duration.FromNanoseconds(round(result.seconds * 1e9))
    if result.prepared is not None:
        environment.prepare_time.FromDatetime(result.prepared)
    if result.retry is not None:
        environment.retry_time.FromDatetime(result.retry)
    bundle_digest, python_version = result.key
    return preheat_pb2.PreheatResult(
        bundle_digest=bundle_digest, python_version=python_version, environment=environment
    )


def _inventory_attempt(report: Report) -> gateway_pb2.InventoryAttempt:
    return gateway_pb2.InventoryAttempt(
        key=attempt_key(report.key),
        state=_state(report.state),
        last_event=report.last_event,
        log_offset=report.log_offset,
        slot=report.slot,
        container_gone=report.container_gone,
        pipeline=report.pipeline,
    )


def _event(key: AttemptKey, event: Event) -> attempts_pb2.AttemptEvent:
    message = attempts_pb2.AttemptEvent(key=attempt_key(key), sequence=event.sequence, time=_time(event.time))
    match event.fact:
        case facts.StateChanged() as fact:
            message.state_changed.CopyFrom(
                attempts_pb2.StateChanged(
                    state=_state(fact.state), reason=_reason(fact.reason), message=fact.message, slot=fact.slot
                )
            )
        case facts.Ended() as fact:
            message.ended.CopyFrom(_ended(fact))
        case facts.SoftLimitCrossed() as fact:
            message.soft_limit_crossed.CopyFrom(_crossing(fact))
        case facts.OutputPaused() as fact:
            message.soft_limit_crossed.CopyFrom(_pause(fact))
        case facts.LogLossFound() as fact:
            message.log_loss_found.loss.CopyFrom(_loss(fact))
        case facts.ContainerGone():
            message.container_gone.SetInParent()
        case facts.ProvenanceKnown() as fact:
            message.provenance_known.provenance.CopyFrom(_provenance(fact))
    return message


def _ended(fact: facts.Ended) -> attempts_pb2.Ended:
    message = attempts_pb2.Ended(
        state=_state(fact.state),
        reason=_reason(fact.reason),
        message=fact.message,
        exit_code=fact.exit_code,
        signal=fact.signal,
    )
    if fact.usage is not None:
        message.usage.CopyFrom(_usage(fact.usage))
    if fact.out_of_memory is not None:
        found = fact.out_of_memory
        message.out_of_memory.CopyFrom(
            runs_pb2.OutOfMemory(
                limit_bytes=found.limit_bytes,
                peak_bytes=found.peak_bytes,
                process=found.process,
                evidence=found.evidence,
            )
        )
    return message


def _crossing(fact: facts.SoftLimitCrossed) -> attempts_pb2.SoftLimitCrossed:
    return attempts_pb2.SoftLimitCrossed(
        crossing=fact.crossing,
        warning=runs_pb2.SoftLimitWarning(
            kind=f"SOFT_LIMIT_KIND_{fact.kind}",
            limit=fact.limit,
            peak=fact.peak,
            raise_time=_time(fact.raise_time),
            clear_time=_time(fact.clear_time) if fact.clear_time else None,
            seconds_above=fact.seconds_above,
        ),
    )


FIRST_PAUSE = 1_000_000
"""Added to the numbers of pauses, which share those of crossings on the wire."""


def _pause(fact: facts.OutputPaused) -> attempts_pb2.SoftLimitCrossed:
    return attempts_pb2.SoftLimitCrossed(
        crossing=FIRST_PAUSE + fact.number,
        warning=runs_pb2.SoftLimitWarning(
            kind=runs_pb2.SOFT_LIMIT_KIND_LOG_BACKLOG,
            limit=fact.quota,
            peak=fact.backlog,
            raise_time=_time(fact.raise_time),
            clear_time=_time(fact.clear_time) if fact.clear_time else None,
            seconds_above=fact.seconds,
        ),
    )


def _loss(fact: facts.LogLossFound) -> runs_pb2.LogLoss:
    return runs_pb2.LogLoss(
        kind=f"LOG_LOSS_KIND_{fact.kind}",
        offset=fact.offset,
        bytes=fact.bytes,
        time=_time(fact.time),
        message=fact.message,
    )


def _provenance(fact: facts.ProvenanceKnown) -> runs_pb2.Provenance:
    return runs_pb2.Provenance(
        image=fact.image,
        image_digest=fact.image_digest,
        uv_version=fact.uv_version,
        python_version=fact.python_version,
        packages=fact.packages,
        secret_versions=fact.secret_versions,
    )


def _usage(used: Usage) -> limits_pb2.Usage:
    return limits_pb2.Usage(**{name: value for name, value in vars(used).items() if value is not None})


def _state(state: State) -> str:
    return f"RUN_STATE_{state.value}"


def _reason(reason: Reason) -> str:
    return f"REASON_{reason.value}"
