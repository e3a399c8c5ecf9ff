"""What a Docker runtime is told at its start: every knob and every time constant of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastflow_agent.runtime.base import Egress


@dataclass(frozen=True)
class DockerTimes:
    """Time constants, in seconds."""

    probe: float = 10.0
    """Patience with the probe: an engine answers in milliseconds, on a crowded host in seconds, a hung one never."""

    question: float = 20.0
    """Patience with an inspection or a list; on a crowded two-core host they were seen to take three."""

    action: float = 120.0
    """Patience with create, start, kill and remove: a start takes a second, under emulation and load up to thirty."""

    reinspect: float = 5.0
    """How often all waiting slots are looked at together, should the events stream have missed an end."""

    event_retry: float = 1.0
    """Pause before the events stream is opened anew: an engine needs seconds to come back."""

    oom_flag: float = 0.1
    """The engine hears of an OOM and of the exit apart, in any order; its flag is asked for this long after it."""

    image_look: float = 60.0
    """Patience with the one container that looks for Python and uv in a new image."""


@dataclass(frozen=True)
class DockerOptions:
    """How containers are made on this host. `env_dir` comes from `release.environments_folder`."""

    agent_id: str
    data_dir: Path
    env_dir: Path
    image: str
    docker_host: str = "unix:///var/run/docker.sock"
    container_uid: int = 1000
    egress: Egress = field(default_factory=Egress)
    cgroup_base: Path = Path("/sys/fs/cgroup")

    pids_limit: int = 4096
    """Processes and threads of one run: data libraries start one thread per core each; a fork bomb needs thousands."""

    oom_score_adj: int = 300
    """When the host itself runs out of memory, runs go before the agent and the engine."""

    preparer_memory_bytes: int = 4 << 30
    """Memory of a preparer, which may have to compile a package."""

    preparer_cpu_shares: int = 102
    """CPU of a preparer where runs want it too: a run has 1024 (of version 2's weight, about 4 against 100)."""

    preparer_oom_score_adj: int = 600
    """When the host runs out of memory, a preparation goes before any run: it can be begun again."""

    threads: int = 8
    """Calls to the engine at once; a two-core engine gains nothing from more."""

    times: DockerTimes = field(default_factory=DockerTimes)
