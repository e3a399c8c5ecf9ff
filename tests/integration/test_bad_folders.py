"""Folders and metadata that people get wrong: each is told with what to do, and the others go on."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane and one agent with the process runtime."""
    with Cluster(tmp_path_factory.mktemp("folders") / "cluster", "process") as made:
        yield made.start()


def shown(cluster: Cluster, name: str) -> dict[str, Any]:
    """The pipeline as the control plane lists it, once it has found it."""

    def find() -> dict[str, Any] | None:
        done = cluster.ffctl("pipelines", "show", name, "-o", "json")
        return dict(json.loads(done.stdout)) if done.exit_code == 0 else None

    return cluster.until(find, f"pipeline {name} to be found")


def refused(cluster: Cluster, name: str) -> str:
    """What is said of the pipeline when somebody wants to run it."""
    shown(cluster, name)
    done = cluster.ffctl("run", name)
    assert (done.exit_code, done.stdout) == (4, b"")
    return done.stderr


@pytest.mark.parametrize("name", ["Größe & Co", "日次 集計", "a'b [x] $HOME"])
def test_a_name_with_spaces_or_of_another_alphabet_runs_and_is_shown(cluster: Cluster, name: str) -> None:
    cluster.add_pipeline(name, "print('here')", pipeline={"mem_hard_limit": "512m"})
    done = cluster.ffctl("run", name, "--follow")
    assert (done.exit_code, done.stdout) == (0, b"here\n")
    assert f"of {name} SUCCEEDED" in done.stderr
    assert name in cluster.ffctl("runs", "list").text


def test_a_bad_line_of_the_requirements_is_refused_with_its_number_and_runs_once_it_is_mended(
    cluster: Cluster,
) -> None:
    folder = cluster.add_pipeline("requiring", "print('here')", requirements="# tools\nrequests=2.0\n")
    said = refused(cluster, "requiring")
    assert 'requirements.txt: line 2: "requests=2.0" is no requirement (did you mean "requests==2.0"?)' in said
    (folder / "requirements.txt").write_text("# none\n")
    cluster.until(lambda: cluster.ffctl("run", "requiring", "--wait").exit_code == 0, "the mended pipeline to run")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("latin", '{"description": "Größe"}'.encode("latin-1"), "is not UTF-8; save the file as UTF-8"),
        ("windows", '{"mem_hard_limit": "64m"}'.encode("utf-16"), "byte order mark of UTF-16; save the file as UTF-8"),
    ],
)
def test_metadata_in_another_encoding_is_refused_never_run_without_limits(
    cluster: Cluster, name: str, data: bytes, said: str
) -> None:
    # Made whole elsewhere, so that it is never seen half.
    cluster.add_pipeline(f".{name}", "print('here')")
    (cluster.pipelines / f".{name}" / "pipeline.json").write_bytes(data)
    (cluster.pipelines / f".{name}").rename(cluster.pipelines / name)
    assert said in refused(cluster, name)
    assert shown(cluster, name)["state"] == "PIPELINE_STATE_INVALID"


def test_of_two_metadata_files_the_standard_name_counts_and_the_other_is_told(cluster: Cluster) -> None:
    limits = {"pipeline": {"mem_hard_limit": "512m"}, "twice": {"mem_hard_limit": "64m"}}
    cluster.add_pipeline("twice", "print('here')", **limits)
    found = cluster.until(
        lambda: pipeline if len((pipeline := shown(cluster, "twice"))["problems"]) == 1 else None, "both files"
    )
    assert int(found["limits"]["memory_hard_bytes"]) == 512 * 1024**2
    assert found["metadata_file"] == "pipeline.json"
    assert "remove one of the two" in found["problems"][0]["message"]
    assert cluster.ffctl("run", "twice", "--wait").exit_code == 0


def test_of_several_files_that_may_be_metadata_none_is_guessed(cluster: Cluster) -> None:
    limits = {"first": {"mem_hard_limit": "512m"}, "second": {"mem_hard_limit": "64m"}}
    cluster.add_pipeline("unclear", "print('here')", **limits)
    found = cluster.until(
        lambda: pipeline if len((pipeline := shown(cluster, "unclear"))["problems"]) == 2 else None, "both files"
    )
    assert all("name the right one pipeline.json" in problem["message"] for problem in found["problems"])
