"""The inline metadata of a script (PEP 723): a block of comments at its top level that names its dependencies.

    # /// script
    # dependencies = ["requests"]
    # ///

Format and pattern: "Inline script metadata" in the PyPA specifications, the canonical form of PEP 723.
"""

import re

_BLOCK = re.compile(rb"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_OPENING = re.compile(rb"(?m)^# /// script$(?!\n# ///$)")


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
    blocks = [match.group() for match in _BLOCK.finditer(text) if match["type"] == b"script"]
    if len(blocks) > 1:
        raise HeaderFault("has more than one block of inline metadata (# /// script); one is allowed")
    if not blocks and _OPENING.search(text):
        raise HeaderFault(
            "has inline metadata (# /// script) that no line '# ///' ends; each line between begins with '# '"
        )
    return blocks[0] + b"\n" if blocks else None
