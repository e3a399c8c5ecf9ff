"""What the runs of the chaos suite run; KIND says which behaviour, and KEY which request asked for it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from ledger import Ledger

KEY = os.environ["KEY"]
CHOICE = random.Random(KEY)
FOREVER_SECONDS = 600.0
MIB = 1024 * 1024
HOG_MIB = 1024


def lines(code: int) -> int:
    """Numbered lines, then an exit code."""
    ledger = Ledger(KEY, {"fate": "exit", "code": code})
    for number in range(CHOICE.randrange(3, 25)):
        ledger.say(f"{KEY} line {number}\n".encode())
        time.sleep(CHOICE.random() * 0.2)
    return end(ledger, code)


def children() -> int:
    """Children that print, and one that is left behind."""
    ledger = Ledger(KEY, {"fate": "exit", "code": 0})
    left = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_SECONDS})"])
    ledger.record("child", pid=left.pid)
    for number in range(3):
        said = f"{KEY} child {number}\n"
        with ledger.saying(said.encode()):
            subprocess.run([sys.executable, "-c", f"import sys; sys.stdout.write({said!r})"], check=True)
    return end(ledger, 0)


def bursts() -> int:
    """Binary output in bursts of up to some megabytes."""
    ledger = Ledger(KEY, {"fate": "exit", "code": 0})
    for _ in range(CHOICE.randrange(1, 4)):
        ledger.burst(CHOICE.randrange(2**32), CHOICE.choice([1, 4095, 65_536, 1_000_000, 3_000_000]))
    return end(ledger, 0)


def forever(fate: str) -> int:
    """Lives until it is stopped; says something first."""
    ledger = Ledger(KEY, {"fate": fate})
    ledger.say(f"{KEY} sleeps\n".encode())
    time.sleep(FOREVER_SECONDS)
    return end(ledger, 0)


def tidy() -> int:
    """Lives until it is stopped, and has something to say about that."""
    ledger = Ledger(KEY, {"fate": "stopped"})

    def stopped(*_: object) -> None:
        ledger.say(f"{KEY} tidies up\n".encode())
        sys.exit(end(ledger, 0))

    ledger.say(f"{KEY} waits\n".encode())
    # Not in the middle of a record.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, stopped)
    ledger.say(f"{KEY} listens\n".encode())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        time.sleep(FOREVER_SECONDS)


def hog() -> int:
    """Takes more memory than its limit."""
    ledger = Ledger(KEY, {"fate": "oom"})
    ledger.say(f"{KEY} takes memory\n".encode())
    held = [b"x" * MIB for _ in range(HOG_MIB)]
    ledger.say(f"{len(held)} held\n".encode())
    return end(ledger, 0)


def end(ledger: Ledger, code: int) -> int:
    """The last record; nothing is printed after it."""
    ledger.record("end", code=code)
    return code


KINDS: dict[str, Callable[[], int]] = {
    "lines": lambda: lines(0),
    "again": lambda: lines(0),
    "seven": lambda: lines(7),
    "children": children,
    "bursts": bursts,
    "sleeps": lambda: forever("stopped"),
    "tidy": tidy,
    "late": lambda: forever("timeout"),
    "hog": hog,
    "whole": lambda: forever("stopped"),
}

sys.exit(KINDS[os.environ["KIND"]]())
