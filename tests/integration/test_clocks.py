"""Hosts whose clock is set by an hour, either way, while runs are in flight: real processes, pipelines as processes."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from fastflow.ids import short

from tests.cluster import Cluster, Program
from tests.cluster.identity import SETTINGS, attempt_of
from tests.cluster.programs import LEDGER, let_end, slot_folders

SKEWED = Path(__file__).parents[1] / "cluster" / "skewed.py"
PAUSE_SECONDS = 4.0
"""Longer than an agent may be away, if any clock but the monotonic one said how long it is."""


class Clock:
    """The time of day of one program."""

    def __init__(self, program: Program, offset: Path) -> None:
        self._offset = offset
        self.set(0)
        program.command = [sys.executable, str(SKEWED), str(offset), *program.command]

    def set(self, seconds: float) -> None:
        """Sets it by so much from the host's."""
        draft = self._offset.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(self._offset)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    settings = {
        "FASTFLOW_OFFLINE_AFTER": "1",
        "FASTFLOW_LOST_AFTER": "2",
        "FASTFLOW_RECOVERY_WINDOW": "0",
        "FASTFLOW_QUEUE_DEADLINE": "1200",
    }
    with Cluster(tmp_path / "cluster", "process", **SETTINGS, **settings) as made:
        yield made


@pytest.mark.parametrize("side", ["controlplane", "agent"])
@pytest.mark.parametrize("hours", [1, -1])
def test_no_run_is_lost_or_ended_early_and_times_keep_their_order(cluster: Cluster, side: str, hours: int) -> None:
    offset = cluster.folder / "offset"
    clocks = [Clock(cluster.controlplane, offset)] if side == "controlplane" else []
    cluster.start()
    if side == "agent":
        cluster.agent.stop()
        clocks = [Clock(cluster.agent, offset)]
        cluster.agent.start()
        cluster.wait_for_agent("worker-1")
    cluster.add_pipeline("ledger", LEDGER, pipeline={"timeout": 120})
    cluster.add_pipeline("short", "import time; time.sleep(1)")
    cluster.add_pipeline("waits", "print('never')", pipeline={"mem_hard_limit": "100000g"})
    waits = cluster.run("waits")
    lives = cluster.run("ledger")
    cluster.wait_for_log(lives, b"begun")
    clocks[0].set(hours * 3600)
    time.sleep(PAUSE_SECONDS)
    since = cluster.run("short")
    time.sleep(PAUSE_SECONDS)
    let_end(slot_folders(cluster))
    assert attempt_of(cluster.finish(lives)) == ("SUCCEEDED", "", 1)
    assert attempt_of(cluster.finish(since)) == ("SUCCEEDED", "", 1)
    assert cluster.show(waits)["state"] == "RUN_STATE_QUEUED"
    clocks[0].set(0)
    last = cluster.run("short")
    assert attempt_of(cluster.finish(last)) == ("SUCCEEDED", "", 1)
    assert cluster.show_agent("worker-1")["state"] == "AGENT_STATE_ACTIVE"
    listed = json.loads(cluster.ffctl("runs", "list", "-o", "json").stdout)["runs"]
    assert [short(run["id"]) for run in listed] == [short(run) for run in (last, since, lives, waits)]
    for run in listed[:3]:
        created, started, ended = (
            datetime.fromisoformat(run[name]) for name in ("create_time", "start_time", "end_time")
        )
        assert created <= started <= ended
    log = (cluster.controlplane if side == "controlplane" else cluster.agent).tail()
    assert "Traceback" not in log
