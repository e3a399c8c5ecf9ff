"""Sources: what each sync brought, and when."""

import re
import time

import pytest
from fastflow.v1 import sources_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from .conftest import Ffctl, ScriptedServer

OLD, NEW = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"
BEGUN = 1_763_900_002


def sync(start: int, seconds: float, **values: object) -> sources_pb2.Sync:
    end = Timestamp()
    end.FromMilliseconds(round((start + seconds) * 1000))
    return sources_pb2.Sync(source="main", start_time=Timestamp(seconds=start), end_time=end, **values)


def test_a_sync_is_shown_with_when_it_was_and_between_which_commits(
    ffctl: Ffctl, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    syncs = [
        sync(int(time.time()) - 3600, 3590, trigger="SYNC_TRIGGER_INTERVAL", to_commit=NEW, repeat_count=59),
        sync(BEGUN + 60, 65, trigger="SYNC_TRIGGER_REQUEST", from_commit=OLD, to_commit=NEW, changed=["etl"]),
        sync(BEGUN + 30, 0.25, trigger="SYNC_TRIGGER_INTERVAL", from_commit=OLD, to_commit=OLD, error="no network"),
        sync(BEGUN, 2, trigger="SYNC_TRIGGER_START", to_commit=OLD, added=["etl"]),
    ]
    server.answers |= {
        "GetSource": lambda request, context: sources_pb2.GetSourceResponse(source=sources_pb2.Source(name="main")),
        "ListSyncs": lambda request, context: sources_pb2.ListSyncsResponse(syncs=syncs),
    }
    head, repeated, *rows = ffctl("sources", "show", "main").out.decode().splitlines()[-5:]
    assert head.split() == ["BEGUN", "TOOK", "FOR", "COMMIT", "OUTCOME"]
    assert re.search(r" last 1\d s ago ", repeated)
    assert "interval, 60 times" in repeated
    assert [" ".join(row.split()) for row in rows] == [
        f"2025-11-23 12:14:22 1 min 5 s request {OLD[:12]}..{NEW[:12]} changed etl",
        f"2025-11-23 12:13:52 0.25 s interval {OLD[:12]} no network",
        f"2025-11-23 12:13:22 2.0 s start {OLD[:12]} added etl",
    ]
