"""`ffctl run --local`: which options go with it; what it does is tested with the agent it becomes."""

import os
from pathlib import Path

import pytest

from .conftest import Ffctl


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--wait"], "--wait"),
        (["-o", "json"], "-o"),
        (["--request-id", "x"], "--request-id"),
        (["--server", "example:1"], "--server"),
    ],
)
def test_options_of_a_server_are_refused_with_local(
    ffctl: Ffctl, tmp_path: Path, arguments: list[str], named: str
) -> None:
    ended = ffctl("run", "--local", str(tmp_path), *arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert f"--local needs no server and goes without {named}" in ended.err


@pytest.mark.parametrize(
    "arguments", [["--timeout", "3"], ["--runtime", "process"], ["--cache", "x"], ["--code-limit", "1g"]]
)
def test_options_of_local_runs_are_refused_without_it(ffctl: Ffctl, arguments: list[str]) -> None:
    ended = ffctl("run", "etl", *arguments)
    assert ended.code == 2
    assert f"{arguments[0]} goes with --local only" in ended.err


def test_what_is_no_folder_is_a_usage_error(ffctl: Ffctl, tmp_path: Path) -> None:
    ended = ffctl("run", "--local", str(tmp_path / "nowhere"))
    assert ended.code == 2
    assert "--local runs a folder" in ended.err


def test_a_code_limit_that_is_no_size_is_a_usage_error(ffctl: Ffctl, tmp_path: Path) -> None:
    ended = ffctl("run", "--local", str(tmp_path), "--code-limit", "large")
    assert ended.code == 2
    assert "'large'" in ended.err


def test_a_timeout_of_zero_is_passed_on_as_none_at_all(
    ffctl: Ffctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []

    def become(_script: object, arguments: list[str], _environment: object) -> None:
        became.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit):
        ffctl("run", "--local", str(tmp_path), "--timeout", "0")
    assert became == [["fastflow-agent", "local", "--timeout=0.0", "--", str(tmp_path)]]
