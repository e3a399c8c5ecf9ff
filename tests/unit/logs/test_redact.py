"""Masking: a byte is hidden if and only if it lies in an occurrence of a secret, however the output is cut."""

import time

import pytest
from fastflow_agent.logs.redact import Masks
from hypothesis import given
from hypothesis import strategies as st

# Few letters, so that secrets occur, overlap themselves and each other, and are cut.
letters = st.binary(max_size=200).map(lambda data: bytes(b"ab\n"[byte % 3] for byte in data))
secrets = st.lists(letters.filter(lambda value: len(value.strip()) >= 6).map(lambda value: value[:12]), max_size=4)


def masked_by_definition(data: bytes, values: list[bytes]) -> bytes:
    result = bytearray(data)
    for value in {value.strip() for value in values}:
        for start in range(len(data) - len(value) + 1):
            if len(value) >= 6 and data[start : start + len(value)] == value:
                result[start : start + len(value)] = b"*" * len(value)
    return bytes(result)


@given(data=letters, values=secrets)
def test_exactly_the_bytes_of_whole_secrets_are_hidden(data: bytes, values: list[bytes]) -> None:
    masked = Masks(values).apply(data)
    assert masked == masked_by_definition(data, values)
    assert len(masked) == len(data)


@given(data=letters, values=secrets, cut=st.integers(0, 200))
def test_what_is_not_pending_is_not_changed_by_what_follows(data: bytes, values: list[bytes], cut: int) -> None:
    masks = Masks(values)
    head = data[:cut]
    settled = len(head) - masks.pending(head)
    assert masks.apply(head)[:settled] == masks.apply(data)[:settled]


@given(data=letters, values=secrets, start=st.integers(0, 200), end=st.integers(0, 200))
def test_a_part_with_its_surroundings_is_masked_like_the_whole(
    data: bytes, values: list[bytes], start: int, end: int
) -> None:
    masks = Masks(values)
    left, right = max(0, start - masks.reach), end + masks.reach
    assert masks.apply(data[left:right])[start - left : end - left] == masks.apply(data)[start:end]


@given(data=letters, values=secrets, position=st.integers(0, 200))
def test_a_position_outside_cuts_no_secret(data: bytes, values: list[bytes], position: int) -> None:
    masks = Masks(values)
    outside = masks.outside(data, position)
    assert outside >= position
    assert masks.apply(data[:outside]) + masks.apply(data[outside:]) == masks.apply(data)


@pytest.mark.parametrize(
    ("values", "data", "expected"),
    [
        ([b"hunter2"], b"password hunter2\n", b"password *******\n"),
        ([b"short"], b"short values stay", b"short values stay"),
        ([b"with newline\n"], b"it was with newline here", b"it was ************ here"),
        ([b"first\nsecond"], b"first\nsecond\n", b"************\n"),
        ([b"secret", b"secret-longer"], b"secret-longer, secret", b"*************, ******"),
        ([b"abcabc"], b"abcabcabc", b"*********"),
        ([b"\xff\x00binary"], b"..\xff\x00binary..", b"..********.."),
        ([], b"nothing to hide", b"nothing to hide"),
    ],
)
def test_examples(values: list[bytes], data: bytes, expected: bytes) -> None:
    assert Masks(values).apply(data) == expected


def test_output_full_of_the_secret_is_masked_in_reasonable_time() -> None:
    masks = Masks([b"aaaaaaaa", b"secret-word"])
    data = b"a" * 500_000 + b"secret-word " * 40_000
    start = time.process_time()
    assert set(masks.apply(data)) == set(b"* ")
    assert time.process_time() - start < 5
