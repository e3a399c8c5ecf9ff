"""The border to the protocol: what a peer of another version may send must not be a fault."""

from typing import Any

import pytest
from fastflow.agent.v1 import attempts_pb2, desired_pb2
from fastflow.pipelines.metadata import Limits
from fastflow.v1 import limits_pb2, runs_pb2
from fastflow_controlplane.agents import events, wire
from fastflow_controlplane.agents.assignments import Deliveries, Delivery
from fastflow_controlplane.agents.desired_pages import PAGE_BYTES, delta_pages, full_pages
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import Reason, RunState
from fastflow_controlplane.store.queries.desired import DesiredRow

KEY = AttemptKey("run", 1, "token")


LATER: Any = 99
"""A value that only a later protocol knows."""


def read(**fact: Any) -> events.Fact:
    event = attempts_pb2.AttemptEvent(sequence=1, **fact)
    (translated,) = wire.read_events(attempts_pb2.AttemptEvents(events=[event]))
    return translated.fact


def row() -> DesiredRow:
    return DesiredRow(
        key=KEY,
        action="RUN",
        stop_cause="",
        stop_grace_usec=None,
        known_seq=0,
        ended=False,
        log_bytes=0,
        log_sealed=False,
        released=False,
        pipeline="p",
        bundle_digest="sha256:0",
        bundle_size=1,
        limits=Limits(1, 2, 3, 4),
        timeout_usec=1_500_000,
        default_environment={},
        environment_names=(),
        parameters=None,
        secret_versions={},
        python_version="",
        pinned_packages=("numpy==2.1.0",),
        log_limit_bytes=5,
        on_log_backlog="DROP",
        revision=1,
    )


def test_an_end_keeps_the_difference_between_zero_and_unknown() -> None:
    ended = attempts_pb2.Ended(
        state=runs_pb2.RUN_STATE_FAILED,
        reason=runs_pb2.REASON_OOM_KILLED,
        exit_code=137,
        usage=limits_pb2.Usage(cpu_usec=0),
        out_of_memory=runs_pb2.OutOfMemory(limit_bytes=1, process="unknown"),
    )
    fact = read(ended=ended)
    assert isinstance(fact, events.Ended)
    assert (fact.state, fact.reason, fact.exit_code, fact.signal) == (RunState.FAILED, Reason.OOM_KILLED, 137, None)
    assert fact.usage is not None
    assert (fact.usage.cpu_usec, fact.usage.peak_memory_bytes) == (0, None)
    assert fact.out_of_memory is not None
    assert fact.out_of_memory.peak_bytes is None


def test_states_facts_and_reasons_of_a_later_protocol_are_no_fault() -> None:
    assert read() == events.Unrecognized()
    assert read(state_changed=attempts_pb2.StateChanged(state=LATER)) == events.Unrecognized()
    assert read(ended=attempts_pb2.Ended(state=LATER)) == events.Unrecognized()
    lost = read(log_loss_found=attempts_pb2.LogLossFound(loss=runs_pb2.LogLoss(kind=LATER, message="why")))
    assert isinstance(lost, events.LogLossFound)
    assert (lost.loss.kind, lost.loss.message) == ("UNSPECIFIED", "why")
    fact = read(ended=attempts_pb2.Ended(state="RUN_STATE_SUCCEEDED", reason=LATER))
    assert isinstance(fact, events.Ended)
    assert fact.reason is Reason.NONE


def test_every_fact_of_the_protocol_is_known_by_its_name() -> None:
    facts = {field.name for field in attempts_pb2.AttemptEvent.DESCRIPTOR.oneofs_by_name["fact"].fields}
    assert facts == set(events.KINDS.values()) - {"unrecognized"}


@pytest.mark.parametrize("name", ["STALE_ATTEMPT", "BAD_TOKEN", "ALREADY_TERMINAL", "UNKNOWN_ATTEMPT", "GAP"])
def test_every_rejection_of_the_protocol_can_be_sent(name: str) -> None:
    message = wire.acknowledgements([events.Acknowledgement("run", 1, 5, getattr(events, name))])
    assert message.events_ack.acks[0].rejection == attempts_pb2.EventRejection.Value(f"EVENT_REJECTION_{name}")


def test_only_run_carries_what_to_run() -> None:
    run = wire.desired_attempt(Delivery(KEY, "RUN", row=row(), environment={"A": "1"}))
    assert (run.spec.timeout.ToMilliseconds(), dict(run.spec.environment)) == (1500, {"A": "1"})
    assert list(run.spec.pinned_packages) == ["numpy==2.1.0"]
    for action in ("STOP", "FORGET", "ORPHAN"):
        delivery = Delivery(KEY, action, stop_cause="CANCEL", row=row(), environment={"A": "1"})
        assert not wire.desired_attempt(delivery).HasField("spec")


def test_an_empty_full_set_is_one_last_page() -> None:
    (page,) = full_pages(Deliveries(7, 1, True, None, ()))
    assert (page.full, page.last_page, page.revision, page.agent.draining) == (True, True, 7, True)


def test_large_assignments_are_spread_over_pages_and_differences_chain() -> None:
    value = "x" * (PAGE_BYTES // 3)
    deliveries = Deliveries(
        revision=14,
        session_epoch=1,
        draining=False,
        drain_deadline_time=None,
        attempts=tuple(
            Delivery(AttemptKey(f"run {n}", 1, ""), "RUN", row=row(), environment={"A": value}, revision=10 + n)
            for n in range(5)
        ),
    )
    full = list(full_pages(deliveries))
    assert [page.last_page for page in full] == [False, False, True]
    assert all(page.ByteSize() < 2 * PAGE_BYTES for page in full)

    pages = list(delta_pages(deliveries, 9, desired_pb2.DesiredAgent()))
    assert [(page.previous_revision, page.revision) for page in pages] == [(9, 11), (11, 13), (13, 14)]
    names = [attempt.key.run_id for page in pages for attempt in page.attempts]
    assert names == [f"run {n}" for n in range(5)]
    assert all(isinstance(page, desired_pb2.DesiredPage) and not page.full for page in pages)


def test_what_is_desired_of_the_agent_itself_comes_before_attempts_and_only_when_it_changed() -> None:
    attempt = Delivery(KEY, "RUN", row=row(), revision=12)
    deliveries = Deliveries(12, 1, True, 1_000_000, (attempt,))
    first, second = delta_pages(deliveries, 9, desired_pb2.DesiredAgent())
    assert (first.previous_revision, first.revision, first.agent.draining) == (9, 9, True)
    assert first.agent.drain_deadline.seconds == 1
    assert (second.previous_revision, second.revision, second.HasField("agent")) == (9, 12, False)
    assert [page.HasField("agent") for page in delta_pages(deliveries, 9, first.agent)] == [False]
