"""Memory sizes as people write them: `512m`, `1.5g`, `512mb`, `512Mi`, `536870912`.

Units are powers of 1024 whatever their spelling, as Docker reads them: `m`, `mb`, `Mi` and `MiB` are all 1024².
"""

import re
from fractions import Fraction

MAX_SIZE = 2**53 - 1
"""Largest size, in bytes: integers stay below 2^53, so that JSON carries them unharmed."""

ALLOWED = 'a number with a unit b, k, m, g or t (powers of 1024), such as "512m" or "1.5g", or a whole number of bytes'
"""What `parse_size` reads, for messages."""

_UNITS = ("", "k", "m", "g", "t", "p")
_SIZE = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?\s*(?:([kmgtp])(?:i?b|i)?|(b))?", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Returns the size in bytes, a fraction of a byte dropped; an `int` is bytes already.

    Raises ValueError, with a message for people, for anything else than `ALLOWED` and for more than `MAX_SIZE`.
    """
    size = text if isinstance(text, int) and not isinstance(text, bool) else _parse(text)
    if size < 0:
        raise ValueError(f"is negative; allowed is {ALLOWED}")
    if size > MAX_SIZE:
        raise ValueError(f"is larger than the largest size, {format_size(MAX_SIZE)}")
    return size


def format_size(size: int) -> str:
    """Returns `size` bytes for people: "512 MiB", "1.5 GiB", "17 B". At most one decimal, so it may be rounded."""
    if size < 0:
        return "-" + format_size(-size)
    exponent = 0
    while exponent < len(_UNITS) - 1 and _tenths(size, exponent) >= 1024 * 10:
        exponent += 1
    whole, tenth = divmod(_tenths(size, exponent), 10)
    number = f"{whole}.{tenth}" if tenth else str(whole)
    return f"{number} {_UNITS[exponent].upper()}iB" if exponent else f"{number} B"


def _parse(text: object) -> int:
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) and text.isascii() else None
    if match is None:
        raise ValueError(f"is not a size; allowed is {ALLOWED}")
    whole, decimals, unit, _ = match.groups()
    if decimals and not unit:
        raise ValueError(f"is not a whole number of bytes; allowed is {ALLOWED}")
    number = Fraction(int(whole + (decimals or "")), 10 ** len(decimals or ""))
    return int(number * (1 << 10 * _UNITS.index((unit or "").lower())))


def _tenths(size: int, exponent: int) -> int:
    """`size` in tenths of the unit, rounded half up: integers, so that no size is off by a float's error."""
    unit = 1 << 10 * exponent
    return (size * 10 * 2 + unit) // (2 * unit)
