"""What a local run is to run: the pipeline and its variables, refused where a control plane would refuse them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastflow.pipelines.environment import read_assignments, read_environment_file
from fastflow_agent.desired import Secret
from fastflow_agent.local.plan import Plan, Refused, read_plan
from fastflow_agent.model import Limits


def make(folder: Path, **metadata: Any) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text("print(1)\n")
    if metadata:
        (folder / "pipeline.json").write_text(json.dumps(metadata))
    return folder


def plan(
    path: Path, variables: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None, **rest: Any
) -> Plan:
    return read_plan(path, variables or {}, secrets or {}, rest.get("timeout"))


def test_limits_time_and_python_come_from_the_metadata(tmp_path: Path) -> None:
    path = make(tmp_path / "etl", cpu_hard_limit=0.5, mem_hard_limit="64m", mem_soft_limit="48m", timeout=9)
    found = plan(path)
    assert (found.pipeline, found.timeout) == ("etl", 9.0)
    assert found.limits == Limits(500, 64 << 20, 0, 48 << 20)
    assert plan(path, timeout=0.0).timeout == 0.0


def test_no_metadata_gives_the_standard_limits(tmp_path: Path) -> None:
    assert plan(make(tmp_path / "etl")).limits == Limits(1000, 1 << 30)


def test_variables_go_before_secrets_and_those_before_default_env(tmp_path: Path) -> None:
    path = make(tmp_path / "etl", default_env={"A": "default", "B": "default", "C": "default"})
    found = plan(path, {"A": "given"}, {"A": "hidden-a", "B": "hidden-b"})
    assert found.variables == {"A": "given", "C": "default"}
    assert found.secrets == (Secret("B", b"hidden-b"),)
    assert found.spec("sha256:0", 1).environment == {"A": "given", "B": "hidden-b", "C": "default"}


def test_a_value_too_short_to_mask_is_told_without_it(tmp_path: Path) -> None:
    found = plan(make(tmp_path / "etl"), secrets={"PIN": "4711", "KEY": "long enough"})
    assert [("PIN" in warning, "4711" in warning) for warning in found.warnings] == [(True, False)]


def test_no_text_of_a_plan_shows_a_value(tmp_path: Path) -> None:
    found = plan(make(tmp_path / "etl"), {"A": "hunter2"}, {"B": "hunter2"})
    assert "hunter2" not in repr(found)


def test_a_folder_without_a_main_py_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(Refused, match=r"notes is no pipeline: it has no main\.py"):
        plan(tmp_path / "notes")


def test_an_invalid_pipeline_is_refused_with_every_problem(tmp_path: Path) -> None:
    path = make(tmp_path / "etl", cpu_hard_limit=-1, mem_hard_limit="12 apples")
    (path / "requirements.txt").write_text("requests=2\n")
    with pytest.raises(Refused, match="etl is INVALID") as refusal:
        plan(path)
    told = "\n".join(refusal.value.details)
    assert all(word in told for word in ("cpu_hard_limit", "12 apples", "requests=2"))


def test_a_disabled_pipeline_runs_by_hand(tmp_path: Path) -> None:
    assert plan(make(tmp_path / "etl", enabled=False)).pipeline == "etl"


@pytest.mark.parametrize("name", ["PATH", "FASTFLOW_X", "UV_CACHE_DIR", "9A"])
def test_a_refused_variable_is_named_with_its_rule(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan(make(tmp_path / "etl"), {name: "hunter2"})
    (told,) = refusal.value.details
    assert name in told
    assert "hunter2" not in told


def test_assignments_take_values_from_the_own_environment_where_they_have_none() -> None:
    assert read_assignments(["A=1=2", "B", "C="], {"B": "own"}) == {"A": "1=2", "B": "own", "C": ""}
    with pytest.raises(ValueError, match="D is not set in your environment"):
        read_assignments(["D"], {})
    with pytest.raises(ValueError, match="names no variable"):
        read_assignments(["=x"], {})


def test_a_file_of_variables_is_read_line_by_line_values_as_they_stand() -> None:
    data = b'# comment\n\nA=1 # no comment\r\n  # comment\nB="quoted"\nC\n'
    assert read_environment_file(data, {"C": "own"}) == {"A": "1 # no comment", "B": '"quoted"', "C": "own"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"A=1\nhunter two\n", "line 2: write K=V"),
        (b"export A=hunter2\n", "line 1: "),
        (b"PATH=hunter2\n", "line 1: "),
        (b"A=\xff\n", "line 1 is not UTF-8"),
        (b"A\n", "line 1: A is not set in your environment"),
    ],
)
def test_a_bad_line_of_the_file_is_told_by_its_number_never_by_its_value(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as fault:
        read_environment_file(data, {})
    assert "hunter" not in str(fault.value)


@pytest.mark.parametrize("timeout", [-1.0, float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(Refused, match="allowed is a number of seconds"):
        plan(make(tmp_path / "etl"), timeout=timeout)
