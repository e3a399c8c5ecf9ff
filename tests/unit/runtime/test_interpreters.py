"""What uv says of the interpreters it finds."""

import json

import pytest
from fastflow.pipelines.metadata import matches_python
from fastflow_agent.runtime.base import RuntimeFault
from fastflow_agent.runtime.interpreters import Interpreters, parse


def found(version: str, path: str, **more: str) -> dict[str, object]:
    major, minor, patch = version.split(".")
    parts = {"major": int(major), "minor": int(minor), "patch": int(patch)}
    return {"version": version, "version_parts": parts, "path": path, "implementation": "cpython", **more}


LISTING = [
    found("3.12.1", "/opt/python3.12"),
    found("3.9.18", "/usr/bin/python3.9"),
    found("3.12.0", "/usr/local/bin/python3.12"),
    found("3.13.0", "/opt/python3.13t", variant="freethreaded"),
    found("3.10.14", "/opt/pypy3.10", implementation="pypy"),
]
OUTPUT = "uv 0.9.30 (x86_64-unknown-linux-gnu)\n/usr/bin/python3\n" + json.dumps(LISTING) + "\n"


def test_minor_and_exact_versions_name_the_interpreter_uv_would_choose() -> None:
    here = parse(OUTPUT)
    assert (here.uv_version, here.default) == ("0.9.30", "/usr/bin/python3")
    assert here.path("3.12") == here.path("3.12.1") == "/opt/python3.12"
    assert here.path("3.12.0") == "/usr/local/bin/python3.12"
    assert here.path("") == "/usr/bin/python3"


def test_versions_are_exact_ones_in_their_order() -> None:
    here = parse(OUTPUT)
    assert here.versions == ("3.9.18", "3.12.0", "3.12.1")
    for asked in ("3.9", "3.9.18", "3.12", "3.12.0"):
        assert any(matches_python(asked, version) for version in here.versions)
        assert here.path(asked)


def test_a_version_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RuntimeFault, match=r"no Python 3\.13 here; there is 3\.9\.18, 3\.12\.0, 3\.12\.1"):
        parse(OUTPUT).path("3.13")


@pytest.mark.parametrize(
    "output",
    [
        "uv: not found\n",
        "uv\n/usr/bin/python3\n[]\n",
        "uv 0.9\n/usr/bin/python3\nno list\n",
        'uv 0.1\n/usr/bin/python3\n[{"implementation": "cpython", "path": "/usr/bin/python3"}]\n',
        "uv 0.1\n/usr/bin/python3\n[1]\n",
    ],
)
def test_nonsense_is_a_value_error(output: str) -> None:
    with pytest.raises(ValueError, match="what uv says is not understood"):
        parse(output)


def test_what_was_found_can_be_kept_as_json() -> None:
    here = parse(OUTPUT)
    assert Interpreters(**json.loads(json.dumps(vars(here)))) == here
