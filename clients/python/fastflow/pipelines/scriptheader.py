"""The inline metadata of a script (PEP 723): a block of comments at its top level that names its dependencies.

    # /// script
    # dependencies = ["requests"]
    # ///

Format and pattern: "Inline script metadata" in the PyPA specifications, the canonical form of PEP 723.
"""

import re
from collections.abc import Iterator
from itertools import groupby

_OPENING = re.compile(rb"# /// (?P<type>[a-zA-Z0-9-]+)")
_CLOSING = b"# ///"
_UNCLOSED = re.compile(rb"(?m)^# /// script$(?!\n# ///$)")


class HeaderFault(ValueError):
    """The script's inline metadata can not be used, and uv refuses to run it; the message says why."""


def script_header(source: bytes) -> bytes | None:
    """Returns the `script` block of `source`, comment marks included, lines ended by a newline; None without one.

    The block alone is a script with the same dependencies, so it is both the key of an environment and what a preparer
    gets in place of the pipeline's code. Raises HeaderFault for more than one block (as PEP 723 asks) and for a block
    that is never closed (PEP 723 ignores it, uv does not).
    """
    # uv takes lines ended either way; a byte order mark hides a block in the first line from uv, and so from us.
    text = source.replace(b"\r\n", b"\n") + b"\n"
    blocks = [*_script_blocks(text)]
    if len(blocks) > 1:
        raise HeaderFault("has more than one block of inline metadata (# /// script); one is allowed")
    if not blocks and _UNCLOSED.search(text):
        raise HeaderFault(
            "has inline metadata (# /// script) that no line '# ///' ends; each line between begins with '# '"
        )
    return blocks[0] + b"\n" if blocks else None


def header_content(header: bytes) -> str:
    """Returns the TOML that a block (see `script_header`) holds."""
    # Not splitlines, which ends lines at signs that a comment in it may hold.
    lines = header.decode(errors="replace").rstrip("\n").split("\n")[1:-1]
    return "\n".join(line[2:] for line in lines)


def _script_blocks(text: bytes) -> Iterator[bytes]:
    """The blocks of type `script` that the canonical pattern finds, in time proportional to the text.

    A block lies in one run of comments and ends with its last closing line, so a run holds one block at most.
    """
    for is_comment, lines in groupby(text.split(b"\n"), lambda line: line == b"#" or line.startswith(b"# ")):
        run = [*lines] if is_comment else []
        opened = next((at for at, line in enumerate(run) if _OPENING.fullmatch(line)), len(run))
        closed = next((at for at in range(len(run) - 1, opened + 1, -1) if run[at] == _CLOSING), 0)
        if closed and run[opened] == b"# /// script":
            yield b"\n".join(run[opened : closed + 1])
