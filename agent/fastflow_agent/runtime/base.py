"""The contract every runtime keeps: a slot is created, started, released, observed and removed.

A slot's container exists before its run is known to it: `create` and `start` are told nothing of a run. Until
`release` delivers the environment, the start wrapper inside only waits. What a runtime knows survives the agent:
a new `Runtime` object over the same data folder finds every slot again (`slots`).
"""

from __future__ import annotations

import signal as signals
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow_agent.model import Limits, SlotId

if TYPE_CHECKING:
    from fastflow_agent.cgroups.paths import SlotGroup

WRAPPER_FAILED = 125
"""Exit code of the start wrapper when it fails itself, before the program began."""

KILLED = 128 + signals.SIGKILL
"""Exit code of a program that SIGKILL has ended."""


class RuntimeUnavailable(Exception):
    """The engine is stopped or does not answer. The message is for people; the same call may succeed later."""


class ImageMissing(Exception):
    """The runner image is not there. The message names the fix."""


class RuntimeFault(Exception):
    """This one operation failed for good; repeating it with the same arguments is no use."""


class HostFault(RuntimeFault):
    """This host could not do it: its disk, its memory, its control groups. Another one may, or this one later."""


class ContainerRemoved(HostFault):
    """Somebody else removed the container before its start. The same run may be started anew, here or elsewhere."""


@dataclass(frozen=True)
class SlotPaths:
    """All paths of one slot on the host.

    `root` is the agent's alone. The container sees `log`, `out`, `tmp`, `upper` (through the overlay) and `env`;
    what stands in them is the pipeline's, so nothing there may be opened without O_NOFOLLOW.
    """

    root: Path
    env: Path

    @classmethod
    def of(cls, data_dir: Path, env_dir: Path, slot: SlotId) -> SlotPaths:
        """Paths of `slot` under the agent's data folder and its tmpfs folder for environments."""
        return cls(root=data_dir / "slots" / slot, env=env_dir / slot)

    @property
    def journal(self) -> Path:
        """The attempt's journal; no runtime touches it."""
        return self.root / "journal"

    @property
    def log(self) -> Path:
        """The one file both output streams are appended to."""
        return self.root / "log"

    @property
    def out(self) -> Path:
        """Mounted at /fastflow/out, writable."""
        return self.root / "out"

    @property
    def tmp(self) -> Path:
        """Mounted at /tmp: on disk, so that what is written there is not memory."""
        return self.root / "tmp"

    @property
    def upper(self) -> Path:
        """What the container writes into the uv cache; thrown away with the slot."""
        return self.root / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work folder; on the same file system as `upper`."""
        return self.root / "work"


@dataclass(frozen=True)
class SlotSpec:
    """What a container is made of; it names no run.

    `code` is the unpacked bundle and `cache` the uv generation, both only read. `offline` says that the generation
    was seen to hold the whole environment (`PreparerResult.offline`): uv then asks no index whether its answers still
    hold, which took 170 of 205 ms with five packages cached, and no run gets other versions than were prepared.
    """

    slot: SlotId
    limits: Limits
    paths: SlotPaths
    code: Path
    cache: Path
    python_version: str = ""
    offline: bool = False
    cluster: str = ""


class SlotState(Enum):
    """Where the engine sees a slot's container."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True)
class Sent:
    """A signal that the engine was told to send to a slot, by whomever, and when (UTC, this host's clock)."""

    number: int
    time: datetime


@dataclass(frozen=True)
class Observation:
    """What the engine says of a slot: evidence for a verdict, not the verdict.

    `oom_flag` is the engine's own guess, which may come later than the end (see `Runtime.oom_flag`), and `error` its
    message when it could not start the container.
    `wrapper_failed` is the start wrapper's own word that it, not the program, ended with WRAPPER_FAILED.
    `finished_at` (UTC, this host's clock) is the end itself, not when it was noticed. `end_unseen`: the engine did not
    see the end itself, so nobody knows its exit code, and `finished_at` is when the engine noticed; where there is an
    `exit_code` all the same, it may be the program's own or what the engine gives for such an end. `signals` are those
    sent by way of the engine, ascending in time, as far as it still tells of them: the agent's own and anybody else's.
    """

    state: SlotState
    exit_code: int | None = None
    oom_flag: bool = False
    error: str = ""
    wrapper_failed: bool = False
    finished_at: datetime | None = None
    end_unseen: bool = False
    signals: tuple[Sent, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What `probe` found: reported to the control plane with every session.

    `cgroup` is "v1", "v2", "hybrid" or "none". `image_digest`, `python_versions` (ascending, "3.11.2") and `uv_version`
    are empty while the image is missing, and `problem` then holds the sentence that says how to mend it.
    `unconfined` is empty where limits and isolation hold; else one sentence on what is missing.
    """

    runtime: str
    runtime_version: str
    cgroup: str
    image: str = ""
    image_digest: str = ""
    python_versions: tuple[str, ...] = ()
    uv_version: str = ""
    problem: str = ""
    unconfined: str = ""


@dataclass(frozen=True)
class Egress:
    """How runs and preparers reach the world; empty means not set.

    `ca_bundle` is a host file, mounted read-only. `network` is the engine's network name. Proxies and indexes may hold
    logins: `runtime.indexes` keeps those of indexes from runs. `index_netrc` is a host file with more of them, read
    anew for each preparer.
    """

    network: str = "bridge"
    ca_bundle: Path | None = None
    http_proxy: str = field(default="", repr=False)
    https_proxy: str = field(default="", repr=False)
    no_proxy: str = ""
    index_url: str = field(default="", repr=False)
    extra_index_urls: tuple[str, ...] = field(default=(), repr=False)
    index_netrc: Path | None = None


PREPARE_SECONDS = 3600.0
"""The longest preparation: large wheels over a slow line, or one that compiles."""


class PreparerStep(Enum):
    """What a preparer has uv do, and so what it is given."""

    FETCH = "fetch"
    """Bring wheels and what indexes say into the cache, and run no code of any package: with network and logins.

    uv is kept from building by the cache it is given (`uvcache.tree.close_to_builds`)."""

    INSTALL = "install"
    """Make the environment of what the cache holds. Code of packages may run, so: without network and logins."""

    BUILD = "build"
    """Both, and build what is no wheel. Code of packages runs, with network, and sees the logins."""


@dataclass(frozen=True)
class PreparerSpec:
    """One preparation of a uv cache.

    `code` is a folder like a pipeline's that holds no code: `requirements.txt` if there is one, and a `main.py` of the
    PEP 723 header alone (or empty). It is run as a pipeline is run, at the same paths, so that what uv keeps is what
    it will look for. `cache` is the writable copy of a generation, owned by the container's uid. `name` is unique
    among the living preparers of this agent: letters, digits and dashes. `environment` is set on top of what a run's
    uv gets. It is stopped after `seconds`.
    """

    name: str
    code: Path
    cache: Path
    python_version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    step: PreparerStep = PreparerStep.BUILD
    seconds: float = PREPARE_SECONDS


@dataclass(frozen=True)
class PreparerResult:
    """How a preparation ended. `output` is uv's own (its last MiB at most).

    `offline` is true when a run's command then succeeded without any network: a run may say so to uv.
    """

    exit_code: int
    output: bytes
    offline: bool = field(default=False)


class Runtime(ABC):
    """Containers, or what stands in for them. Every method may raise RuntimeUnavailable, and none blocks the loop."""

    @abstractmethod
    async def probe(self) -> Facts:
        """Ask the engine who it is, in bounded time whatever else hangs; RuntimeUnavailable if it does not answer.

        Also looks at the image. A missing image is told in `Facts.problem`, not raised.
        """

    @abstractmethod
    async def prepare_folders(self, spec: SlotSpec) -> None:
        """Make the slot's folders and its empty log, with the owners the container needs. Idempotent.

        Raises HostFault.
        """

    @abstractmethod
    async def create(self, spec: SlotSpec) -> None:
        """Create the slot's container; one that exists is kept. Raises ImageMissing, RuntimeFault or HostFault."""

    @abstractmethod
    async def start(self, slot: SlotId) -> None:
        """Start the container up to its wait for release; no error if it runs.

        Raises RuntimeFault, HostFault or ContainerRemoved.
        On return an OOM in any of its processes ends the whole container, where the kernel can do that.
        """

    @abstractmethod
    async def release(self, slot: SlotId, environment: Mapping[str, str]) -> bool:
        """Deliver the environment and let the program run; a second call has no effect.

        True once the wrapper has been told; false if the container ended before (`observe` tells why). Raises
        RuntimeFault for a name or value no environment can hold, and HostFault when it can not be written.
        """

    @abstractmethod
    async def was_released(self, slot: SlotId) -> bool:
        """Whether the wrapper took its environment: true from then on, also after the end, until `remove`.

        After a reboot nobody knows: then true of all that was started, whether a release was begun or not.
        """

    @abstractmethod
    async def observe(self, slot: SlotId) -> Observation:
        """Ask the engine for the slot's state now."""

    @abstractmethod
    async def wait(self, slot: SlotId) -> Observation:
        """Return once the slot is EXITED or ABSENT; waits through restarts of the engine. Cancellable.

        The engine's OOM flag is not waited for. Only what this returns has `end_unseen` and `signals`.
        """

    @abstractmethod
    async def oom_flag(self, slot: SlotId) -> bool:
        """The engine's own guess whether an ended slot ran out of memory, once it has had time to hear of it."""

    @abstractmethod
    async def signal(self, slot: SlotId, signal: int) -> bool:
        """Signal the container's program; false if it had ended before, so nothing was delivered.

        A frozen one is thawed, so that it hears the signal.
        """

    @abstractmethod
    async def freeze(self, slot: SlotId) -> bool:
        """Stop all processes of the slot where they are, until `thaw`; false if they had ended. Idempotent."""

    @abstractmethod
    async def thaw(self, slot: SlotId) -> None:
        """Let a frozen slot go on; no error if it was not frozen or has ended."""

    @abstractmethod
    async def remove(self, slot: SlotId) -> None:
        """Remove container, overlay, environment and control group; kills what runs. Idempotent.

        Raises RuntimeFault for what can not be removed now: called again, it goes on.
        Log, journal and the other folders under `SlotPaths.root` stay: they are the caller's.
        """

    @abstractmethod
    async def slots(self) -> dict[SlotId, Observation]:
        """All slots of this agent the engine knows, whoever created them."""

    @abstractmethod
    def group(self, slot: SlotId) -> SlotGroup | None:
        """Reader of the slot's control groups; None where there are none."""

    @abstractmethod
    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        """Run uv once to fill a cache; what uv refuses is a result, not an exception.

        Raises ImageMissing or RuntimeFault. A preparer left behind by a dead agent is removed first.
        """

    @abstractmethod
    async def remove_preparers(self) -> None:
        """Remove the preparers that a dead agent left behind; only the first call finds any.

        Raises RuntimeUnavailable or RuntimeFault.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of threads and connections. Containers keep running."""
