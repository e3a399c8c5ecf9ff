"""Runs a Python program whose time of day a test sets: `skewed.py OFFSET_FILE PROGRAM ARGUMENT…`.

The file holds seconds, read at each look at the clock. Only Python's own clocks are moved: the monotonic clock, the
kernel's time stamps and those of other programs are the host's, which can not be set for one process alone.
"""

import runpy
import sys
import time
from pathlib import Path

_offset = Path(sys.argv[1])
_host = time.time_ns


def _skewed() -> int:
    return _host() + int(float(_offset.read_text()) * 1e9)


time.time_ns = _skewed
time.time = lambda: _skewed() / 1e9
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
