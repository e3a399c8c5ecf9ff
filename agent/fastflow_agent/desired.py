"""What the control plane wants of an attempt. In memory only: it holds secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fastflow_agent.model import AttemptKey, Limits, StopCause


class Action(StrEnum):
    """What is to become of an attempt."""

    RUN = "RUN"
    STOP = "STOP"
    FORGET = "FORGET"
    ORPHAN = "ORPHAN"
    WAIT = "WAIT"
    """The control plane knows the attempt, and will say later what is to become of it."""


@dataclass(frozen=True)
class Secret:
    """A secret environment variable; its value stays out of every text."""

    name: str
    value: bytes = field(repr=False)
    version: int = 0


@dataclass(frozen=True)
class RunSpec:
    """What to run. Times in seconds (`timeout` from the release, 0 = none), sizes in bytes.

    `pause_on_backlog`: output that can neither be delivered nor kept freezes the program, instead of being dropped.
    `packages`, as `uvcache.origins.told` tells them, are those of the run that this one repeats; none = what the code's
    needs resolve to.
    """

    pipeline: str
    bundle_digest: str
    bundle_size: int
    limits: Limits
    timeout: float
    stop_grace: float
    python_version: str
    log_limit: int
    variables: Mapping[str, str] = field(repr=False)
    secrets: tuple[Secret, ...] = ()
    packages: tuple[str, ...] = ()
    pause_on_backlog: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """All variables, secrets included; bytes that are no UTF-8 pass through unchanged."""
        values = {secret.name: secret.value.decode("utf-8", "surrogateescape") for secret in self.secrets}
        return {**self.variables, **values}


@dataclass(frozen=True)
class Desired:
    """The control plane's word on one attempt.

    `known_seq` is the last event it has stored, `durable_offset` the log bytes it has on disk. `spec` comes with RUN;
    `stop_cause` and `stop_grace` (seconds) with STOP. Without `masks_known`, no byte of the log may leave this
    host yet. `ended`: its end and its whole log are known, and only its container may be left.
    """

    key: AttemptKey
    action: Action
    known_seq: int = 0
    durable_offset: int = 0
    spec: RunSpec | None = None
    stop_cause: StopCause = StopCause.CANCEL
    stop_grace: float | None = None
    secrets: tuple[Secret, ...] = ()
    masks_known: bool = True
    ended: bool = False

    @property
    def masks(self) -> tuple[bytes, ...]:
        """Values that must not be seen in the log."""
        known = self.spec.secrets if self.spec else self.secrets
        return tuple(secret.value for secret in known)
