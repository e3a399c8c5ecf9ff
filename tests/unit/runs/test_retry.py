"""Whether a run is started again."""

import pytest
from fastflow_controlplane.runs.retry import NO_RETRY, RetryPolicy, is_retried, policy_of
from fastflow_controlplane.runs.states import RunState

ONCE = RetryPolicy(frozenset({RunState.LOST}), 1)


@pytest.mark.parametrize(
    ("policy", "ended", "before", "cancelled", "retried"),
    [
        (NO_RETRY, RunState.LOST, 0, False, False),
        (ONCE, RunState.LOST, 0, False, True),
        (ONCE, RunState.LOST, 1, False, False),
        (ONCE, RunState.LOST, 0, True, False),
        (ONCE, RunState.FAILED, 0, False, False),
        (RetryPolicy(frozenset({RunState.LOST}), 0), RunState.LOST, 0, False, False),
    ],
)
def test_the_policy_decides(policy: RetryPolicy, ended: RunState, before: int, cancelled: bool, retried: bool) -> None:
    assert is_retried(policy, ended, before, cancelled=cancelled) is retried


def test_metadata_names_endings_in_small_letters() -> None:
    assert policy_of(["lost"], 1) == ONCE
    assert policy_of([], 0) == NO_RETRY
