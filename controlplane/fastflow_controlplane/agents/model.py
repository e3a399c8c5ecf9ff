"""What callers see of agents: plain values, no rows and no protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.runs.states import RunState


class AgentState(StrEnum):
    """Names as in `fastflow.v1.AgentState`, without prefix."""

    ACTIVE = "ACTIVE"
    SUSPECT = "SUSPECT"
    OFFLINE = "OFFLINE"
    DRAINING = "DRAINING"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True, slots=True)
class Capacity:
    """CPU in milli-cores, memory in bytes; `slots` = attempts that may live at once, 0 = no such limit."""

    cpu_milli_cores: int = 0
    memory_bytes: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """Something an operator should know; fields of `fastflow.v1.Condition`. `since` is microseconds UTC."""

    type: str
    message: str
    blocks_placement: bool
    since: int


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What runs containers on an agent; fields of `fastflow.agent.v1.RuntimeFacts`."""

    runtime: str = ""
    runtime_version: str = ""
    cgroup: str = ""
    image: str = ""
    image_digest: str = ""
    python_versions: tuple[str, ...] = ()
    uv_version: str = ""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What an agent says of itself in Hello."""

    agent_id: str
    name: str
    instance_id: str
    boot_id: str = ""
    machine_id: str = ""
    version: str = ""
    host_name: str = ""
    kernel: str = ""
    capacity: Capacity = field(default_factory=Capacity)
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: RuntimeFacts = field(default_factory=RuntimeFacts)


EnvironmentKey = tuple[str, str]
"""What an environment is told apart by: digest of the bundle whose code needs it, and the Python version asked for."""


@dataclass(frozen=True, slots=True)
class EnvironmentResult:
    """How far an environment is on an agent; fields of `fastflow.v1.PipelineEnvironment`, state without prefix.

    Times are microseconds UTC, `duration_usec` is None where preparing it was not seen.
    """

    state: str
    message: str = ""
    duration_usec: int | None = None
    packages: tuple[str, ...] = ()
    prepare_time: int | None = None
    retry_time: int | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """What an agent tells of environments; of those that are `gone` it tells nothing any longer.

    `full` = that is all: what was told before no longer holds.
    """

    results: Mapping[EnvironmentKey, EnvironmentResult] = field(default_factory=dict)
    gone: Sequence[EnvironmentKey] = ()
    full: bool = False


@dataclass(frozen=True, slots=True)
class EnvironmentView:
    """An environment on the agent of this name."""

    agent: str
    result: EnvironmentResult


@dataclass(frozen=True, slots=True)
class AgentAttempt:
    """An attempt that holds capacity on an agent."""

    run_id: str
    attempt: int
    pipeline: str


@dataclass(frozen=True, slots=True)
class ReportedAttempt:
    """An attempt that an agent says it has; `state` None = one of a later protocol, `pipeline` "" = not told."""

    key: AttemptKey
    state: RunState | None
    pipeline: str


@dataclass(frozen=True, slots=True)
class UnknownAttempt:
    """An attempt that an agent has, and the database does not; fields of `fastflow.v1.UnknownAttempt`.

    `run_state` None = the database does not know its run either.
    """

    run_id: str
    attempt: int
    pipeline: str
    state: RunState | None
    run_state: RunState | None


@dataclass(frozen=True, slots=True)
class DrainView:
    """How far an agent is emptied; fields of `fastflow.v1.Drain`. Times are microseconds UTC.

    `quarantined` = attempts may run there that the database does not know.
    """

    start_time: int
    deadline_time: int | None
    attempts: int
    logs: int
    quarantined: bool

    @property
    def complete(self) -> bool:
        """True once nothing of the agent is needed any more."""
        return not self.attempts and not self.logs and not self.quarantined


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent as shown to people. Times are microseconds UTC; `message` says why it is where it is."""

    facts: AgentFacts
    state: AgentState
    reserved: Capacity
    conditions: tuple[Condition, ...]
    attempts: tuple[AgentAttempt, ...]
    last_seen_time: int
    connect_time: int
    session_epoch: int
    message: str
    environments: tuple[str, ...] = ()
    drain: DrainView | None = None
    unknown_attempts: tuple[UnknownAttempt, ...] | None = None
    """None = it is in no quarantine, has not told what it has, or nobody asked for this agent alone."""

    @property
    def name(self) -> str:
        """Name for people, unique in the cluster."""
        return self.facts.name


@dataclass(frozen=True, slots=True)
class AgentPage:
    """One page of agents by name; `next_page_token` "" = the last page."""

    agents: tuple[AgentView, ...]
    next_page_token: str
