"""The inline metadata of a script (PEP 723): a block of comments at its top level that names its dependencies.

    # /// script
    # dependencies = ["requests"]
    # ///

Format: "Inline script metadata" in the PyPA specifications, the canonical form of PEP 723. Which lines are a block is
read as uv reads it, for uv runs the script: its first "# /// script" counts or none does.
"""

import re
from dataclasses import dataclass

_OPENING = b"# /// script"
_CLOSING = b"# ///"
_TYPE = re.compile(rb"# /// [a-zA-Z0-9-]+")


class HeaderFault(ValueError):
    """The script's inline metadata can not be used, and uv refuses to run it; the message says where and why."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


@dataclass(frozen=True)
class Block:
    """A block of type `script`; `line` is the number of its first line in the script, from 1.

    `text` are its lines, comment marks included, each ended by a newline.
    """

    line: int
    text: bytes

    @property
    def is_empty(self) -> bool:
        """Whether there is no line between the first and the last."""
        return self.text.count(b"\n") <= 2


def script_header(source: bytes) -> bytes | None:
    """Returns the `script` block of `source`, see `Block.text`; None without one, and for one that holds nothing.

    The block alone is a script with the same dependencies, so it is both the key of an environment and what a preparer
    gets in place of the pipeline's code. Raises HeaderFault as `script_block` does.
    """
    block = script_block(source)
    return None if block is None or block.is_empty else block.text


def script_block(source: bytes) -> Block | None:
    """Returns the `script` block of `source`, None without one.

    Raises HeaderFault for a block that is never closed (PEP 723 ignores it, uv does not), for more than one (as PEP 723
    asks) and for a script that has one and is not UTF-8.
    """
    # A byte order mark hides a block in the first line from uv, and so from us; so does any mention before it.
    at = source.find(_OPENING)
    if at < 0 or (at > 0 and source[at - 1 : at] not in (b"\n", b"\r")):
        return None
    opened = source.count(b"\n", 0, at) + 1
    try:
        source.decode()
    except UnicodeDecodeError as fault:
        bad = source.count(b"\n", 0, fault.start) + 1
        what = f"byte 0x{source[fault.start]:02x} is not UTF-8, as all of a script with inline metadata has to be"
        raise HeaderFault(bad, f"{what}; save the file as UTF-8") from None
    first, *lines = source[at:].replace(b"\r\n", b"\n").split(b"\n")
    if first != _OPENING:
        return None
    count = next((number for number, line in enumerate(lines) if not _is_comment(line)), len(lines))
    closed = next((number for number in range(count - 1, -1, -1) if lines[number] == _CLOSING), None)
    if closed is None:
        raise HeaderFault(opened, f"begins inline metadata (# /// script) that no line '# ///' ends; {_hint(lines)}")
    if (second := _another(lines, closed + 1)) is not None:
        what = f"begins a second block of inline metadata (# /// script), the first is in line {opened}"
        raise HeaderFault(opened + 1 + second, f"{what}; one is allowed: join the two")
    return Block(opened, b"\n".join((first, *lines[: closed + 1], b"")))


def header_content(header: bytes) -> str:
    """Returns the TOML that a block (see `Block.text`) holds."""
    # Not splitlines, which ends lines at signs that a comment in it may hold.
    lines = header.decode(errors="replace").rstrip("\n").split("\n")[1:-1]
    return "\n".join(line[2:] for line in lines)


def _is_comment(line: bytes) -> bool:
    return line == b"#" or line.startswith(b"# ")


def _hint(lines: list[bytes]) -> str:
    ending = next((line for line in lines if not _is_comment(line) or line.startswith(_CLOSING)), b"")
    if ending.startswith(_CLOSING) and ending.rstrip() == _CLOSING:
        return "remove the blanks that follow '# ///'"
    return "each line between the two is '#', or begins with '# '"


def _another(lines: list[bytes], at: int) -> int | None:
    """The index, from `at` on, of the first line of another whole block of type `script`; None without one.

    Each run of comments holds one block at most: it begins with the first line that opens any.
    """
    while at < len(lines):
        begins, at = at, at + 1
        if _TYPE.fullmatch(lines[begins]) is None:
            continue
        closed = False
        while at < len(lines) and _is_comment(lines[at]):
            closed = lines[at] == _CLOSING
            at += 1
        if closed and lines[begins] == _OPENING:
            return begins
    return None
