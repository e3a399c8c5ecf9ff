"""Inline script metadata: an error here is only what uv refuses too."""

import json
import sys
from pathlib import Path

import pytest
from fastflow.pipelines.headerproblems import python_problems, read_header
from fastflow.pipelines.problems import Severity, errors
from fastflow.pipelines.requirements import MAX_PROBLEMS

from .scripts import script, uv_runs

REFUSED = [
    ("", ["dependencies = [requests]"]),
    ("", ["dependencies = []", "dependencies = []"]),
    ("", ["dependencies = ['a"]),
    ("", ["x = " + "9" * 5000]),
    ("", ["x = " + "[" * 2000 + "]" * 2000]),
    ("dependencies", ['dependencies = "requests"']),
    ("dependencies", ["dependencies = [3]"]),
    ("dependencies", ["dependencies = {}"]),
    ("requires-python", ['requires-python = "3.11"']),
    ("requires-python", ['requires-python = "3.11+"']),
    ("requires-python", ["requires-python = 3.11"]),
    ("requires-python", ['requires-python = [">=3.9"]']),
    ("requires-python", ['requires-python = " "']),
    ("requires-python", ['requires-python = ">=3.9,"']),
    ("requires-python", ['requires-python = ">=3.9,,<4"']),
    ("requires-python", ['requires-python = "===three"']),
    ("requires-python", ['requires-python = ">=3.9 <4"']),
    ("requires-python", ['requires-python = "^3.9"']),
    ("tool.uv", ['tool = "x"']),
    ("tool.uv", ["[tool]", 'uv = "x"']),
    ("tool.uv.constraint-dependencies", ["[tool.uv]", 'constraint-dependencies = ["a=1"]']),
    ("tool.uv.constraint-dependencies", ["[tool.uv]", 'constraint-dependencies = "a"']),
]
NO_REQUIREMENTS = [
    "",
    " ",
    "requests=2",
    "requests 2",
    "requests==",
    "re quests",
    "requests # a comment",
    "requests==2 --hash=sha256:aa",
    "-r others.txt",
    "-e .",
    "requests --index-url http://own",
    "a;",
    "a; python_version",
    "a; planet == 'earth'",
    "a===one",
    "a_",
    "größe",
    "./x-1.0-py3-none-any.whl",
    "x-1.0.tar.gz",
    "/srv/x",
    "https://x.invalid/x-1.0.tar.gz",
    "git+https://x.invalid/x",
    "${X}",
    "a @ ./x-1.0.tar.gz",
    "a @ x.whl",
]
ACCEPTED = [
    [],
    ["dependencies = []", "", "# a comment of TOML"],
    ["x = 1 # a page\u2028of words"],
    ['requires-python = ""'],
    ['requires-python = " >= 3.9 , <4 "'],
    ['requires-python = ">=v3.9,!=3.9.*"'],
    ['requires-python = ">=99"'],
    ["[tool.uv]", "index = []"],
    ["[tool.uv]", "constraint-dependencies = []"],
    ["[tool.other]", 'uv = "x"'],
    ['[project]\nname = "x"'.replace("\n", "\n# ")],
    ["x = {a = 1,", " b = 2,}"],
    [r'x = "\e\x41"'],
    ["x = 07:32"],
    ["x = 23:59:60"],
    ["x = 0000-01-01"],
    ["\ufeffx = 1"],
]
REQUIREMENTS = [
    "a",
    "A.b-c_d[x, y] (>=1,)",
    "a[]",
    "a==1.0.*,!=1.0.post1",
    "a===1.0",
    "  a  ",
    "a\n",
    "\u3000a\u2028",
    "a @ file:///x-1.0.tar.gz",
    "a @ file:///a folder/x-1.0.tar.gz",
    "a @ /x-1.0.tar.gz",
    "a @ file://${HOME}/x-1.0.tar.gz",
    "a @ ${HOME}/x-1.0.tar.gz",
    "a @ git+https://x.invalid/x@main#subdirectory=y",
]


@pytest.mark.parametrize(("field", "lines"), REFUSED, ids=[each[1][-1][:40] for each in REFUSED])
def test_what_uv_refuses_is_an_error_with_field_and_line(field: str, lines: list[str], tmp_path: Path) -> None:
    source = b"import os\n" + script(*lines)
    assert uv_runs(source, tmp_path).returncode == 2
    (problem,) = read_header(source, "main.py").problems
    assert (problem.severity, problem.file, problem.field) == (Severity.ERROR, "main.py", field)
    assert problem.message.startswith(f"line {2 if len(lines[0]) > 2000 and '[' in lines[0] else 2 + len(lines)}: ")


@pytest.mark.parametrize("requirement", NO_REQUIREMENTS)
def test_a_dependency_that_uv_refuses_is_an_error(requirement: str, tmp_path: Path) -> None:
    source = script(f"dependencies = [{json.dumps(requirement)}]")
    assert "TOML parse error" in uv_runs(source, tmp_path).stderr
    (problem,) = read_header(source, "main.py").problems
    assert (problem.severity, problem.field) == (Severity.ERROR, "dependencies")
    assert problem.message.startswith('line 2: "')


@pytest.mark.parametrize("lines", ACCEPTED, ids=repr)
def test_what_uv_runs_is_no_error(lines: list[str], tmp_path: Path) -> None:
    source = script(*lines)
    assert uv_runs(source, tmp_path).stdout == "it runs\n"
    assert errors(read_header(source, "main.py").problems) == []


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_a_dependency_that_uv_accepts_is_no_error(requirement: str, tmp_path: Path) -> None:
    unneeded = json.dumps(f"{requirement} ; python_version < '3'")
    source = script(f"dependencies = [{unneeded}]")
    assert uv_runs(source, tmp_path).stdout == "it runs\n"
    assert read_header(source, "main.py").problems == ()


def test_a_mark_that_uv_takes_for_any_other_is_left_to_it(tmp_path: Path) -> None:
    source = script("dependencies = ['''a; os_name == '\\' ''']")
    assert uv_runs(source, tmp_path).stdout == "it runs\n"
    assert read_header(source, "main.py").problems == ()


def test_each_dependency_that_is_wrong_is_told_up_to_a_bound() -> None:
    source = script("dependencies = [", *(f'  "a{number}=1",' for number in range(100)), "]")
    problems = read_header(source, "main.py").problems
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[1].message.startswith('line 4: "a1=1" is no requirement (did you mean "a1==1"?)')
    assert "mend these first" in problems[-1].message


def test_a_login_in_an_address_is_not_shown() -> None:
    (problem,) = read_header(script('dependencies = ["git+https://me:s3cret@x.invalid/x"]'), "main.py").problems
    assert "s3cret" not in problem.message


def test_a_dependency_of_any_length_is_left_to_uv() -> None:
    assert read_header(script(f'dependencies = ["{"a " * 400_000}"]'), "main.py").problems == ()


@pytest.mark.parametrize(
    ("wanted", "version", "conflict"),
    [
        (">=3.12", "3.11", True),
        ("<3.11", "3.11", True),
        ("==3.12.*", "3.11.2", True),
        (">=3.11.3", "3.11.2", True),
        (">=3.11.3", "3.11", False),
        (">=3.9", "3.11", False),
        (">=3.12", "", False),
        ("", "3.11", False),
    ],
)
def test_a_python_version_that_the_header_excludes_is_warned_of(wanted: str, version: str, conflict: bool) -> None:
    header = read_header(script("dependencies = []", f'requires-python = "{wanted}"'), "main.py")
    problems = [*python_problems(header, "main.py", version)]
    assert len(problems) == conflict
    for problem in problems:
        assert (problem.severity, problem.field) == (Severity.WARNING, "requires-python")
        assert problem.message.startswith(f'line 3: "{wanted}" holds for no Python {version}')


def test_uv_only_warns_of_a_python_that_the_header_excludes(tmp_path: Path) -> None:
    ended = uv_runs(script('requires-python = ">=99"'), tmp_path)
    assert ended.stdout == "it runs\n"
    python = ".".join(map(str, sys.version_info[:3]))
    assert f"warning: The requested interpreter resolved to Python {python}, which is incompatible" in ended.stderr
