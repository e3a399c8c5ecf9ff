"""Inline script metadata: what uv takes for a block is what the environment's key is made of."""

import itertools
import random
from pathlib import Path

import pytest
from fastflow.pipelines.headerproblems import read_header
from fastflow.pipelines.problems import errors
from fastflow.pipelines.scriptheader import Block, HeaderFault, script_block, script_header

from .scripts import uv_runs

HEADER = b'# /// script\n# dependencies = ["requests"]\n#\n# [tool.uv]\n# ///\n'


@pytest.mark.parametrize("before", [b"", b"#!/usr/bin/env python3\n\n", b"# a comment\n", b'"""Text."""\nimport os\n'])
@pytest.mark.parametrize("after", [b"", b"print(1)\n", b"\n\nprint(1)"])
def test_the_block_is_found_wherever_it_stands_and_nothing_else_is_taken(before: bytes, after: bytes) -> None:
    assert script_header(before + HEADER + after) == HEADER


def test_a_script_without_block_has_no_header() -> None:
    assert script_header(b"print(1)\n# /// nothing\n") is None
    assert script_header(b"") is None


def test_line_endings_of_windows_make_no_other_environment() -> None:
    assert script_header(HEADER.replace(b"\n", b"\r\n")) == HEADER


def test_a_block_without_a_last_newline_is_a_block() -> None:
    assert script_header(HEADER.rstrip()) == HEADER


def test_blocks_of_other_types_are_not_for_us() -> None:
    assert script_header(b"# /// other\n# x\n# ///\n\n" + HEADER) == HEADER


@pytest.mark.parametrize("mark", [b" ", b"\xef\xbb\xbf", b"x = 1  "])
def test_a_block_that_uv_does_not_see_is_not_taken(mark: bytes) -> None:
    assert script_header(mark + HEADER) is None


def test_two_blocks_are_refused() -> None:
    with pytest.raises(HeaderFault, match=r"line 7: begins a second block .* the first is in line 1"):
        script_header(HEADER + b"import os\n" + HEADER)


def test_a_block_that_is_not_closed_is_refused() -> None:
    for source in (b"# /// script\n# dependencies = []\nprint()\n", b"# /// script\n#bad\n# ///\n"):
        with pytest.raises(HeaderFault, match=r"line 1: .* no line '# ///' ends; each line between"):
            script_header(source)
    with pytest.raises(HeaderFault, match="remove the blanks that follow '# ///'"):
        script_header(b"# /// script\n# dependencies = []\n# /// \n")


@pytest.mark.parametrize(("before", "after", "line"), [(b"#\xf6\n", b"", 1), (b"", b"print('\xf6')\n", 6)])
def test_a_script_that_is_not_utf_8_has_no_header_for_uv(
    before: bytes, after: bytes, line: int, tmp_path: Path
) -> None:
    source = before + HEADER + after
    assert "invalid utf-8 sequence" in uv_runs(source, tmp_path).stderr
    with pytest.raises(HeaderFault, match=f"line {line}: byte 0xf6 is not UTF-8"):
        script_header(source)
    assert script_header(b"# -*- coding: latin-1 -*-\n#\xf6\n") is None


def test_the_place_of_a_block_is_known() -> None:
    assert script_block(b"import os\n\n" + HEADER) == Block(3, HEADER)


def test_an_empty_block_is_no_header() -> None:
    assert script_header(b"# /// script\n# ///\nprint()\n") is None


def test_a_large_script_of_comments_is_read_in_time() -> None:
    assert script_header(b"# comment\n" * 200_000 + HEADER) == HEADER


def test_a_large_script_of_openings_is_read_in_time() -> None:
    assert script_header(b"# /// other\n" * 200_000) is None


LINES = ("# /// script", "# /// other", "# ///", "# ", "# x = [", "#x", "", "y = '# /// script'", "# /// script ", "#")
SOURCES = [
    *itertools.product(("# /// script",), LINES, ("# ///", ""), ("# /// script",), ("# ///", "# x = [")),
    *itertools.product(LINES, ("# /// script",), LINES[2:5], ("# ///",)),
    *(tuple(random.Random(seed).choices(LINES, k=7)) for seed in range(60)),
]


@pytest.mark.parametrize("lines", random.Random(0).sample(SOURCES, 50), ids=repr)
def test_a_block_is_what_uv_takes_for_one(lines: tuple[str, ...], tmp_path: Path) -> None:
    # Marks and "x = [" are no TOML, so what is within a block is seen by its being refused.
    source = "\n".join((*lines, "")).encode()
    refused = bool(errors(read_header(source, "main.py").problems))
    assert (uv_runs(source, tmp_path).returncode == 2) == refused
