"""Which environments the pipelines there are need, each once; a pipeline that changes has no other looked at."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.metadata import matches_python

from fastflow_controlplane.agents.model import AgentFacts, EnvironmentKey
from fastflow_controlplane.sources.model import PipelineView


@dataclass(frozen=True, slots=True)
class WantedEnvironment:
    """What the code of a bundle (`bundle_size` bytes) needs, and the least that one of its pipelines reserves.

    Agents with less capacity, or another Python, never run it.
    """

    bundle_digest: str
    bundle_size: int
    python_version: str
    cpu_milli_cores: int
    memory_bytes: int

    @property
    def key(self) -> EnvironmentKey:
        """What it is told apart by."""
        return self.bundle_digest, self.python_version

    @property
    def cost(self) -> tuple[int, int, int]:
        """What is compared to find the one that is had most easily: the size of its code, and then what it asks for."""
        return self.bundle_size, self.cpu_milli_cores, self.memory_bytes

    def may_run_on(self, facts: AgentFacts) -> bool:
        """Returns whether a run of it could ever be placed on this agent."""
        return (
            self.cpu_milli_cores <= facts.capacity.cpu_milli_cores
            and self.memory_bytes <= facts.capacity.memory_bytes
            and (
                not self.python_version
                or any(matches_python(self.python_version, version) for version in facts.runtime.python_versions)
            )
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What one pipeline needs; `has_packages` False = any environment of its Python serves it."""

    environment: WantedEnvironment
    has_packages: bool


def need_of(pipeline: PipelineView) -> Need | None:
    """Returns what a pipeline needs; None = it can not run."""
    metadata = pipeline.metadata
    if metadata is None or pipeline.state is not PipelineState.READY or not pipeline.bundle_digest:
        return None
    environment = WantedEnvironment(
        bundle_digest=pipeline.bundle_digest,
        bundle_size=pipeline.bundle_size,
        python_version=metadata.python_version,
        cpu_milli_cores=metadata.limits.cpu_hard_milli_cores,
        memory_bytes=metadata.limits.memory_hard_bytes,
    )
    return Need(environment, pipeline.has_requirements or pipeline.has_header)


Before = Mapping[EnvironmentKey, WantedEnvironment | None]
"""What was wanted, where that changed; None = nothing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What an agent is to prepare besides what it was told, and what no longer."""

    items: Sequence[WantedEnvironment]
    gone: Sequence[EnvironmentKey]


class WantedSet:
    """What is to be prepared for the pipelines whose needs it was told, each environment once.

    Pipelines that need no packages share one environment per Python, which comes with any other; where there is no
    other, that with the smallest code stands for all.
    """

    def __init__(self) -> None:
        self._needs: dict[str, Need] = {}
        self._users: dict[EnvironmentKey, dict[str, WantedEnvironment]] = {}
        self._served: Counter[str] = Counter()
        self._plain: dict[str, dict[str, WantedEnvironment]] = {}
        self._smallest: dict[str, str] = {}
        self._stand_ins: dict[str, WantedEnvironment] = {}
        self._wanted: dict[EnvironmentKey, WantedEnvironment] = {}

    def all_on(self, facts: AgentFacts) -> tuple[WantedEnvironment, ...]:
        """Returns what this agent is to prepare."""
        return tuple(wanted for wanted in self._wanted.values() if wanted.may_run_on(facts))

    def difference_on(self, facts: AgentFacts, before: Before) -> Difference:
        """Returns what changed for this agent, if it was told what was wanted `before`."""

        def is_for_it(wanted: WantedEnvironment | None) -> bool:
            return wanted is not None and wanted.may_run_on(facts)

        came = [key for key, former in before.items() if not is_for_it(former) and is_for_it(self._wanted.get(key))]
        gone = [key for key, former in before.items() if is_for_it(former) and not is_for_it(self._wanted.get(key))]
        return Difference([self._wanted[key] for key in came], gone)

    def note(self, pipeline: str, need: Need | None) -> Before:
        """Notes what a pipeline needs now, None = nothing, and returns what is no longer as it was."""
        former = self._needs.get(pipeline)
        if need == former:
            return {}
        if former is not None:
            self._take_out(pipeline, former)
        if need is not None:
            self._put_in(pipeline, need)
        now: dict[EnvironmentKey, WantedEnvironment | None] = {}
        for each in (former, need):
            if each is not None and each.has_packages:
                now[each.environment.key] = _least(self._users.get(each.environment.key, {}).values())
        for version in {each.environment.python_version: None for each in (former, need) if each is not None}:
            now |= self._weigh_stand_in(version)
        before = {key: self._wanted.get(key) for key in now}
        for key, wanted in now.items():
            if wanted is None:
                self._wanted.pop(key, None)
            else:
                self._wanted[key] = wanted
        return {key: wanted for key, wanted in before.items() if wanted != now[key]}

    def _take_out(self, pipeline: str, need: Need) -> None:
        del self._needs[pipeline]
        key, version = need.environment.key, need.environment.python_version
        if not need.has_packages:
            del self._plain[version][pipeline]
            if self._smallest[version] == pipeline:
                del self._smallest[version]
            return
        del self._users[key][pipeline]
        if not self._users[key]:
            del self._users[key]
            self._served[version] -= 1

    def _put_in(self, pipeline: str, need: Need) -> None:
        self._needs[pipeline] = need
        key, version = need.environment.key, need.environment.python_version
        if not need.has_packages:
            plain = self._plain.setdefault(version, {})
            plain[pipeline] = need.environment
            known = self._smallest.get(version)
            if known is not None and need.environment.cost < plain[known].cost:
                self._smallest[version] = pipeline
            return
        if key not in self._users:
            self._users[key] = {}
            self._served[version] += 1
        self._users[key][pipeline] = need.environment

    def _weigh_stand_in(self, version: str) -> dict[EnvironmentKey, WantedEnvironment | None]:
        """Returns what is to be wanted for the pipelines of this Python that need no packages, and what no longer."""
        plain = self._plain.get(version)
        if plain and version not in self._smallest:
            self._smallest[version] = min(plain, key=lambda pipeline: plain[pipeline].cost)
        former = self._stand_ins.pop(version, None)
        now: dict[EnvironmentKey, WantedEnvironment | None] = {former.key: None} if former else {}
        if plain and not self._served[version]:
            found = plain[self._smallest[version]]
            now[found.key] = self._stand_ins[version] = found
        return now


def _least(users: Collection[WantedEnvironment]) -> WantedEnvironment | None:
    """Returns one that stands for all these of the same code: it asks for the least that any does; None = no users."""
    if not users:
        return None
    return replace(
        next(iter(users)),
        cpu_milli_cores=min(each.cpu_milli_cores for each in users),
        memory_bytes=min(each.memory_bytes for each in users),
    )
