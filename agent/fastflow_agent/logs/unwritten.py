"""What never reached the disk of a log whose host went down: a file system may keep a file's length before its bytes.

What it did not write reads as zeros to the end of a block, or of the file. ext4 keeps the new length of a file at once
where bytes are added to its last block, and that of a new block while its bytes are on their way.
"""

from __future__ import annotations

import os

from fastflow_agent.logs.lost import Lost

SECTOR_BYTES = 512
"""The smallest block of any file system, and a part of every larger one."""

STEP_BYTES = 1024 * 1024


def written_until(descriptor: int, start: int, stop: int, lost: Lost) -> int:
    """Offset from `start` on at which the first bytes begin that were not written; `stop` if all are there.

    Ranges that are known to be `lost` may be zeros. A program's own zeros are taken for bytes that were not written
    where a sector ends with them: nobody can tell them apart. Raises OSError.
    """
    for begin in range(start - start % STEP_BYTES, stop, STEP_BYTES):
        first, end = max(begin, start), min(begin + STEP_BYTES, stop)
        data = os.pread(descriptor, end - first, first)
        lasts = [*range(begin + SECTOR_BYTES - 1, end, SECTOR_BYTES), end - 1]
        for last in lasts:
            if last >= first and data[last - first] == 0 and lost.at(last) is None:
                before = data[: last - first].rstrip(b"\0")
                return max(first + len(before), lost.last_end(last))
    return stop
