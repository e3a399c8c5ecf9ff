"""`ffctl sources` and `ffctl sync`: where pipelines come from, what each sync brought, and one more now."""

import asyncio
from collections.abc import Sequence

import click
from fastflow.v1 import sources_pb2
from rich.console import RenderableType

from ffctl import details, failures, output, wording
from ffctl.connection import Connection
from ffctl.options import complete_source, output_option, server_option
from ffctl.output import cell, facts, fit, table
from ffctl.progress import Progress
from ffctl.session import connected, pages, still_trying

SYNCS_SHOWN = 10
"""Syncs that `sources show` lists: what a person looks for is among the newest."""

COMMIT_DIGITS = 12
"""Digits of a commit in tables: enough to name it to Git."""

RANGE_COLUMNS = 100
"""Columns of a terminal from which on two commits have room beside each other."""

QUIET_S = 1.0
"""How long a sync is waited for without a word: most take less."""

NAMES_SHOWN = 5
"""Pipelines that one line names."""


@click.group("sources")
def group() -> None:
    """Lists and shows sources, the places pipelines come from."""


@group.command("list")
@output_option
@server_option
@click.pass_context
def list_sources(context: click.Context, as_json: bool) -> None:
    """Lists sources in the order of the settings.

    \b
    Example: ffctl sources list
    """
    found = connected(context, _all)
    if as_json:
        output.listing("sources", found)
        return
    grid = table("SOURCE", "KIND", "COMMIT", "PIPELINES", "SYNCED", "STATE")
    now = details.seconds_now()
    for source in found:
        grid.add_row(
            cell(source.name),
            _kind(source.kind),
            cell(source.commit.id[:COMMIT_DIGITS] or wording.UNKNOWN),
            str(source.pipeline_count),
            wording.ago(source.newest_sync.end_time, now) if source.HasField("newest_sync") else wording.UNKNOWN,
            _state(source),
        )
    output.show(grid)
    for source in found:
        if source.error or source.clashes:
            output.say(f"What is wrong with {source.name}: ffctl sources show {source.name}")


@group.command("show")
@click.argument("name", shell_complete=complete_source)
@output_option
@server_option
@click.pass_context
def show_source(context: click.Context, name: str, as_json: bool) -> None:
    """Shows one source: commit, problems, newest syncs.

    \b
    Example: ffctl sources show main
    """

    async def work(connection: Connection) -> tuple[sources_pb2.Source, list[sources_pb2.Sync]]:
        answer = await connection.call(
            connection.sources.GetSource, sources_pb2.GetSourceRequest(name=name), on_lost=still_trying
        )
        request = sources_pb2.ListSyncsRequest(source=name)
        syncs, _ = await pages(connection, connection.sources.ListSyncs, request, "syncs", SYNCS_SHOWN)
        return answer.source, syncs

    source, syncs = connected(context, work)
    if as_json:
        output.show_json({"source": output.as_mapping(source), "syncs": [output.as_mapping(sync) for sync in syncs]})
        return
    output.show(facts(_rows(source)))
    if syncs:
        now = details.seconds_now()
        grid = table("BEGUN", "TOOK", "FOR", "COMMIT", "OUTCOME")
        for sync in syncs:
            outcome = cell(_outcome(sync) + _repeats(sync, now), "red" if sync.error else "")
            grid.add_row(wording.local(sync.start_time), _took(sync), _trigger(sync), _commits(sync), outcome)
        output.show("", fit(grid, OUTCOME=16))


@click.command("sync")
@click.argument("name", required=False, shell_complete=complete_source)
@click.option("--wait", is_flag=True, help="Return when it has ended, and say what it brought.")
@output_option
@server_option
@click.pass_context
def sync_command(context: click.Context, name: str | None, wait: bool, as_json: bool) -> int:
    """Brings the source NAME, or all, up to date now. With --wait, exits with 1 if one could not be.

    \b
    Example: ffctl sync --wait
    """

    async def work(connection: Connection) -> list[sources_pb2.Sync]:
        names = [name] if name else [source.name for source in await _all(connection)]
        begun = [await _sync(connection, each) for each in names]
        return [await _ended(connection, sync) for sync in begun] if wait else begun

    syncs = connected(context, work)
    if as_json:
        output.listing("syncs", syncs)
    for sync in [] if as_json else syncs:
        output.say(f"{sync.source}: {_outcome(sync) if sync.HasField('end_time') else 'sync begun'}")
    return failures.RUN_FAILED if any(sync.error for sync in syncs) else failures.SUCCEEDED


async def _all(connection: Connection) -> list[sources_pb2.Source]:
    found, _ = await pages(connection, connection.sources.ListSources, sources_pb2.ListSourcesRequest(), "sources")
    return found


async def _sync(connection: Connection, source: str, sync_id: str = "") -> sources_pb2.Sync:
    request = sources_pb2.SyncSourceRequest(name=source, sync_id=sync_id, wait=bool(sync_id))
    answer = await connection.call(connection.sources.SyncSource, request, on_lost=still_trying)
    return answer.sync


async def _ended(connection: Connection, sync: sources_pb2.Sync) -> sources_pb2.Sync:
    """Returns the sync once it has ended; says that it waits where that takes long."""
    progress = Progress(sync.source)
    ending = asyncio.create_task(_until_ended(connection, sync))
    try:
        ended, _ = await asyncio.wait({ending}, timeout=QUIET_S)
        if not ended:
            progress.update("fetching and reading what is new")
        return await ending
    finally:
        ending.cancel()
        progress.stop()


async def _until_ended(connection: Connection, sync: sources_pb2.Sync) -> sources_pb2.Sync:
    while not sync.HasField("end_time"):
        sync = await _sync(connection, sync.source, sync.id)
    return sync


def _rows(source: sources_pb2.Source) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = [
        ("Source", cell(source.name)),
        ("State", _state(source)),
        ("Kind", _kind(source.kind)),
        ("Place", cell(source.place)),
    ]
    if source.kind == sources_pb2.SOURCE_KIND_GIT:
        rows.append(("Branch", cell(source.branch or "the remote's default one")))
    if source.HasField("commit"):
        commit = source.commit
        rows.append(("Commit", cell(f"{commit.id[:COMMIT_DIGITS]} {commit.subject} ({commit.author})")))
    rows.append(("Pipelines", str(source.pipeline_count)))
    if source.error:
        rows.append(("Error", cell(source.error, "red")))
    rows.extend(("Error", cell(clash, "red")) for clash in source.clashes)
    rows.extend(("Warning", cell(note, "yellow")) for note in source.problems if note not in source.clashes)
    return rows


def _state(source: sources_pb2.Source) -> RenderableType:
    if source.syncing:
        return cell("SYNCING")
    if source.error:
        return cell("FAILED", "red")
    return cell("CLASH", "red") if source.clashes else cell("OK", "green")


def _kind(kind: int) -> str:
    return sources_pb2.SourceKind.Name(kind).removeprefix("SOURCE_KIND_").lower()


def _trigger(sync: sources_pb2.Sync) -> str:
    return sources_pb2.SyncTrigger.Name(sync.trigger).removeprefix("SYNC_TRIGGER_").lower()


def _took(sync: sources_pb2.Sync) -> str:
    if sync.repeat_count:
        # Its end is that of the last repeat.
        return wording.UNKNOWN
    return wording.span(wording.seconds_of(sync.end_time) - wording.seconds_of(sync.start_time))


def _repeats(sync: sources_pb2.Sync, now: float) -> str:
    """What is told of the syncs by interval that came after it and brought the same."""
    if not sync.repeat_count:
        return ""
    return f"; the same in {wording.count(sync.repeat_count, 'sync')} since, last {wording.ago(sync.end_time, now)}"


def _commits(sync: sources_pb2.Sync) -> RenderableType:
    """Both as Git takes them, `git log FROM..TO`; one where they are the same."""
    commits = dict.fromkeys(commit[:COMMIT_DIGITS] for commit in (sync.from_commit, sync.to_commit) if commit)
    between = ".." if output.console().width >= RANGE_COLUMNS else "..\n"
    return cell(between.join(commits) or wording.UNKNOWN)


def _outcome(sync: sources_pb2.Sync) -> str:
    if sync.error:
        return sync.error
    parts = [
        f"{word} {_named(names)}"
        for word, names in (
            ("added", sync.added),
            ("changed", sync.changed),
            ("removed", sync.removed),
            ("invalid now:", sync.invalid),
        )
        if names
    ]
    if not parts and sync.from_commit != sync.to_commit:
        return f"at {sync.to_commit[:COMMIT_DIGITS]}, no pipeline changed"
    return "; ".join(parts) or "nothing new"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
