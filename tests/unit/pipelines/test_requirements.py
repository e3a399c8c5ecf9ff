"""Requirements: refused here is only what uv refuses too."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastflow.pipelines.problems import Problem, Severity
from fastflow.pipelines.requirements import MAX_PROBLEMS, requirements_problems
from uv import find_uv_bin

BAD = [
    "requests=2.0",
    "requests =>2.0",
    "requests 2.0",
    "requests==",
    "re quests",
    "pandas[all",
    "!!!",
    "requests; python_version",
    "requests>=2.*",
    "requests~=2",
    "requests==latest",
    "numpy<=1.26.x",
    "import requests",
    "requests#comment",
    "pandas>=2.0 numpy",
    "pandas,numpy",
    "_x",
    '"requests"',
]
GOOD = [
    "",
    "# a comment",
    "requests",
    "requests # a comment",
    "requests==2.31.0",
    "requests[security]>=2,<3; python_version < '3.13'",
    "requests==2.* --hash=sha256:aa",
    "tiny @ https://example.org/tiny-1-py3-none-any.whl",
    "https://example.org/tiny-1-py3-none-any.whl",
    "git+https://example.org/tiny.git",
    "./wheels/tiny-1-py3-none-any.whl",
    "tiny-1-py3-none-any.whl",
    "-e ./tiny",
    "--pre",
    "tiny @ file://${PROJECT_ROOT}/tiny",
]


def told(text: str | bytes, *present: str) -> list[str]:
    problems = found(text, *present)
    assert {problem.severity for problem in problems} <= {Severity.ERROR}
    return [problem.message for problem in problems]


def found(text: str | bytes, *present: str) -> list[Problem]:
    data = text if isinstance(text, bytes) else text.encode()
    problems = requirements_problems(data, "requirements.txt", set(present))
    assert {problem.file for problem in problems} <= {"requirements.txt"}
    return problems


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_is_no_requirement_is_an_error_with_its_number_and_what_is_allowed(line: str) -> None:
    (message,) = told(f"tiny\n{line}\nother\n")
    assert message.startswith(f'line 2: "{line}" is no requirement')
    assert "requests==2.31.0" in message


@pytest.mark.parametrize("line", BAD)
def test_uv_refuses_the_same_line(line: str, tmp_path: Path) -> None:
    ended = _uv(line, tmp_path)
    assert ended.returncode != 0
    assert "No solution found" not in ended.stderr


@pytest.mark.parametrize("line", GOOD)
def test_what_uv_may_make_something_of_is_left_to_it(line: str) -> None:
    assert told(f"{line}\r\n") == []


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("requests=2.0", "requests==2.0"),
        ("requests = 2.0", "requests==2.0"),
        ("requests=>2.0", "requests>=2.0"),
        ("a=<2", "a<=2"),
    ],
)
def test_a_slip_of_the_comparison_is_guessed(line: str, meant: str) -> None:
    assert f'did you mean "{meant}"?' in told(line)[0]


def test_several_names_on_a_line_are_said_to_be_several() -> None:
    assert "but 3 on one line" in told("pandas numpy scipy")[0]


def test_an_included_file_has_to_be_in_the_folder() -> None:
    assert told("-r base.txt\n--constraint=sub/pins.txt\n", "base.txt", "sub/pins.txt") == []
    assert told("-r base.txt") == [
        "line 1: names base.txt, which is not in the folder; add that file, or remove the line"
    ]
    (outside,) = told("-r ../common.txt")
    assert "outside the folder" in outside
    assert "copy it in" in outside


INDEXES = [
    "--index-url https://me:s3cret@example.org/simple",
    "--extra-index-url=https://me:s3cret@example.org/simple",
    "-i https://me:s3cret@example.org/simple  # ours",
    "--find-links https://me:s3cret@example.org/wheels",
    "-f https://me:s3cret@example.org/wheels",
    "--no-index",
]


@pytest.mark.parametrize("line", INDEXES)
def test_an_index_that_uv_passes_over_is_warned_about_without_its_login(line: str, tmp_path: Path) -> None:
    option = line.replace("=", " ").split()[0]
    (problem,) = found(f"tiny\n{line}\n")
    assert (problem.severity, problem.message.split(" has ")[0]) == (Severity.WARNING, f"line 2: {option}")
    assert "FASTFLOW_INDEX_URL" in problem.message
    assert "s3cret" not in problem.message
    assert "Ignoring `--" in _uv_run(f"{line}\ntiny\n", tmp_path).stderr


def test_many_lines_that_uv_passes_over_are_no_error() -> None:
    problems = found("--no-index\n" * (MAX_PROBLEMS + 1))
    assert [problem.severity for problem in problems] == [Severity.WARNING] * MAX_PROBLEMS


def test_lines_that_go_on_are_left_to_uv() -> None:
    assert told("requests==2.31.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n") == []


def test_a_file_in_another_encoding_is_told_with_the_line() -> None:
    assert told("tiny\n# größe\n".encode("latin-1")) == ["line 2: byte 0xf6 is not UTF-8; save the file as UTF-8"]


UNUSUAL = ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
"""What Python, and nobody else, takes for the end of a line."""


@pytest.mark.parametrize("sign", UNUSUAL)
def test_only_what_uv_takes_for_the_end_of_a_line_is_one(sign: str, tmp_path: Path) -> None:
    line = f"requests # a page{sign}of words"
    assert "No solution found" in _uv(line, tmp_path).stderr
    assert told(line) == []
    (message,) = told(f"{line}\r\nno requirement at all\n")
    assert message.startswith("line 2: ")
    assert len(told("tiny\r1 2\n")) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_that_windows_writes_and_uv_reads_are_read(encoding: str, tmp_path: Path) -> None:
    assert told("tiny\nrequests=1\n".encode(encoding))[0].startswith("line 2")
    assert "no such comparison operator" in _uv("requests=1", tmp_path, encoding).stderr


def _uv(line: str, folder: Path, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    file = folder / "requirements.txt"
    file.write_text(f"{line}\n", encoding=encoding)
    return _call(folder, "pip", "compile", "--offline", "--no-deps", "--no-config", str(file))


def _uv_run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "requirements.txt"
    file.write_text(text)
    python = ("--python", sys.executable)
    return _call(
        folder, "run", "--offline", "--no-project", "--no-config", *python, "--with-requirements", str(file), "true"
    )


def _call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("uv") or find_uv_bin(), *arguments],
        env={"PATH": os.environ["PATH"], "UV_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("line", ["a; " + "(" * 1000, "a; " + "(" * 1000 + "python_version > '3'" + ")" * 1000])
def test_a_line_nested_too_deeply_is_an_error_of_its_own(line: str) -> None:
    (message,) = told(line)
    assert message.startswith("line 1: ")


def test_a_file_that_is_none_of_requirements_is_told_by_its_first_lines() -> None:
    messages = told("=\n" * 100_000)
    assert [message.partition(":")[0] for message in messages] == [f"line {number}" for number in range(1, 22)]
    assert "mend these first" in messages[-1]


@pytest.mark.parametrize("line", ["a" + " " * 900_000 + "b", "a" + " " * 9_000 + "b", "a" + " =" * 4_000])
def test_a_line_of_any_length_is_read_in_time(line: str) -> None:
    begun = time.process_time()
    told(line)
    assert time.process_time() - begun < 2
