"""Sources: what each sync brought, and when."""

import re
import time
from typing import Any

import pytest
from fastflow.v1 import sources_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from .conftest import Ffctl, Gate, ScriptedServer
from .terminal import Terminal

OLD, NEW = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"
BEGUN = 1_763_900_002


def sync(start: int, seconds: float, **values: object) -> sources_pb2.Sync:
    end = Timestamp()
    end.FromMilliseconds(round((start + seconds) * 1000))
    return sources_pb2.Sync(source="main", start_time=Timestamp(seconds=start), end_time=end, **values)


@pytest.fixture
def shown(server: ScriptedServer) -> None:
    """A source with syncs of each kind."""
    syncs = [
        sync(
            int(time.time()) - 3600, 3590, trigger="SYNC_TRIGGER_START", from_commit=NEW, to_commit=NEW, repeat_count=59
        ),
        sync(BEGUN + 60, 65, trigger="SYNC_TRIGGER_REQUEST", from_commit=OLD, to_commit=NEW, changed=["etl"]),
        sync(BEGUN + 30, 0.25, trigger="SYNC_TRIGGER_INTERVAL", from_commit=OLD, to_commit=OLD, error="no network"),
        sync(BEGUN, 2, trigger="SYNC_TRIGGER_START", to_commit=OLD, added=["etl"]),
    ]
    server.answers |= {
        "GetSource": lambda request, context: sources_pb2.GetSourceResponse(source=sources_pb2.Source(name="main")),
        "ListSyncs": lambda request, context: sources_pb2.ListSyncsResponse(syncs=syncs),
    }


@pytest.mark.usefixtures("shown")
def test_a_sync_is_shown_with_when_it_was_and_between_which_commits(ffctl: Ffctl) -> None:
    head, repeated, *rows = ffctl("sources", "show", "main").out.decode().splitlines()[-5:]
    assert head.split() == ["BEGUN", "TOOK", "FOR", "COMMIT", "OUTCOME"]
    # Those that the row stands for were syncs by interval, whatever the first was for.
    assert re.search(rf" –  +start  +{NEW[:12]} .* nothing new; the same in 59 syncs since, last 1\d s ago$", repeated)
    assert [" ".join(row.split()) for row in rows] == [
        f"2025-11-23 12:14:22 1 min 5 s request {OLD[:12]}..{NEW[:12]} changed etl",
        f"2025-11-23 12:13:52 0.25 s interval {OLD[:12]} no network",
        f"2025-11-23 12:13:22 2.0 s start {OLD[:12]} added etl",
    ]


@pytest.mark.usefixtures("shown")
def test_what_syncs_brought_is_there_at_80_columns(spawn: Any, environment: dict[str, str]) -> None:
    environment |= {"NO_COLOR": "1", "TERM": "xterm-256color"}
    terminal = Terminal(spawn, "sources", "show", "main")
    assert terminal.end() == 0
    lines = terminal.everything.splitlines()
    assert all(len(line) <= 80 for line in lines)
    changed = next(number for number, line in enumerate(lines) if line.endswith("changed etl"))
    assert lines[changed].startswith("2025-11-23 12:14:22  1 min 5 s  request ")
    assert f"{OLD[:12]}.." in lines[changed]
    assert lines[changed + 1].strip() == NEW[:12]


def test_the_list_says_where_to_see_what_is_wrong_with_a_source(ffctl: Ffctl, server: ScriptedServer) -> None:
    found = [
        sources_pb2.Source(name="main"),
        sources_pb2.Source(name="failed", error="no network"),
        sources_pb2.Source(name="clashing", clashes=["two of one name"], problems=["two of one name"]),
    ]
    server.answers["ListSources"] = lambda request, context: sources_pb2.ListSourcesResponse(sources=found)
    told = ffctl("sources", "list").err
    assert "ffctl sources show failed" in told
    assert "ffctl sources show clashing" in told
    assert "main" not in told


def test_a_sync_that_takes_long_is_waited_for_with_a_word(server: ScriptedServer, spawn: Any) -> None:
    gate = Gate()

    def answer(request: sources_pb2.SyncSourceRequest, _context: Any) -> sources_pb2.SyncSourceResponse:
        if not request.wait:
            return sources_pb2.SyncSourceResponse(sync=sources_pb2.Sync(source="main", id="1"))
        gate.wait()
        return sources_pb2.SyncSourceResponse(sync=sync(BEGUN, 2, to_commit=OLD, added=["etl"]))

    server.answers["SyncSource"] = answer
    terminal = Terminal(spawn, "sync", "main", "--wait")
    terminal.until("main: fetching and reading what is new")
    gate.open()
    assert terminal.end() == 0
    assert "main: added etl" in terminal.everything
