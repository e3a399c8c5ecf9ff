"""Sizes: every spelling of the format's table, and refusals that say what is allowed."""

import contextlib

import pytest
from fastflow.pipelines.sizes import MAX_SIZE, format_size, parse_size
from hypothesis import given
from hypothesis import strategies as st

MIB = 1024**2


@pytest.mark.parametrize("text", ["512m", "512M", "512mb", "512MB", "512Mi", "512mi", "512MiB", " 512 m ", "0.5g"])
def test_every_spelling_of_a_unit_is_the_same_power_of_1024(text: str) -> None:
    assert parse_size(text) == 512 * MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5g", 1536 * MIB),
        ("536870912", 512 * MIB),
        ("7b", 7),
        ("1k", 1024),
        ("2t", 2 * 1024**4),
        ("0", 0),
        ("0.3k", 307),
    ],
)
def test_a_size_is_read_exactly(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_an_integer_is_bytes() -> None:
    assert parse_size(33_554_432) == 32 * MIB


@pytest.mark.parametrize(
    "text",
    ["", "m", "512x", "1,5g", "1e9", "-1g", "+1g", "1.g", ".5g", "0x10", "512 m b", "١m", "nan", "inf", "1.5", "5mm"],
)
def test_what_is_no_size_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r'such as "512m" or "1\.5g"'):
        parse_size(text)


@pytest.mark.parametrize("value", [True, False, None, 1.5, -1])
def test_other_values_than_text_and_whole_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="allowed is"):
        parse_size(value)


@pytest.mark.parametrize("text", ["9000p", "9" * 30, str(2**53)])
def test_a_size_beyond_what_json_carries_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="larger than the largest size, 8 PiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 * MIB, "1.5 GiB"),
        (512 * MIB, "512 MiB"),
        (1024**3 - 1, "1 GiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_sizes_are_shown_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(min_value=0, max_value=MAX_SIZE - MAX_SIZE // 20))
def test_a_shown_size_can_be_read_back_within_its_rounding(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.05


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(text) <= MAX_SIZE
