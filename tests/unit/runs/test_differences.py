"""What differs between two runs."""

from dataclasses import replace

import pytest
from fastflow.pipelines.metadata import Limits
from fastflow_controlplane.runs.differences import (
    Change,
    PackageDifference,
    RunDifferences,
    ValueDifference,
    VariableDifference,
    compare,
)
from fastflow_controlplane.runs.model import AttemptView, Provenance, RunView
from fastflow_controlplane.runs.states import Reason, RunState

PROVENANCE = Provenance("runner:1", "sha256:1", "0.9", "3.11", ("numpy==2.1.0", "requests==2.32.3"), {"TOKEN": 1})


def attempt(provenance: Provenance | None = PROVENANCE, agent: str = "worker-1") -> AttemptView:
    return AttemptView(
        number=1,
        agent_id=agent,
        agent=agent,
        state=RunState.SUCCEEDED,
        reason=Reason.NONE,
        message="",
        exit_code=0,
        signal=None,
        assign_time=1,
        start_time=2,
        end_time=3,
        usage=None,
        out_of_memory=None,
        warnings=(),
        log_bytes=0,
        log_sealed=True,
        log_losses=(),
        released=True,
        provenance=provenance,
        slot="",
    )


RUN = RunView(
    id="01890000-0000-7000-8000-000000000001",
    pipeline="etl",
    state=RunState.SUCCEEDED,
    reason=Reason.NONE,
    message="",
    exit_code=0,
    attempt=1,
    attempts=(attempt(),),
    limits=Limits(1000, 2**29),
    create_time=1,
    queue_time=1,
    start_time=2,
    end_time=3,
    cancel_time=None,
    timeout_usec=0,
    environment_names=(),
    placements=(),
    request_id="",
    bundle_digest="sha256:0",
    commit="",
    tree="",
    trigger="api",
    priority=0,
    python_version="",
    etag="1",
)


def differences(other: RunView, a: dict[str, str] | None = None, b: dict[str, str] | None = None) -> RunDifferences:
    return compare(RUN, other, None, (a or {}, b or {}), ())


def test_a_run_that_ended_otherwise_with_the_same_of_everything_is_identical() -> None:
    other = replace(RUN, id="other", state=RunState.FAILED, exit_code=1, commit="abc", etag="9", end_time=99)
    assert differences(other).identical


def test_packages_are_compared_by_their_normalized_names() -> None:
    provenance = replace(PROVENANCE, packages=("Num.Py==2.2.0", "pandas==2.2.3", "requests==2.32.3"))
    first = replace(RUN, attempts=(attempt(replace(PROVENANCE, packages=("num_py==2.1.0", "requests==2.32.3"))),))
    found = compare(first, replace(RUN, attempts=(attempt(provenance),)), None, ({}, {}), ())
    assert found.packages == (
        PackageDifference("Num.Py", "2.1.0", "2.2.0"),
        PackageDifference("pandas", "", "2.2.3"),
    )
    assert not found.identical


def test_packages_are_compared_by_where_they_came_from_too() -> None:
    origin = "git+https://host/own.git"
    first, second = (
        replace(RUN, attempts=(attempt(replace(PROVENANCE, packages=packages)),))
        for packages in (
            (f"own @ {origin}@0123", "web @ https://host/a==b.whl", "both==1.0"),
            (f"Own @ {origin}@4567", "web @ https://host/a==b.whl", "both @ file:///fastflow/code/both.whl"),
        )
    )
    assert compare(first, second, None, ({}, {}), ()).packages == (
        PackageDifference("both", "1.0", "file:///fastflow/code/both.whl"),
        PackageDifference("Own", f"{origin}@0123", f"{origin}@4567"),
    )


def test_parameters_are_told_by_name_and_never_by_value() -> None:
    found = differences(
        RUN, {"DAY": "monday-value", "SAME": "x", "OLD": "old-value"}, {"DAY": "t", "SAME": "x", "N": ""}
    )
    assert found.parameters == (
        VariableDifference("DAY", Change.VALUE),
        VariableDifference("N", Change.ADDED),
        VariableDifference("OLD", Change.REMOVED),
    )
    assert "value" not in repr(found).replace("values", "").replace("VALUE", "").replace("'value'", "")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            replace(RUN, limits=Limits(1000, 2**30)),
            [ValueDifference("limits.memory_hard_bytes", str(2**29), str(2**30))],
        ),
        (replace(RUN, timeout_usec=1_500_000), [ValueDifference("timeout", "0s", "1.5s")]),
        (replace(RUN, pipeline="mail"), [ValueDifference("pipeline", "etl", "mail")]),
        (replace(RUN, attempts=(attempt(agent="worker-2"),)), [ValueDifference("agent", "worker-1", "worker-2")]),
        (
            replace(RUN, attempts=(attempt(replace(PROVENANCE, image_digest="sha256:2", uv_version="0.10")),)),
            [
                ValueDifference("provenance.image_digest", "sha256:1", "sha256:2"),
                ValueDifference("provenance.uv_version", "0.9", "0.10"),
            ],
        ),
        (
            replace(RUN, attempts=(attempt(replace(PROVENANCE, secret_versions={"TOKEN": 3, "KEY": 1})),)),
            [
                ValueDifference("provenance.secret_versions.KEY", "", "1"),
                ValueDifference("provenance.secret_versions.TOKEN", "1", "3"),
            ],
        ),
    ],
    ids=["limits", "timeout", "pipeline", "agent", "image and uv", "secrets"],
)
def test_a_value_that_differs_is_told_with_its_field(other: RunView, expected: list[ValueDifference]) -> None:
    found = differences(other)
    assert list(found.values) == expected
    assert not found.identical


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (
            replace(RUN, id="01890000-0000-7000-8000-00000000000b", state=RunState.QUEUED, attempts=()),
            "run 0000000b has no environment yet",
        ),
        (
            replace(
                RUN,
                id="01890000-0000-7000-8000-00000000000b",
                state=RunState.FAILED,
                attempts=(attempt(Provenance(secret_versions={"TOKEN": 2})),),
            ),
            "run 0000000b ended before its environment was there",
        ),
    ],
    ids=["waiting", "failed early"],
)
def test_what_a_run_never_had_is_not_compared_and_that_is_said(other: RunView, why: str) -> None:
    found = differences(other)
    assert (found.packages, found.values) == ((), ())
    assert [note.partition(":")[0] for note in found.notes] == [why]
