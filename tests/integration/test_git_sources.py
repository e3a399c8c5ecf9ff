"""From a push to a run of the new code, through real programs; and a network that hangs, which holds up nothing."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, Completed
from tests.origins import Origin
from tests.origins.servers import http_server

TOKEN = "t0ken-that-nobody-may-see"
ANSWER_SECONDS = 60.0
"""What some commands may take together while a network hangs, which it does for longer: they take some seconds."""


@contextmanager
def cluster_of(tmp_path: Path, *sources: dict[str, Any], agent: bool = True, **settings: str) -> Iterator[Cluster]:
    """A cluster with these sources, synced only at start and when asked."""
    chosen = {"FASTFLOW_SOURCES": json.dumps(sources), "FASTFLOW_SYNC_INTERVAL": "3600", **settings}
    with Cluster(tmp_path / "cluster", "process", **chosen) as cluster:
        if agent:
            cluster.start()
        else:
            cluster.controlplane.start()
            cluster.until(lambda: cluster.ffctl("sources", "list").exit_code == 0, "the control plane")
        yield cluster


def outcome(done: Completed) -> str:
    """What `ffctl sync --wait` said at last: before it may be that it takes long."""
    return done.stderr.splitlines()[-1]


def syncs(cluster: Cluster, source: str) -> list[dict[str, Any]]:
    """The newest syncs of a source; none while the control plane does not answer yet."""
    done = cluster.ffctl("sources", "show", source, "-o", "json")
    shown: list[dict[str, Any]] = json.loads(done.text)["syncs"] if done.exit_code == 0 else []
    return shown


def test_new_code_runs_after_a_sync_and_old_code_by_its_commit(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "flows.git")
    first = origin.push({"pipelines/hello/main.py": "print('one')\n"}, "Begin")
    with cluster_of(tmp_path, {"name": "flows", "url": origin.url, "path": "pipelines"}) as cluster:
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "hello").exit_code == 0, "the first sync")
        assert cluster.ffctl("run", "hello", "--follow").stdout == b"one\n"
        second = origin.push({"pipelines/hello/main.py": "print('two')\n"}, "Say two")
        done = cluster.ffctl("sync", "--wait")
        assert (done.exit_code, outcome(done)) == (0, "flows: changed hello")
        assert cluster.ffctl("run", "hello", "--follow").stdout == b"two\n"
        assert cluster.ffctl("run", "hello", "--ref", first, "--follow").stdout == b"one\n"
        run = cluster.show(cluster.run("hello"))
        assert (run["commit"], len(run["tree"])) == (second, 40)
        newest, oldest = syncs(cluster, "flows")
        assert (newest["from_commit"], newest["to_commit"], newest["changed"]) == (first, second, ["hello"])
        assert (newest["trigger"], oldest["trigger"], oldest["added"]) == (
            "SYNC_TRIGGER_REQUEST",
            "SYNC_TRIGGER_START",
            ["hello"],
        )
        cluster.controlplane.stop()
        cluster.controlplane.start()
        cluster.until(lambda: len(syncs(cluster, "flows")) == 3, "the sync at start")
        assert syncs(cluster, "flows")[0]["added"] == [], "what was known before is no news after a restart"


SLOW = """
import pathlib, time
print('began', flush=True)
while not pathlib.Path({go!r}).exists():
    time.sleep(0.05)
import answer
print(answer.VALUE)
"""


def test_no_push_changes_a_run_that_waits_or_runs(tmp_path: Path) -> None:
    origin, go = Origin(tmp_path / "flows.git"), tmp_path / "go"
    origin.push({"slow/main.py": SLOW.format(go=str(go)), "slow/answer.py": "VALUE = 'old'\n"})
    with cluster_of(tmp_path, {"name": "flows", "url": origin.url}, agent=False) as cluster:
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "slow").exit_code == 0, "the first sync")
        cluster.add_agent("worker-1", FASTFLOW_SLOTS="1")
        running = cluster.run("slow")
        cluster.wait_for_log(running, b"began")
        waiting = cluster.run("slow")
        origin.push({"slow/answer.py": "VALUE = 'new'\n"})
        assert outcome(cluster.ffctl("sync", "--wait")) == "flows: changed slow"
        newer = cluster.run("slow")
        origin.push({"other/main.py": "print('other')\n"}, force=True)
        assert outcome(cluster.ffctl("sync", "--wait")) == "flows: added other; removed slow"
        assert cluster.ffctl("run", "slow").exit_code == 4
        go.touch()
        for run, said in ((running, b"old"), (waiting, b"old"), (newer, b"new")):
            assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"
            assert cluster.log(run) == b"began\n" + said + b"\n"


def test_a_token_is_set_as_a_secret_and_seen_nowhere(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "served" / "flows.git")
    origin.push({"hello/main.py": "import os\nprint(sorted(os.environ))\n"})
    with (
        http_server(origin.path.parent, TOKEN) as server,
        cluster_of(tmp_path, {"name": "flows", "url": f"{server.url}/flows.git"}) as cluster,
    ):
        refused = cluster.ffctl("sync", "--wait")
        assert refused.exit_code == 1
        assert "store it with `ffctl secrets set TOKEN --source flows`" in refused.stderr
        assert cluster.ffctl("secrets", "set", "TOKEN", "--source", "flows", value=f"{TOKEN}\n").exit_code == 0
        done = cluster.ffctl("sync", "--wait")
        assert (done.exit_code, outcome(done)) == (0, "flows: added hello")
        run = cluster.ffctl("run", "hello", "--follow")
        assert run.exit_code == 0
        assert "TOKEN" not in run.text, "a source's secret reaches no pipeline"
        assert "the source flows" in cluster.ffctl("secrets", "list").text
        unknown = cluster.ffctl("secrets", "set", "TOKEN", "--source", "flow", value="x")
        assert (unknown.exit_code, 'there is no source "flow"; did you mean "flows"' in unknown.stderr) == (4, True)
        other = cluster.ffctl("secrets", "set", "PASSWORD", "--source", "flows", value="x")
        assert "a source uses TOKEN and SSH_KEY alone" in other.stderr
        assert cluster.ffctl("secrets", "delete", "TOKEN", "--source", "flows").exit_code == 0
        assert cluster.ffctl("sync", "--wait").exit_code == 1
        assert cluster.ffctl("run", "hello", "--wait").exit_code == 0, "what was synced stays in use"
    written = [path for path in (tmp_path / "cluster").rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


def test_a_network_that_hangs_holds_up_neither_runs_nor_the_api(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "flows.git")
    origin.push({"hello/main.py": "print('hello')\n"})
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        cluster_of(
            tmp_path,
            {"name": "flows", "url": origin.url},
            {"name": "stuck", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"},
        ) as cluster,
    ):
        assert cluster.ffctl("sync", "flows", "--wait").exit_code == 0
        shown = json.loads(cluster.ffctl("sources", "show", "stuck", "-o", "json").text)["source"]
        assert shown["syncing"], "it hangs"
        started = time.monotonic()
        assert cluster.ffctl("run", "hello", "--follow").stdout == b"hello\n"
        assert "hello" in cluster.ffctl("pipelines", "list").text
        begun = cluster.ffctl("sync", "stuck")
        assert (begun.exit_code, begun.stderr) == (0, "stuck: sync begun\n")
        assert time.monotonic() - started < ANSWER_SECONDS
        cluster.controlplane.stop()
        assert time.monotonic() - started < 2 * ANSWER_SECONDS, "nor the end of the control plane"


def test_a_clash_of_two_sources_is_told_at_the_later_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "hello"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("print('folder')\n")
    origin = Origin(tmp_path / "flows.git")
    origin.push({"hello/main.py": "print('git')\n"})
    sources = ({"name": "flows", "url": origin.url}, {"name": "local", "folder": str(folder.parent)})
    with cluster_of(tmp_path, *sources, agent=False) as cluster:
        cluster.ffctl("sync", "--wait")
        shown = cluster.ffctl("sources", "show", "local").text
        assert 'Error      the pipeline "hello" (hello) is not used: the source "flows" has one of that name' in shown
        assert "CLASH" in cluster.ffctl("sources", "list").text
        (folder.parent / "more").mkdir()
        (folder.parent / "more" / "main.py").write_text("")
        assert outcome(cluster.ffctl("sync", "local", "--wait")) == "local: added more"
        assert syncs(cluster, "local")[0]["added"] == ["more"]
        assert cluster.ffctl("sync", "nope").exit_code == 4


def test_a_bundle_that_the_disk_damaged_is_written_anew_and_the_run_succeeds(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "flows.git")
    origin.push({"hello/main.py": "print('one')\n"})
    with cluster_of(tmp_path, {"name": "flows", "url": origin.url}, agent=False) as cluster:
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "hello").exit_code == 0, "the first sync")
        old = cluster.run("hello")
        origin.push({"hello/main.py": "print('two')\n"}, force=True)
        assert outcome(cluster.ffctl("sync", "--wait")) == "flows: changed hello"
        new = cluster.run("hello")
        bundles = list((tmp_path / "cluster" / "controlplane" / "bundles" / "sha256").iterdir())
        assert len(bundles) == 2
        for bundle in bundles:
            content = bundle.read_bytes()
            bundle.write_bytes(content.replace(b"print", b"prinT"))
        cluster.add_agent("worker-1")
        for run, said in ((old, b"one\n"), (new, b"two\n")):
            assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED"
            assert cluster.log(run) == said


def test_nothing_of_a_former_url_is_served_as_the_new_one_s_and_a_pinned_run_gets_its_code(tmp_path: Path) -> None:
    former, now = Origin(tmp_path / "former.git"), tmp_path / "now.git"
    former.push({"hello/main.py": "print('former')\n"})
    with cluster_of(tmp_path, {"name": "flows", "url": former.url}, agent=False) as cluster:
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "hello").exit_code == 0, "the first sync")
        pinned = cluster.run("hello")
        cluster.controlplane.stop()
        cluster.controlplane.settings["FASTFLOW_SOURCES"] = json.dumps([{"name": "flows", "url": str(now)}])
        cluster.controlplane.start()
        cluster.until(lambda: len(syncs(cluster, "flows")) == 2, "the sync at start")
        refused = cluster.ffctl("run", "hello")
        assert refused.exit_code == 4
        assert f"its url was changed from {former.url} to {now}" in refused.stderr
        source = json.loads(cluster.ffctl("sources", "show", "flows", "-o", "json").text)["source"]
        assert (source["place"], source.get("commit"), source.get("pipeline_count", 0)) == (str(now), None, 0)
        assert f"its url was changed from {former.url} to {now}, and it was not synced since" in source["error"]
        cluster.add_agent("worker-1")
        assert cluster.finish(pinned)["state"] == "RUN_STATE_SUCCEEDED"
        assert cluster.log(pinned) == b"former\n"
        Origin(now).push({"hello/main.py": "print('now')\n"})
        assert outcome(cluster.ffctl("sync", "--wait")) == "flows: added hello"
        assert cluster.ffctl("run", "hello", "--follow").stdout == b"now\n"
