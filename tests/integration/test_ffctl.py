"""ffctl against a real control plane and agent: what a person sees from a typed command to the verdict."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for tests that leave it as they found it."""
    with Cluster(tmp_path_factory.mktemp("ffctl") / "cluster", "process") as made:
        made.add_pipeline("hello", "print('hello')")
        made.add_pipeline("failing", "raise SystemExit(3)")
        made.add_pipeline("large", "print(1)", pipeline={"mem_hard_limit": "64t"})
        made.add_pipeline("wrong", "print(1)", pipeline={"mem_hard_limit": "12 apples", "cpu_hard_limit": -1})
        yield made.start()


def test_a_run_is_followed_to_its_verdict(shared: Cluster) -> None:
    done = shared.ffctl("run", "hello", "--follow")
    assert (done.exit_code, done.stdout) == (0, b"hello\n")
    assert "running on worker-1" in done.stderr
    assert "of hello SUCCEEDED after" in done.stderr


def test_a_failed_run_is_shown_with_exit_code_and_reason(shared: Cluster) -> None:
    done = shared.ffctl("run", "failing", "--wait")
    assert done.exit_code == 1
    assert "FAILED (exit code 3)" in done.stderr
    run = done.text
    assert len(run) == 8
    shown = shared.ffctl("runs", "show", run).text
    assert "FAILED  EXIT_CODE  exit code 3" in shown
    assert "worker-1" in shown
    (row,) = [line for line in shared.ffctl("runs", "list").text.splitlines() if line.startswith(run)]
    assert row.split()[1:3] == ["failing", "FAILED"]
    assert row.endswith("exit code 3")


def test_a_run_no_agent_can_take_says_so_at_once_and_per_agent(shared: Cluster) -> None:
    run = shared.run("large")
    assert "needs 64 TiB; largest agent worker-1 has" in shared.ffctl("runs", "show", run).text
    assert f"{run} waits: needs 64 TiB" in shared.ffctl("runs", "list").text
    shown = shared.show(run)
    assert [(placement["agent"], placement["fits"]) for placement in shown["placements"]] == [("worker-1", False)]
    cancelled = shared.ffctl("runs", "cancel", run)
    assert cancelled.exit_code == 0
    assert "CANCELLED" in cancelled.stderr


def test_an_invalid_pipeline_is_refused_with_all_its_problems(shared: Cluster) -> None:
    done = shared.ffctl("run", "wrong")
    assert (done.exit_code, done.stdout) == (4, b"")
    assert "12 apples" in done.stderr
    assert "cpu_hard_limit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "helo"], 'did you mean "hello"'),
        (["runs", "show", "deadbeef"], "deadbeef"),
        (["runs", "show", "short"], "at least its last 8"),
        (["logs", "deadbeef"], "deadbeef"),
        (["agents", "show", "worker-2"], 'did you mean "worker-1"'),
        (["secrets", "delete", "NOBODY"], "NOBODY"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(shared: Cluster, arguments: list[str], text: str) -> None:
    done = shared.ffctl(*arguments)
    assert done.exit_code == 4
    assert text in done.stderr


def test_a_secret_is_stored_used_listed_and_deleted(shared: Cluster) -> None:
    shared.add_pipeline("teller", "import os; print(os.environ['API_TOKEN'])")
    assert shared.ffctl("secrets", "set", "API_TOKEN", "--pipeline", "teller", value="open-sesame\n").exit_code == 0
    assert shared.ffctl("run", "teller", "--follow").stdout == b"***********\n"
    assert shared.ffctl("secrets", "list").text.splitlines()[1].split()[:3] == ["API_TOKEN", "teller", "1"]
    assert shared.ffctl("secrets", "delete", "API_TOKEN").exit_code == 0
    assert json.loads(shared.ffctl("secrets", "list", "-o", "json").stdout) == {"secrets": []}


def test_an_agent_is_shown_with_capacity_and_what_the_runtime_does_not_do(shared: Cluster) -> None:
    listed = shared.ffctl("agents", "list").text
    assert "worker-1" in listed
    assert "ACTIVE" in listed
    shown = shared.ffctl("agents", "show", "worker-1").text
    assert "Capacity" in shown
    assert "process" in shown


def test_a_control_plane_with_a_token_refuses_who_has_none(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", "process", FASTFLOW_TOKEN="correct-horse") as cluster:
        cluster.controlplane.start()
        cluster.until(lambda: cluster.ffctl("runs", "list").exit_code == 4, "a refusal")
        done = cluster.ffctl("runs", "list")
        assert "wants a token" in done.stderr
        assert "FASTFLOW_TOKEN" in done.stderr
