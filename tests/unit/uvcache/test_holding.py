"""Versions that uv is held to."""

import tomllib
from typing import Any

import pytest
from fastflow.pipelines.scriptheader import script_header
from fastflow_agent.uvcache.holding import COMMITS, CONSTRAINTS, commits, constraints, differences, hold, holds


def header(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in ("# /// script", *lines, "# ///")).encode()


def content(of: bytes) -> dict[str, Any]:
    block = script_header(of + b"print('the program')\n")
    assert block is not None
    return tomllib.loads("\n".join(line[2:] for line in block.decode().split("\n")[1:-2]))


def test_uv_is_held_to_what_it_understands_and_to_no_package_of_which_there_are_two() -> None:
    packages = [
        "numpy==2.1.0",
        "torch==2.4.1+cu121",
        "pytz==2004d",
        "Setup_Tools==65.5",
        "setup.tools==70.0",
        "None==None",
    ]
    assert constraints(packages) == {CONSTRAINTS: "numpy==2.1.0\ntorch==2.4.1+cu121"}
    assert constraints(["pytz==2004d"]) == {}


def test_a_preparers_uv_is_held_to_commits_and_to_nothing_else_that_came_from_an_address() -> None:
    of_commit = f"own @ git+https://host/own.git@{'0' * 40}"
    packages = [of_commit, "other @ git+https://host/other.git@main", "web @ https://host/web.whl", "six==1.16"]
    assert commits(packages) == {COMMITS: of_commit}
    assert constraints(packages) == {CONSTRAINTS: "six==1.16"}
    assert commits([of_commit, "own==1.0", f"Own @ git+https://host/own.git@{'1' * 40}"]) == {}


@pytest.mark.parametrize(
    "lines",
    [
        ('# dependencies = ["six"]',),
        (
            '# dependencies = ["six"]',
            "#",
            "# [tool.uv]",
            '# exclude-newer = "2026-01-01T00:00:00Z"',
            "#",
            "# [tool.x]",
            "# y = 1",
        ),
        ('# dependencies = ["six"] # of a page\u2028with words',),
        ('# dependencies = ["six"]', "# [[tool.uv.index]]", '# url = "https://index.example/simple"'),
        ('# dependencies = ["six"]', "# [tool.uv.sources]", '# six = { git = "https://git.example/six" }'),
    ],
)
def test_a_header_gets_constraints_and_is_otherwise_as_it_was(lines: tuple[str, ...]) -> None:
    plain = header(*lines)
    held = hold(plain, ["six==1.16.0", "None==None"])
    assert holds(plain)
    before, after = content(plain), content(held)
    assert after["tool"]["uv"].pop("constraint-dependencies") == ["six==1.16.0"]
    before.setdefault("tool", {}).setdefault("uv", {})
    assert after == before


@pytest.mark.parametrize(
    "lines",
    [
        ("# [tool.uv]", '# constraint-dependencies = ["six<2"]'),
        ("# tool.uv.exclude-newer = '2026-01-01'",),
        ("# tool = 3",),
        ("# [tool", "# dependencies"),
    ],
)
def test_a_header_that_can_not_get_any_stays_as_it_is(lines: tuple[str, ...]) -> None:
    assert hold(header(*lines), ["six==1.16.0"]) == header(*lines)
    assert not holds(header(*lines))


def test_without_versions_a_header_stays_as_it_is() -> None:
    assert hold(header("# dependencies = []"), []) == header("# dependencies = []")
    assert hold(b"", ["six==1.16.0"]) == b""


def test_it_is_told_which_packages_uv_did_not_take_and_which_it_took_though_not_all_of_many() -> None:
    asked = [f"a{number}==1.0" for number in range(9)]
    assert differences(asked, [*asked, "b==1.0"]) == "it took b==1.0 besides"
    assert differences(asked, asked[:8]) == "it did not take a8==1.0"
    many = "a0==1.0, a1==1.0, a2==1.0, a3==1.0, a4==1.0 and 4 more"
    assert differences(asked, ["b==1.0"]) == f"it did not take {many}; it took b==1.0 besides"
