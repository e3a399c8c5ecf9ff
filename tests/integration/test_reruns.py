"""Repeating and comparing runs end to end, pipelines as plain processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.reruns import MAIN, Index, Reruns, repeat, with_another_agent
from tests.origins.git import git
from tests.slots import Addresses


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


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[Addresses]:
    addresses = Addresses(tmp_path)
    yield addresses
    addresses.close()


class TestReruns(Reruns):
    """With the process runtime."""

    def test_the_commit_a_package_came_from_is_shown_compared_and_repeated(
        self, cluster: Cluster, index: Index, addresses: Addresses
    ) -> None:
        origin = addresses.origin
        login = origin.replace("//", "//user:s3cret@")
        commits = [addresses.commit("first")]
        cluster.add_pipeline("own", "import gitty; print(gitty.SAYS)", requirements=f"gitty @ {login}@main\n")
        runs = [cluster.run("own", "--wait")]
        commits.append(addresses.commit("second"))
        with_another_agent(cluster, index)
        runs.append(cluster.run("own", "--wait"))
        assert [cluster.log(run).splitlines()[-1] for run in runs] == [b"first", b"second"]
        for run, commit in zip(runs, commits, strict=True):
            shown = "".join(cluster.ffctl("runs", "show", run).text.split())
            assert f"gitty@{origin}@{commit}" in shown
            assert "s3cret" not in shown
        (difference,) = json.loads(cluster.ffctl("runs", "diff", *runs, "-o", "json").text)["packages"]
        assert difference == {"name": "gitty", "a": f"{origin}@{commits[0]}", "b": f"{origin}@{commits[1]}"}
        again = repeat(cluster, runs[0])
        assert cluster.log(again).splitlines()[-1] == b"first"
        assert "its code, parameters and packages" in cluster.ffctl("runs", "show", again).text


class Repository:
    """A Git repository with the pipeline "report" in its folder pipelines/, on the branch main."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._main = folder / "pipelines" / "report" / "main.py"
        self._main.parent.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")

    def git(self, *arguments: str) -> str:
        """Runs git and returns what it says."""
        return git(self.folder, *arguments)

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
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "report").exit_code == 0, "the first sync")
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
