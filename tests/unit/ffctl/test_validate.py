"""`ffctl pipelines validate`: needs no server, and finds what the control plane would find."""

import json
from pathlib import Path

from .conftest import Ffctl, ScriptedServer


def pipeline(folder: Path, metadata: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("print('hello')\n")
    if metadata:
        (folder / "pipeline.json").write_text(metadata)


def test_valid_pipelines_are_listed(ffctl: Ffctl, server: ScriptedServer, tmp_path: Path) -> None:
    server.stop()
    pipeline(tmp_path / "etl", '{"mem_hard_limit": "512m", "description": "Loads orders"}')
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert ended.code == 0
    assert ended.out.decode().splitlines()[1].split()[:2] == ["etl", "READY"]
    assert "512 MiB" in ended.out.decode()


def test_every_problem_is_told_with_file_field_and_value(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "etl", '{"mem_hard_limit": "12 apples", "cpu_hard_limt": 1, "schedule_cron": "0 0 * * 0"}')
    ended = ffctl("pipelines", "validate", str(tmp_path / "etl"))
    text = ended.out.decode()
    assert ended.code == 1
    assert "error: etl/pipeline.json: mem_hard_limit:" in text
    assert "12 apples" in text
    assert "did you mean" in text
    assert "warning: etl/pipeline.json: schedule_cron: is not supported yet" in text


def test_a_folder_without_a_main_py_is_said_to_be_none(ffctl: Ffctl, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert (ended.code, ended.out) == (1, b"")
    assert "notes: has no main.py: ignored" in ended.err
    assert "a pipeline is a folder with a main.py" in ended.err
    assert json.loads(ffctl("pipelines", "validate", str(tmp_path), "-o", "json").out) == {"pipelines": []}


def test_json_has_the_shape_of_the_api(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "etl", '{"cpu_hard_limit": -1}')
    ended = ffctl("pipelines", "validate", str(tmp_path), "-o", "json")
    (found,) = json.loads(ended.out)["pipelines"]
    assert (ended.code, found["name"], found["state"]) == (1, "etl", "PIPELINE_STATE_INVALID")
    assert found["problems"][0]["severity"] == "PROBLEM_SEVERITY_ERROR"


def test_a_path_that_does_not_exist_is_a_usage_error(ffctl: Ffctl, tmp_path: Path) -> None:
    assert ffctl("pipelines", "validate", str(tmp_path / "nowhere")).code == 2
