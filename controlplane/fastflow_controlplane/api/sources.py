"""SourceService: translates and delegates to `sources.syncing`."""

from typing import Any

from fastflow.v1 import sources_pb2, sources_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from fastflow_controlplane import pages
from fastflow_controlplane.api.translate import time_message
from fastflow_controlplane.sources.model import Commit
from fastflow_controlplane.sources.syncing import SourceView, SyncService, SyncUnderWay
from fastflow_controlplane.store.queries.syncs import SyncRecord

DEFAULT_PAGE = 100
DEFAULT_SYNCS = 20


class SourceServicer(sources_pb2_grpc.SourceServiceServicer):
    """Sources and their syncs for clients."""

    def __init__(self, syncs: SyncService) -> None:
        self._syncs = syncs

    async def GetSource(self, request: sources_pb2.GetSourceRequest, context: Any) -> sources_pb2.GetSourceResponse:
        """Reads one source."""
        return sources_pb2.GetSourceResponse(source=_source(await self._syncs.get(request.name)))

    async def ListSources(
        self, request: sources_pb2.ListSourcesRequest, context: Any
    ) -> sources_pb2.ListSourcesResponse:
        """Lists sources in the order of the settings."""
        size = pages.check_size(request.page_size, DEFAULT_PAGE)
        after = pages.key_of(request.page_token)
        found = await self._syncs.list()
        names = [source.name for source in found]
        first = names.index(after) + 1 if after in names else 0
        page = found[first : first + size]
        more = first + size < len(found)
        sources, token = pages.fitting(
            [_source(source) for source in page],
            [source.name for source in page],
            pages.token_after(page[-1].name) if more else "",
        )
        return sources_pb2.ListSourcesResponse(sources=sources, next_page_token=token)

    async def SyncSource(self, request: sources_pb2.SyncSourceRequest, context: Any) -> sources_pb2.SyncSourceResponse:
        """Begins a sync, and waits for it if asked to."""
        sync = await self._syncs.sync(request.name, wait=request.wait, sync_id=request.sync_id)
        return sources_pb2.SyncSourceResponse(sync=_sync(sync))

    async def ListSyncs(self, request: sources_pb2.ListSyncsRequest, context: Any) -> sources_pb2.ListSyncsResponse:
        """Lists syncs, newest first."""
        size = pages.check_size(request.page_size, DEFAULT_SYNCS)
        page = await self._syncs.syncs(request.source, page_size=size, page_token=request.page_token)
        syncs, token = pages.fitting(
            [_sync(sync) for sync in page.syncs], [sync.id for sync in page.syncs], page.next_page_token
        )
        return sources_pb2.ListSyncsResponse(syncs=syncs, next_page_token=token)


def _source(source: SourceView) -> sources_pb2.Source:
    return sources_pb2.Source(
        name=source.name,
        kind=sources_pb2.SOURCE_KIND_GIT if source.is_git else sources_pb2.SOURCE_KIND_FOLDER,
        place=source.place,
        branch=source.branch,
        commit=_commit(source.commit),
        pipeline_count=source.pipelines,
        error=source.error,
        problems=source.problems,
        clashes=source.clashes,
        syncing=source.syncing,
        newest_sync=_sync(source.newest) if source.newest else None,
    )


def _commit(commit: Commit | None) -> sources_pb2.Commit | None:
    if commit is None:
        return None
    return sources_pb2.Commit(
        id=commit.id, author=commit.author, subject=commit.subject, commit_time=Timestamp(seconds=commit.time)
    )


def _sync(sync: SyncRecord | SyncUnderWay) -> sources_pb2.Sync:
    message = sources_pb2.Sync(id=sync.id, source=sync.source, trigger=f"SYNC_TRIGGER_{sync.trigger}")
    if isinstance(sync, SyncUnderWay):
        return message
    message.MergeFrom(
        sources_pb2.Sync(
            start_time=time_message(sync.start_time),
            end_time=time_message(sync.end_time),
            from_commit=sync.from_commit,
            to_commit=sync.to_commit,
            added=sync.added,
            changed=sync.changed,
            removed=sync.removed,
            invalid=sync.invalid,
            error=sync.error,
            repeat_count=sync.repeat_count,
        )
    )
    return message
