"""`ffctl run --local --runtime process`: everything of a local run that needs no container."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local import LocalRuns
from tests.cluster.program import PATIENCE_SECONDS


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRuns]:
    """Local runs of this test."""
    with LocalRuns(tmp_path, "process") as made:
        yield made


def test_it_runs_and_says_what_is_not_isolated(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("hello", "import sys; print('out'); print('err', file=sys.stderr)"))
    assert (ended.exit_code, ended.stdout) == (0, b"out\nerr\n")
    assert "warning: The process runtime isolates and limits nothing" in ended.stderr
    assert "local run of hello SUCCEEDED" in ended.stderr
    assert "peak memory unavailable" in ended.stderr
    assert local.left_behind == []


def test_a_failed_run_exits_with_one(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("broken", "raise RuntimeError('oh')"))
    assert ended.exit_code == 1
    assert b"RuntimeError: oh" in ended.stdout
    assert "FAILED (exit code 1)" in ended.stderr


def test_a_folder_named_with_spaces_and_other_alphabets_runs(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("Größe & 集計 [x]", "print('here')"))
    assert (ended.exit_code, ended.stdout) == (0, b"here\n")
    assert "local run of Größe & 集計 [x] SUCCEEDED" in ended.stderr


def test_an_invalid_pipeline_is_refused_with_every_problem_and_not_run(local: LocalRuns) -> None:
    folder = local.pipeline("etl", "print('ran')", pipeline={"cpu_hard_limt": 1}, requirements="requests=2\n")
    ended = local.run(folder)
    assert (ended.exit_code, ended.stdout) == (4, b"")
    assert 'did you mean "cpu_hard_limit"' in ended.stderr
    assert 'did you mean "requests==2"?' in ended.stderr
    assert local.left_behind == []


def test_code_is_judged_by_the_limit_of_the_server_it_is_for(local: LocalRuns) -> None:
    folder = local.pipeline("etl", "print('ran')")
    (folder / "data").write_bytes(bytes(2000))
    ended = local.run(folder, "--code-limit", "1k")
    assert (ended.exit_code, ended.stdout) == (4, b"")
    assert "the code has more than 1 KiB" in ended.stderr
    assert local.run(folder, "--code-limit", "1g").stdout == b"ran\n"


def test_metadata_in_another_encoding_is_refused(local: LocalRuns) -> None:
    folder = local.pipeline("etl", "print('ran')")
    (folder / "pipeline.json").write_bytes('{"description": "Größe"}'.encode("latin-1"))
    ended = local.run(folder)
    assert ended.exit_code == 4
    assert "save the file as UTF-8" in ended.stderr


def test_a_link_that_leaves_the_folder_is_refused(local: LocalRuns) -> None:
    folder = local.pipeline("etl", "print('ran')")
    (folder / "passwords").symlink_to("/etc/passwd")
    ended = local.run(folder)
    assert ended.exit_code == 4
    assert "only files of the folder can be linked" in ended.stderr


def test_a_refused_variable_and_a_bad_file_of_secrets_are_told_without_values(local: LocalRuns, tmp_path: Path) -> None:
    folder = local.pipeline("etl", "print('ran')")
    refused = local.run(folder, "--env", "PATH=hunter2")
    assert (refused.exit_code, refused.stdout) == (4, b"")
    assert "environment variable PATH" in refused.stderr
    (tmp_path / "secrets").write_text("API KEY=hunter2\n")
    bad = local.run(folder, "--env-file", str(tmp_path / "secrets"))
    assert bad.exit_code == 2
    assert f"{tmp_path}/secrets: line 1: " in bad.stderr
    assert "hunter2" not in refused.stderr + bad.stderr


def test_a_setting_that_is_wrong_is_told(local: LocalRuns) -> None:
    local.settings["FASTFLOW_SPOOL_QUOTA"] = "lots"
    ended = local.run(local.pipeline("etl", "print('ran')"))
    assert ended.exit_code == 2
    assert "FASTFLOW_SPOOL_QUOTA" in ended.stderr


def test_a_terminal_that_is_closed_ends_the_run(local: LocalRuns) -> None:
    main = "import time\nwhile True: print('up', flush=True); time.sleep(0.01)"
    side, terminal = os.openpty()
    with local.started(local.pipeline("endless", main), terminal=terminal) as process:
        os.close(terminal)
        seen = b""
        while b"up" not in seen:
            seen += os.read(side, 4096)
        os.close(side)
        assert process.wait(PATIENCE_SECONDS) == 1
    assert local.left_behind == []
