"""Masks secrets in output, without changing its length.

A byte is masked if and only if it lies in an occurrence of a secret in the output. So whether it is depends on no more
than `reach` bytes on either side of it, and not on where the output was cut into chunks or from where it is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable

MIN_SECRET_BYTES = 6
"""Shorter values would mask what merely looks alike; `secrets set` says so when one is set."""
MASK = b"*"


class Masks:
    """The secrets of one run. Values are taken without the white space around them, as programs often print them."""

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        values = {value.strip() for value in secrets}
        self._secrets = sorted(value for value in values if len(value) >= MIN_SECRET_BYTES)
        self._steps = [_shortest_overlap(secret) for secret in self._secrets]
        self.reach = max(map(len, self._secrets), default=1) - 1
        """Bytes before and behind a byte that decide whether it is masked."""

    def apply(self, data: bytes) -> bytes:
        """Returns `data` with each byte of each whole secret in it replaced."""
        spans = self._spans(data)
        if not spans:
            return data
        masked = bytearray(data)
        for start, end in spans:
            masked[start:end] = MASK * (end - start)
        return bytes(masked)

    def pending(self, data: bytes) -> int:
        """Returns how many bytes at the end of `data` may be the beginning of a secret that goes on behind it."""
        longest = 0
        for secret in self._secrets:
            tail = data[max(0, len(data) - len(secret) + 1) :]
            start = tail.find(secret[:1])
            while start >= 0 and len(tail) - start > longest:
                if secret.startswith(tail[start:]):
                    longest = len(tail) - start
                    break
                start = tail.find(secret[:1], start + 1)
        return longest

    def outside(self, data: bytes, position: int) -> int:
        """Returns the first position from `position` on that does not cut a secret of `data` in two."""
        for start, end in sorted(self._spans(data)):
            if start < position < end:
                position = end
        return position

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for secret, step in zip(self._secrets, self._steps, strict=True):
            start = data.find(secret)
            while start >= 0:
                spans.append((start, start + len(secret)))
                start = data.find(secret, start + step)
        return spans


def _shortest_overlap(secret: bytes) -> int:
    """Returns how far apart at least two occurrences of `secret` begin: less than its length if it overlaps itself.

    The prefix function of Knuth, Morris and Pratt, "Fast Pattern Matching in Strings", 1977.
    """
    borders = [0] * len(secret)
    border = 0
    for position in range(1, len(secret)):
        while border and secret[position] != secret[border]:
            border = borders[border - 1]
        border += secret[position] == secret[border]
        borders[position] = border
    return len(secret) - border
