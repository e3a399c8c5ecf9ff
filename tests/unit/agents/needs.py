"""Pipelines that need environments, and agents that may have to prepare them."""

from dataclasses import replace

from fastflow.pipelines.discovery import PipelineState
from fastflow.pipelines.metadata import Limits, Metadata
from fastflow_controlplane.agents.model import AgentFacts, Capacity, RuntimeFacts
from fastflow_controlplane.agents.wanted import WantedEnvironment, WantedSet, need_of
from fastflow_controlplane.sources.model import PipelineView

GIB = 1024**3
FACTS = AgentFacts("id", "w", "i", capacity=Capacity(4000, 8 * GIB), runtime=RuntimeFacts(python_versions=("3.11.7",)))

GIANT = replace(FACTS, capacity=Capacity(10**6, 10**15), runtime=RuntimeFacts(python_versions=("3.11.7", "3.12.1")))


def pipeline(
    code: str, *, requirements: bool = True, header: bool = False, python: str = "", cpu: int = 1000, size: int = 10
) -> PipelineView:
    return PipelineView(
        name=code,
        state=PipelineState.READY,
        problems=(),
        metadata=Metadata(limits=Limits(cpu, GIB), python_version=python),
        metadata_file="",
        has_requirements=requirements,
        source="source",
        path=code,
        tree="",
        commit="",
        bundle_digest=f"sha256:{code}",
        bundle_size=size,
        has_header=header,
    )


def wanted_by(*pipelines: PipelineView) -> tuple[WantedEnvironment, ...]:
    wanted = WantedSet()
    for number, each in enumerate(pipelines):
        wanted.note(str(number), need_of(each))
    return wanted.all_on(GIANT)
