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
    assert 'warning: etl/pipeline.json: schedule_cron: weekday "0" meant Monday' in text


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


def test_a_repository_of_the_original_is_told_what_means_nothing_or_something_else_here(
    ffctl: Ffctl, tmp_path: Path
) -> None:
    pipeline(tmp_path / "pipelines" / "daily", '{"schedule_cron": "0 9 * * 1", "retry_strategy": {}}')
    pipeline(tmp_path / "pipelines" / "weekly", '{"schedule_cron": "0 9 * * MON"}')
    (tmp_path / "pipelines" / "notes").mkdir()
    (tmp_path / "pipelines" / "notes" / "main.ipynb").write_text("{}")
    ended = ffctl("pipelines", "validate", str(tmp_path))
    text = ended.out.decode()
    assert ended.code == 0
    assert "warning: pipelines/daily/pipeline.json: schedule_cron: is not supported yet" in text
    assert 'schedule_cron: weekday "1" meant Tuesday to the original Fast-Flow' in text
    assert text.count("meant") == 1
    assert "retry_strategy: is not supported yet and has no effect; a failed run stays FAILED" in text
    assert "2 pipelines: 2 READY; 0 errors, 4 warnings" in text
    assert "without effect here: retry_strategy (1 pipeline), schedule_cron (2 pipelines)" in text
    assert "nbconvert" in ended.err


def test_names_with_spaces_and_other_alphabets_are_pipelines_like_others(ffctl: Ffctl, tmp_path: Path) -> None:
    for name in ("Größe & Co", "日次 集計", "a'b\"c [x]"):
        pipeline(tmp_path / name, '{"mem_hard_limit": "512m"}')
    ended = ffctl("pipelines", "validate", str(tmp_path), "-o", "json")
    names = [found["name"] for found in json.loads(ended.out)["pipelines"]]
    assert (ended.code, sorted(names)) == (0, sorted(["Größe & Co", "日次 集計", "a'b\"c [x]"]))
    assert "a'b\"c [x]" in ffctl("pipelines", "validate", str(tmp_path)).out.decode()


def test_a_bad_line_of_the_requirements_is_told_with_its_number_and_makes_it_invalid(
    ffctl: Ffctl, tmp_path: Path
) -> None:
    pipeline(tmp_path / "etl")
    (tmp_path / "etl" / "requirements.txt").write_text("pandas\nrequests=2.0\n")
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert ended.code == 1
    assert 'error: etl/requirements.txt: line 2: "requests=2.0" is no requirement' in ended.out.decode()
    assert "1 pipeline: 1 INVALID; 1 error, 0 warnings" in ended.out.decode()


def test_a_header_that_uv_refuses_is_told_with_line_field_and_fix_and_makes_it_invalid(
    ffctl: Ffctl, tmp_path: Path
) -> None:
    pipeline(tmp_path / "etl")
    (tmp_path / "etl" / "main.py").write_text('import os\n\n# /// script\n# dependencies = ["requests=2.0"]\n# ///\n')
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert ended.code == 1
    fix = '(did you mean "requests==2.0"?)'
    assert f'error: etl/main.py: dependencies: line 4: "requests=2.0" is no requirement {fix}' in ended.out.decode()


def test_two_metadata_files_are_told_and_the_standard_name_wins(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "etl", '{"mem_hard_limit": "512m"}')
    (tmp_path / "etl" / "etl.json").write_text('{"mem_hard_limit": "64m"}')
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert ended.code == 0
    assert "512 MiB" in ended.out.decode()
    assert "warning: etl/etl.json: is not read, as pipeline.json is there; remove one of the two" in ended.out.decode()


def test_metadata_in_another_encoding_is_an_error_that_says_so(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "latin")
    (tmp_path / "latin" / "pipeline.json").write_bytes('{"description": "Größe"}'.encode("latin-1"))
    pipeline(tmp_path / "windows")
    (tmp_path / "windows" / "pipeline.json").write_bytes('{"mem_hard_limit": "64m"}'.encode("utf-16"))
    ended = ffctl("pipelines", "validate", str(tmp_path))
    text = ended.out.decode()
    assert ended.code == 1
    assert "latin/pipeline.json: is not valid JSON: line 1: byte 0xf6 is not UTF-8; save the file as UTF-8" in text
    assert "windows/pipeline.json: is not valid JSON: begins with a byte order mark of UTF-16" in text


def test_a_repository_with_a_main_py_at_its_top_is_told_how_it_is_read(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "repository")
    pipeline(tmp_path / "repository" / "pipelines" / "etl")
    ended = ffctl("pipelines", "validate", str(tmp_path / "repository"))
    assert ended.code == 0
    assert "(pipelines/etl) are its own code" in ended.err


def test_what_is_wrong_with_a_folder_itself_is_told_by_its_path(ffctl: Ffctl, tmp_path: Path) -> None:
    for group in ("one", "other"):
        (tmp_path / group / "x").mkdir(parents=True)
        (tmp_path / group / "x" / "main.py").touch()
    said = ffctl("pipelines", "validate", str(tmp_path)).out.decode()
    assert 'error: one/x: the name "x" stands for 2 folders: one/x, other/x; rename all but one' in said


def test_code_is_judged_by_the_limit_of_the_server_it_is_for(ffctl: Ffctl, tmp_path: Path) -> None:
    pipeline(tmp_path / "etl")
    with (tmp_path / "etl" / "data").open("wb") as file:
        file.truncate(256 << 20)
    ended = ffctl("pipelines", "validate", str(tmp_path))
    assert ended.code == 1
    assert "the code has more than 256 MiB" in ended.out.decode()
    assert ffctl("pipelines", "validate", str(tmp_path), "--code-limit", "1g").code == 0
    assert (
        "the code has more than 1 MiB" in ffctl("pipelines", "validate", "--code-limit=1m", str(tmp_path)).out.decode()
    )
    wrong = ffctl("pipelines", "validate", str(tmp_path), "--code-limit", "large")
    assert wrong.code == 2
    assert "'large'" in wrong.err
    assert "[default: 256m]" in ffctl("pipelines", "validate", "--help").out.decode()
