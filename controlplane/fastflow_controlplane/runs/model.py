"""What callers see of runs: plain values, no rows and no protobuf.

Field names follow `fastflow.v1`. Times are microseconds UTC, memory is bytes, CPU is milli-cores; None = unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastflow.pipelines.metadata import Limits

from fastflow_controlplane.runs.retry import NO_RETRY, RetryPolicy
from fastflow_controlplane.runs.states import TERMINAL, Reason, RunState


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Names one assignment; the claim token proves which one is meant."""

    run_id: str
    attempt: int
    claim_token: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used; fields of `fastflow.v1.Usage`. None = the host can not tell."""

    peak_memory_bytes: int | None = None
    cpu_usec: int | None = None
    throttled_usec: int | None = None
    working_set_bytes: int | None = None
    cpu_milli_cores: int | None = None
    pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    memory_pressure_percent: float | None = None
    cpu_pressure_percent: float | None = None
    io_pressure_percent: float | None = None


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The verdict on a memory limit; fields of `fastflow.v1.OutOfMemory`."""

    limit_bytes: int
    peak_bytes: int | None
    process: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SoftLimitWarning:
    """One crossing of a soft limit. `kind` is MEMORY (bytes) or CPU (milli-cores)."""

    kind: str
    limit: int
    peak: int
    raise_time: int
    clear_time: int | None
    seconds_above: float


@dataclass(frozen=True, slots=True)
class LogLoss:
    """A recorded loss of output. `kind` is TRUNCATED, DROPPED, TAMPERED or DISK; `bytes` None = unknown."""

    kind: str
    offset: int
    bytes: int | None
    time: int
    message: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What exactly ran; fields of `fastflow.v1.Provenance`."""

    image: str = ""
    image_digest: str = ""
    uv_version: str = ""
    python_version: str = ""
    packages: tuple[str, ...] = ()
    secret_versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def reported(self) -> bool:
        """True once the agent has told it: before that, the secrets' versions alone are known."""
        return bool(self.image or self.uv_version or self.python_version)


@dataclass(frozen=True, slots=True)
class Placement:
    """What placement decided about one agent; `agent` "" speaks of all."""

    agent: str
    fits: bool
    explanation: str


@dataclass(frozen=True, slots=True)
class LateResult:
    """What an agent told of an attempt after its end was decided without it; it changed nothing. `time` = its end."""

    state: RunState
    reason: Reason
    message: str
    exit_code: int | None
    signal: int | None
    time: int


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One placement of a run on one agent."""

    number: int
    agent_id: str
    agent: str
    state: RunState
    reason: Reason
    message: str
    exit_code: int | None
    signal: int | None
    assign_time: int
    start_time: int | None
    end_time: int | None
    usage: Usage | None
    out_of_memory: OutOfMemory | None
    warnings: tuple[SoftLimitWarning, ...]
    log_bytes: int
    log_sealed: bool
    log_losses: tuple[LogLoss, ...]
    released: bool
    provenance: Provenance | None
    slot: str
    log_remove_time: int | None = None
    log_removed_by: str = ""
    late_result: LateResult | None = None


@dataclass(frozen=True, slots=True)
class Rerun:
    """What a run takes over of the run `run_id`; fields of `fastflow.v1.Rerun`."""

    run_id: str
    latest: bool
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunView:
    """One run with its attempts, oldest first."""

    id: str
    pipeline: str
    state: RunState
    reason: Reason
    message: str
    exit_code: int | None
    attempt: int
    attempts: tuple[AttemptView, ...]
    limits: Limits
    create_time: int
    queue_time: int
    start_time: int | None
    end_time: int | None
    cancel_time: int | None
    timeout_usec: int
    environment_names: tuple[str, ...]
    placements: tuple[Placement, ...]
    request_id: str
    bundle_digest: str
    commit: str
    tree: str
    trigger: str
    priority: int
    python_version: str
    etag: str
    commit_author: str = ""
    commit_subject: str = ""
    ref: str = ""
    default_environment: Mapping[str, str] = field(default_factory=dict)
    rerun: Rerun | None = None
    retry: RetryPolicy = NO_RETRY

    @property
    def terminal(self) -> bool:
        """True once nothing but a retry can change the state."""
        return self.state in TERMINAL

    @property
    def provenance(self) -> Provenance | None:
        """Of the newest attempt."""
        return self.attempts[-1].provenance if self.attempts else None


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of runs, newest first; `next_page_token` "" = the last page."""

    runs: tuple[RunView, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """A request for a run. `environment` holds the values of --env; `request_id` "" = not repeatable."""

    pipeline: str
    environment: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    priority: int = 0
    ref: str = ""
    trigger: str = "api"


@dataclass(frozen=True, slots=True)
class FailedPlacements:
    """How often an agent could not start a run, and when that was last (microseconds UTC)."""

    count: int
    last_time: int


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """What placement needs to know of a run that waits. `failed_on` = agent id → placements that did not start.

    `lost_on` = number of a lost attempt whose program may still run → id of its agent.
    """

    run_id: str
    pipeline: str
    priority: int
    queue_time: int
    limits: Limits
    python_version: str
    failed_on: Mapping[str, FailedPlacements]
    bundle_digest: str = ""
    lost_on: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """Capacity that an attempt holds until its container is gone."""

    run_id: str
    attempt: int
    agent_id: str
    cpu_milli_cores: int
    memory_bytes: int
