"""Inline script metadata: what uv takes for a block is what the environment's key is made of."""

import re

import pytest
from fastflow.pipelines.scriptheader import HeaderFault, script_header
from hypothesis import given
from hypothesis import strategies as st

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
    with pytest.raises(HeaderFault, match="more than one block"):
        script_header(HEADER + b"import os\n" + HEADER)


@pytest.mark.parametrize("source", [b"# /// script\n# dependencies = []\nprint()\n", b"# /// script\n#bad\n# ///\n"])
def test_a_block_that_is_not_closed_is_refused(source: bytes) -> None:
    with pytest.raises(HeaderFault, match="no line '# ///' ends"):
        script_header(source)


def test_an_empty_block_is_no_header() -> None:
    assert script_header(b"# /// script\n# ///\nprint()\n") is None


def test_a_large_script_of_comments_is_read_in_time() -> None:
    assert script_header(b"# comment\n" * 200_000 + HEADER) == HEADER


def test_a_large_script_of_openings_is_read_in_time() -> None:
    assert script_header(b"# /// other\n" * 200_000) is None


CANONICAL = re.compile(rb"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The pattern that PEP 723 gives, which takes time by the square of the text."""


@given(st.lists(st.sampled_from([b"# /// script", b"# /// other", b"# ///", b"#", b"# x", b"#x", b"", b"print()"])))
def test_the_blocks_are_those_of_the_canonical_pattern(lines: list[bytes]) -> None:
    source = b"\n".join(lines)
    found = CANONICAL.finditer(source + b"\n")
    expected = [match.group() + b"\n" for match in found if match["type"] == b"script"]
    if len(expected) > 1:
        with pytest.raises(HeaderFault, match="more than one block"):
            script_header(source)
    elif not expected and re.search(rb"(?m)^# /// script$(?!\n# ///$)", source + b"\n"):
        with pytest.raises(HeaderFault, match="no line '# ///' ends"):
            script_header(source)
    else:
        assert script_header(source) == (expected[0] if expected else None)
