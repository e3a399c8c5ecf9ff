"""Repeating and comparing runs end to end, pipelines as plain processes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.reruns import MAIN, Index, Reruns, repeat


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index")
    yield index
    index.close()


@pytest.fixture
def cluster(tmp_path: Path, index: Index) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "process") as made:
        made.start(FASTFLOW_INDEX_URL=index.url)
        made.add_pipeline("etl", MAIN, requirements="alphaff\n")
        yield made


class TestReruns(Reruns):
    """With the process runtime."""


class Repository:
    """A Git repository with the pipeline "report" in its folder pipelines/, on the branch main."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._main = folder / "pipelines" / "report" / "main.py"
        self._main.parent.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")

    def git(self, *arguments: str) -> str:
        """Runs git and returns what it says."""
        command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, text: str) -> str:
        """Commits a program that prints `text`, with that as its subject, and returns the commit."""
        self._main.write_text(f"print({text!r})\n")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", text)
        return self.git("rev-parse", "HEAD")


def test_code_of_a_commit_or_branch_is_run_repeated_and_compared(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    first = repository.commit("round down")
    repository.commit("round up")
    repository.git("checkout", "--quiet", "-b", "topic")
    topic = repository.commit("do not round")
    repository.git("checkout", "--quiet", "main")
    source = {"name": "company", "url": str(repository.folder), "path": "pipelines"}
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_SOURCES=json.dumps([source])) as cluster:
        cluster.start()
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "report").exit_code == 0, 20, "the first sync")
        runs = [cluster.run("report", "--ref", ref, "--wait") for ref in (first, "topic")]
        assert [cluster.log(run) for run in runs] == [b"round down\n", b"do not round\n"]
        shown = cluster.show(runs[1])
        assert (shown["commit"], shown["ref"]) == (topic, "topic")
        assert (shown["commit_subject"], shown["commit_author"]) == ("do not round", "Ada <ada@example.org>")
        assert "-print('round down')\n+print('do not round')" in cluster.ffctl("runs", "diff", *runs).text
        repository.git("branch", "--quiet", "--delete", "--force", "topic")
        again = repeat(cluster, runs[1])
        assert cluster.log(again) == b"do not round\n"
        assert cluster.show(again)["commit"] == topic
        assert cluster.log(repeat(cluster, runs[1], "--latest")) == b"round up\n"
        refused = cluster.ffctl("run", "report", "--ref", "nowhere")
        assert refused.exit_code == 4
        assert '"nowhere"' in refused.stderr
