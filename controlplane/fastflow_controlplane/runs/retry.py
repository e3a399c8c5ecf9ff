"""Whether a run whose attempt ended is queued again: the pipeline's policy, pinned when the run was created."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastflow_controlplane.runs.states import RunState


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """An attempt that ended as one of `on` is followed by another, up to `attempts` times per run."""

    on: frozenset[RunState] = frozenset()
    attempts: int = 0


NO_RETRY = RetryPolicy()
"""What a run has whose pipeline says nothing."""


def policy_of(endings: Iterable[str], attempts: int) -> RetryPolicy:
    """Returns the policy that metadata asks for; `endings` are states in small letters."""
    return RetryPolicy(frozenset(RunState(ending.upper()) for ending in endings), attempts)


def is_retried(policy: RetryPolicy, ended: RunState, before: int, *, cancelled: bool) -> bool:
    """Returns whether a run whose attempt `ended` so is queued again.

    `before` is how many of its earlier attempts were followed by a retry. A run that somebody wants `cancelled` is
    never started again.
    """
    return ended in policy.on and before < policy.attempts and not cancelled


def explanation(attempt: int, what_happened: str, retry: int, policy: RetryPolicy) -> str:
    """Returns what is told of a run that waits for its retry number `retry`."""
    return f"attempt {attempt} is lost, {what_happened}; this is retry {retry} of {policy.attempts}"
