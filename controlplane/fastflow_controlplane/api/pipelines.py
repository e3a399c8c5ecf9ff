"""PipelineService: translates and delegates to `sources.catalog`."""

from bisect import bisect_right
from typing import Any

from fastflow.v1 import pipelines_pb2, pipelines_pb2_grpc

from fastflow_controlplane import pages
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.api.translate import counts_message, environment_message, pipeline_message
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.model import PipelineView

DEFAULT_PAGE = 100


class PipelineServicer(pipelines_pb2_grpc.PipelineServiceServicer):
    """Pipelines for clients, as they are in the folder now."""

    def __init__(self, catalog: Catalog, preheat: Preheat) -> None:
        self._catalog = catalog
        self._preheat = preheat

    async def GetPipeline(
        self, request: pipelines_pb2.GetPipelineRequest, context: Any
    ) -> pipelines_pb2.GetPipelineResponse:
        """Reads one pipeline, and how far its packages are on the agents."""
        await self._catalog.refresh()
        pipeline = self._catalog.get(request.name)
        message = self._message(pipeline)
        message.environments.extend(map(environment_message, self._preheat.environments(pipeline)))
        return pipelines_pb2.GetPipelineResponse(pipeline=message)

    async def ListPipelines(
        self, request: pipelines_pb2.ListPipelinesRequest, context: Any
    ) -> pipelines_pb2.ListPipelinesResponse:
        """Lists pipelines by name."""
        size = pages.check_size(request.page_size, DEFAULT_PAGE)
        after = pages.key_of(request.page_token)
        await self._catalog.refresh()
        found = self._catalog.list()
        first = bisect_right(found, after, key=lambda pipeline: pipeline.name)
        page = found[first : first + size]
        more = first + size < len(found)
        pipelines, token = pages.fitting(
            [self._message(pipeline) for pipeline in page],
            [pipeline.name for pipeline in page],
            pages.token_after(page[-1].name) if more else "",
        )
        return pipelines_pb2.ListPipelinesResponse(pipelines=pipelines, next_page_token=token)

    def _message(self, pipeline: PipelineView) -> pipelines_pb2.Pipeline:
        message = pipeline_message(pipeline)
        if (counts := self._preheat.counts(pipeline)) is not None:
            message.environment_counts.CopyFrom(counts_message(counts))
        return message
