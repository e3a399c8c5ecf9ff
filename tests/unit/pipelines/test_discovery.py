"""Discovery: which folders are pipelines, which file is their metadata, and what is wrong with them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fastflow.pipelines.discovery import MAX_GROUP_DEPTH, Pipeline, PipelineState, find_pipelines
from fastflow.pipelines.folder import DiskFolder, FolderFault
from fastflow.pipelines.metadata import STANDARD_LIMITS
from fastflow.pipelines.problems import Problem, Severity
from fastflow.pipelines.validation import Report, validate


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def make(folder: Path, main: str = "print(1)\n", **files: Any) -> Path:
    """A pipeline; files are named with _ for a dot ("pipeline_json"), and written as JSON if they are not text."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(main)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


def single(source: Path) -> Pipeline:
    report = validate(source)
    assert len(report.pipelines) == 1
    return report.pipelines[0]


def told(pipeline: Pipeline, severity: Severity = Severity.ERROR) -> list[Problem]:
    assert {problem.severity for problem in pipeline.problems} <= {severity}, pipeline.problems
    return list(pipeline.problems)


def notes(report: Report) -> dict[str, str]:
    return {note.path: note.message for note in report.notes}


def test_the_format_s_three_examples_are_found(source: Path) -> None:
    make(source / "pipeline_a", requirements_txt="requests==2.31.0\n", pipeline_json={"mem_hard_limit": "1g"})
    make(source / "pipeline_b", requirements_txt="requests\n", data_processor_json={"mem_hard_limit": "512m"})
    make(source / "pipeline_c")
    a, b, c = validate(source).pipelines
    assert [p.state for p in (a, b, c)] == [PipelineState.READY] * 3
    assert (a.name, a.path, a.metadata_file, a.has_requirements) == ("pipeline_a", "pipeline_a", "pipeline.json", True)
    assert (b.name, b.metadata_file) == ("pipeline_b", "data_processor.json")
    assert b.metadata is not None
    assert b.metadata.limits.memory_hard_bytes == 512 * 1024**2
    assert (c.metadata_file, c.has_requirements) == ("", False)
    assert c.metadata is not None
    assert c.metadata.limits == STANDARD_LIMITS


def test_a_folder_without_main_is_ignored_and_said(source: Path) -> None:
    make(source / "good")
    (source / "empty").mkdir()
    (source / "library" / "deep").mkdir(parents=True)
    (source / "spelled").mkdir()
    (source / "spelled" / "Main.py").touch()
    report = validate(source)
    assert [pipeline.name for pipeline in report.pipelines] == ["good"]
    assert notes(report) == {
        "empty": "has no main.py: ignored",
        "library": "has no main.py: ignored",
        "spelled": 'has no main.py, but "Main.py": ignored',
    }


def test_hidden_folders_and_caches_are_skipped(source: Path) -> None:
    for name in (".git", ".hidden", "__pycache__"):
        make(source / name)
    report = validate(source)
    assert report == Report((), ())
    assert not report.valid


def test_pipelines_can_be_grouped_in_folders(source: Path) -> None:
    make(source / "finance" / "daily" / "invoices")
    make(source / "hello")
    assert [(p.name, p.path) for p in validate(source).pipelines] == [
        ("invoices", "finance/daily/invoices"),
        ("hello", "hello"),
    ]


def test_the_sub_folders_of_a_pipeline_are_its_own_code(source: Path) -> None:
    make(source / "outer")
    make(source / "outer" / "inner")
    assert [pipeline.name for pipeline in validate(source).pipelines] == ["outer"]


def test_pipelines_are_not_searched_for_ever(source: Path) -> None:
    deep = source.joinpath(*["d"] * MAX_GROUP_DEPTH)
    make(deep / "too_deep")
    make(deep.parent / "deep_enough")
    report = validate(source)
    assert [pipeline.name for pipeline in report.pipelines] == ["deep_enough"]
    said = notes(report)
    assert "at most 8 folders deep" in said[str((deep / "too_deep").relative_to(source))]
    assert said[str(deep.relative_to(source))] == "has no main.py: ignored"


def test_a_main_in_the_root_of_a_source_is_no_pipeline(source: Path) -> None:
    (source / "main.py").touch()
    make(source / "good")
    found = find_pipelines(DiskFolder(source))
    assert [place.name for place in found.places] == ["good"]
    assert "move it into" in found.notes[0].message


def test_one_pipeline_can_be_validated_by_its_own_path(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(source / "alone", alone_json={"timeout": 5})
    assert single(source / "alone").metadata_file == "alone.json"
    monkeypatch.chdir(source / "alone")
    assert single(Path()).name == "alone"


def test_two_pipelines_of_one_name_are_both_invalid_and_name_both_paths(source: Path) -> None:
    make(source / "a" / "same")
    make(source / "b" / "same")
    make(source / "other")
    states = {pipeline.path: pipeline for pipeline in validate(source).pipelines}
    assert states["other"].state is PipelineState.READY
    for path in ("a/same", "b/same"):
        assert states[path].state is PipelineState.INVALID
        assert '"same" stands for 2 folders: a/same, b/same' in states[path].problems[0].message


def test_a_disabled_pipeline_is_told_as_such(source: Path) -> None:
    make(source / "p", pipeline_json={"enabled": False})
    assert single(source).state is PipelineState.DISABLED


def test_a_folder_that_is_none_is_refused(source: Path) -> None:
    with pytest.raises(FolderFault, match="No such file"):
        validate(source / "missing")
    (source / "file").touch()
    with pytest.raises(FolderFault, match="Not a directory"):
        validate(source / "file")


def test_pipeline_json_comes_before_the_file_named_after_the_folder(source: Path) -> None:
    make(source / "p", pipeline_json={"timeout": 1}, p_json={"timeout": 2}, other_json={"timeout": 3})
    pipeline = single(source)
    assert pipeline.metadata is not None
    assert (pipeline.metadata_file, pipeline.metadata.timeout_seconds) == ("pipeline.json", 1)
    assert [problem.file for problem in told(pipeline, Severity.WARNING)] == ["p.json"]


def test_the_file_named_after_the_folder_comes_before_any_other(source: Path) -> None:
    make(source / "p", p_json={"timeout": 2}, other_json={"timeout": 3})
    assert single(source).metadata_file == "p.json"
    assert single(source).problems == ()


def test_a_wrong_pipeline_json_is_never_passed_over(source: Path) -> None:
    make(source / "p", pipeline_json="{", p_json={"timeout": 2})
    pipeline = single(source)
    assert pipeline.state is PipelineState.INVALID
    assert pipeline.metadata is None
    assert pipeline.problems[0].file == "pipeline.json"


def test_a_single_other_file_of_metadata_is_read_with_a_warning(source: Path) -> None:
    make(source / "p", limits_json={"timeout": 3, "schedules": []}, data_json={"rows": [1]}, list_json=[1])
    pipeline = single(source)
    assert pipeline.metadata_file == "limits.json"
    first, *_ = told(pipeline, Severity.WARNING)
    assert (first.file, first.field) == ("limits.json", "schedules")
    assert "better name it pipeline.json" in pipeline.problems[-1].message


def test_the_guessed_file_is_as_strict_as_any(source: Path) -> None:
    make(source / "p", limits_json={"timeout": "soon"})
    assert single(source).state is PipelineState.INVALID


def test_of_several_other_files_none_is_read_and_each_is_told(source: Path) -> None:
    make(source / "p", a_json={"timeout": 3}, b_json={"tags": []})
    pipeline = single(source)
    assert (pipeline.metadata_file, pipeline.state) == ("", PipelineState.READY)
    assert [problem.file for problem in told(pipeline, Severity.WARNING)] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mem_hard_limit": "1g", "timeouts": 1}, "its key 'timeouts' is not a field (did you mean \"timeout\"?)"),
        ('{"mem_hard_limit": "1g",}', "it is not valid JSON: line 1"),
        ([{"mem_hard_limit": "1g"}], "it holds something else"),
    ],
)
def test_limits_that_are_not_read_are_told(source: Path, content: Any, said: str) -> None:
    make(source / "p", limits_json=content)
    pipeline = single(source)
    assert pipeline.metadata_file == ""
    assert said in told(pipeline, Severity.WARNING)[0].message


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"type": "service_account"}', '{"secrets": 1}', "\xff"])
def test_other_json_is_data_and_nothing_is_said(source: Path, content: str) -> None:
    make(source / "p", data_json=content)
    assert single(source).problems == ()


def test_a_large_json_file_is_data(source: Path) -> None:
    make(source / "p", data_json={"description": "x" * 300_000})
    assert single(source).problems == ()


@pytest.mark.parametrize("file", ["pyproject.toml", "uv.toml"])
def test_projects_of_uv_are_warned_of(source: Path, file: str) -> None:
    (make(source / "p") / file).touch()
    (problem,) = told(single(source), Severity.WARNING)
    assert problem.file == file


def test_a_header_that_uv_refuses_makes_the_pipeline_invalid(source: Path) -> None:
    make(source / "p", main="# /// script\n# dependencies = []\nprint(1)\n")
    (problem,) = told(single(source))
    assert problem.file == "main.py"
    assert single(source).state is PipelineState.INVALID


def test_a_python_version_beside_a_header_that_excludes_it_is_warned_of(source: Path) -> None:
    header = '# /// script\n# requires-python = ">=3.12"\n# ///\n'
    make(source / "p", main=header, pipeline_json={"python_version": "3.11"})
    (problem,) = told(single(source), Severity.WARNING)
    assert (problem.file, problem.field) == ("main.py", "requires-python")


@pytest.mark.parametrize("name", ["main.py", "pipeline.json", "requirements.txt"])
def test_what_is_read_is_a_regular_file(source: Path, name: str) -> None:
    folder = make(source / "p")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    (problem,) = told(single(source))
    assert problem.file == name
    assert "is a folder" in problem.message


@pytest.mark.parametrize("name", ["main.py", "pipeline.json"])
def test_main_and_metadata_are_no_symbolic_links(source: Path, name: str) -> None:
    folder = make(source / "p", real_txt="{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("real.txt")
    (problem,) = told(single(source))
    assert (problem.file, single(source).state) == (name, PipelineState.INVALID)
    assert "is a symbolic link" in problem.message


def test_requirements_may_be_a_link_within_the_folder(source: Path) -> None:
    folder = make(source / "p", real_txt="requests\n")
    (folder / "requirements.txt").symlink_to("real.txt")
    assert single(source).has_requirements
    assert single(source).problems == ()


@pytest.mark.parametrize("target", ["missing.txt", "../common.txt", "/etc/hosts", "requirements.txt"])
def test_requirements_that_lead_nowhere_make_the_pipeline_invalid(source: Path, target: str) -> None:
    (source / "common.txt").touch()
    (make(source / "p") / "requirements.txt").symlink_to(target)
    (problem,) = told(single(source))
    assert problem.file == "requirements.txt"
    assert "symbolic link" in problem.message


def test_a_folder_that_is_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere" / "p")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "direct").symlink_to(tmp_path / "elsewhere" / "p")
    report = validate(source)
    assert report.pipelines == ()
    assert set(notes(report)) == {"link", "direct"}


def test_links_that_leave_the_folder_are_told_with_their_target(source: Path) -> None:
    folder = make(source / "p")
    (folder / "up").symlink_to("../..")
    (folder / "package").mkdir()
    (folder / "package" / "ok").symlink_to("../main.py")
    (problem,) = told(single(source))
    assert problem.file == "up"
    assert "is a symbolic link to '../..', which leaves the folder" in problem.message


def test_what_can_not_travel_makes_the_pipeline_invalid(source: Path) -> None:
    folder = make(source / "p")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff.txt")).touch()
    problems = told(single(source))
    assert {problem.file for problem in problems} == {"pipe", "\\udcff.txt"}


@pytest.mark.parametrize("name", ["red\x1b[31m", os.fsdecode(b"\xff")])
def test_a_name_that_can_not_be_shown_makes_the_pipeline_invalid(source: Path, name: str) -> None:
    make(source / name)
    pipeline = single(source)
    assert pipeline.state is PipelineState.INVALID
    assert re.fullmatch(r"[\x20-\x7e]+", pipeline.name + pipeline.path)


@pytest.mark.parametrize("file", ["red\x1b[31m.json", os.fsdecode(b"\xff.json")])
def test_metadata_in_a_file_whose_name_can_not_be_shown_is_read_and_told(source: Path, file: str) -> None:
    (make(source / "p") / file).write_text('{"cpu_hard_limit": 0.25, "schedule_cron": "0 0 * * 1"}')
    pipeline = single(source)
    assert pipeline.metadata is not None
    assert pipeline.metadata.limits.cpu_hard_milli_cores == 250
    told = " ".join((pipeline.metadata_file, *(f"{problem.file} {problem.message}" for problem in pipeline.problems)))
    assert re.fullmatch(r"[\x20-\x7e]+", told)


@pytest.mark.parametrize("name", ["ünïcode", "with space", "-dash", "a.b", "🎈"])
def test_any_other_name_is_a_name(source: Path, name: str) -> None:
    make(source / name)
    assert (single(source).name, single(source).state) == (name, PipelineState.READY)
