"""JSON as a person writes it by hand, read strictly, with errors that say where.

RFC 8259 leaves to the reader what doubled keys mean; here they are kept and told, as one of the two was meant.
"""

import codecs
import json
from collections import Counter
from typing import Any

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# Python refuses to read more digits than 4300 with an error of its own; no field needs more than a few.
_LONGEST_INTEGER = 40


class JsonFault(ValueError):
    """The text is not JSON; the message says what is wrong, in which line and column, and what to do."""


class JsonObject(dict[str, Any]):
    """A JSON object that remembers which of its keys were written more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.duplicates = tuple(key for key, count in counts.items() if count > 1)


def parse_json(data: bytes) -> Any:
    """Returns the value of `data`, objects as `JsonObject`; raises JsonFault.

    NaN and infinities, which JSON does not know, come as floats, as does an integer of absurd length.
    """
    text = _decode(data)
    try:
        return json.loads(text, object_pairs_hook=JsonObject, parse_int=_integer)
    except json.JSONDecodeError as fault:
        hint = _hint(text, fault.pos)
        raise JsonFault(f"line {fault.lineno}, column {fault.colno}: {fault.msg}{hint}") from None
    except RecursionError:
        raise JsonFault("is nested too deeply") from None


def _decode(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise JsonFault(f"begins with a byte order mark of {encoding}; save the file as UTF-8 without one")
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise JsonFault(f"line {line}: byte 0x{data[fault.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _hint(text: str, position: int) -> str:
    rest = text[position:].lstrip()
    before = text[:position].rstrip()
    if not text.strip():
        return "; the file is empty: write {} for no metadata, or remove the file"
    if rest.startswith(("//", "/*", "#")):
        return "; JSON has no comments"
    if rest.startswith("'"):
        return "; JSON text stands in double quotes"
    if before.endswith(",") and rest.startswith(("}", "]")):
        return "; remove the comma before it"
    if rest.startswith(("True", "False", "None")):
        return "; JSON writes true, false and null in small letters"
    return ""
