"""Runs that repeat others, with a real uv and a package index whose packages move on: the same on every runtime.

A test module inherits `Reruns` and brings the fixture `index` and a `cluster` whose agent "worker-1" uses it, with the
pipeline "etl" of MAIN that needs alphaff.
"""

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.slots import tiny_wheel

MAIN = """
    import os, alphaff
    print(alphaff.VERSION, os.environ["DAY"], *[name for name in os.environ if "CONSTRAINT" in name])
"""
SECRET_LOOKING = "value-nobody-may-see"


class Handler(SimpleHTTPRequestHandler):
    """Lists folders and serves their files; nothing is taken from a cache without asking."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Index:
    """A package index of wheels in `folder`, which is made; it listens on `host`, version 1.0 of alphaff is in it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        folder.mkdir()
        self.publish("alphaff", "1.0")
        self._server = ThreadingHTTPServer((host, 0), functools.partial(Handler, directory=str(folder)))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def publish(self, name: str, version: str) -> None:
        """Adds a version of a package."""
        file, content = tiny_wheel(name, f"VERSION = {version!r}\n", version)
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / file).write_bytes(content)

    def withdraw(self, name: str, version: str) -> None:
        """Removes a version of a package."""
        for wheel in (self.folder / name).glob(f"{name}-{version}-*"):
            wheel.unlink()

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def with_another_agent(cluster: Cluster, index: Index) -> None:
    """Puts an agent that holds nothing in the place of the first."""
    cluster.agent.stop()
    cluster.add_agent("worker-2", FASTFLOW_INDEX_URL=index.url)
    cluster.wait_for_agent("worker-2")
    cluster.wait_for_agent("worker-1", "OFFLINE")


def repeat(cluster: Cluster, run: str, *options: str) -> str:
    """Repeats a run, waits for its end and returns its short id."""
    done = cluster.ffctl("runs", "rerun", run, "--wait", *options)
    assert done.exit_code == 0, done.stderr
    return done.text


def first_run(cluster: Cluster) -> str:
    """Runs etl, sees that it got alphaff 1.0, and returns its id."""
    run = cluster.run("etl", "--env", f"DAY={SECRET_LOOKING}")
    assert cluster.finish(run)["state"] == "RUN_STATE_SUCCEEDED", cluster.log(run)
    assert cluster.log(run).endswith(f"1.0 {SECRET_LOOKING}\n".encode())
    return run


class Reruns:
    """`ffctl runs rerun` and `ffctl runs diff`."""

    def test_a_run_keeps_to_the_versions_its_environment_was_prepared_with(
        self, cluster: Cluster, index: Index
    ) -> None:
        first_run(cluster)
        index.publish("alphaff", "2.0")
        index.publish("betaff", "1.0")
        cluster.add_pipeline("other", "import alphaff; print(alphaff.VERSION)", requirements="alphaff\nbetaff\n")
        other = cluster.run("other")
        cluster.finish(other)
        assert cluster.log(other).endswith(b"2.0\n")
        again = first_run(cluster)
        provenance = cluster.show(again)["provenance"]
        assert "alphaff==1.0" in provenance["packages"]
        assert re.fullmatch(r"3\.\d+\.\d+", provenance["python_version"])

    def test_a_rerun_on_an_agent_that_holds_nothing_gets_the_same_packages_and_the_newest_run_others(
        self, cluster: Cluster, index: Index
    ) -> None:
        first = first_run(cluster)
        index.publish("alphaff", "2.0")
        with_another_agent(cluster, index)
        again = repeat(cluster, first)
        assert cluster.log(again).endswith(f"1.0 {SECRET_LOOKING}\n".encode())
        latest = repeat(cluster, first, "--latest")
        assert cluster.log(latest).endswith(f"2.0 {SECRET_LOOKING}\n".encode())
        same = cluster.ffctl("runs", "diff", first, again)
        assert "Package" not in same.text
        other = cluster.ffctl("runs", "diff", again, latest)
        assert [line.split() for line in other.text.splitlines() if "alphaff" in line] == [
            ["Package", "alphaff", "1.0", "2.0"]
        ]
        assert SECRET_LOOKING not in same.text + other.text + cluster.ffctl("runs", "show", again).text

    def test_a_rerun_that_can_not_have_the_same_packages_says_so(self, cluster: Cluster, index: Index) -> None:
        first = first_run(cluster)
        index.publish("alphaff", "2.0")
        index.withdraw("alphaff", "1.0")
        with_another_agent(cluster, index)
        again = repeat(cluster, first)
        assert cluster.log(again).endswith(f"2.0 {SECRET_LOOKING}\n".encode())
        assert f"but other packages (ffctl runs diff {first[-8:]} {again})" in cluster.ffctl("runs", "show", again).text

    def test_code_that_changed_since_is_run_as_it_was_and_the_difference_is_a_diff(
        self, cluster: Cluster, index: Index
    ) -> None:
        first = first_run(cluster)
        cluster.add_pipeline("etl", MAIN + "    print('and more')\n", requirements="alphaff\n")
        again = repeat(cluster, first)
        assert cluster.log(again) == cluster.log(first)
        assert "Nothing differs" in cluster.ffctl("runs", "diff", first, again).text
        latest = repeat(cluster, first, "--latest")
        assert cluster.log(latest).endswith(b"and more\n")
        assert "\n+print('and more')\n" in cluster.ffctl("runs", "diff", first, latest).text + "\n"
