"""Programs that tests of many kinds run as pipelines."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.trees import content_of

SLEEPER = "import time; print('begun', flush=True); time.sleep(300)"

TIDY = """
    import signal, sys, time
    def stopped(*_):
        print("tidied up", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stopped)
    print("begun", flush=True)
    while True: time.sleep(60)
"""
"""Ends on SIGTERM, with 0."""
TIDY_LOG = b"begun\ntidied up\n"

STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: print('no', flush=True))
    print('begun', flush=True)
    while True: time.sleep(1)
"""
"""Does not end on SIGTERM."""

TICKER = """
    import os, sys, time
    for number in range(int(os.environ.get("TICKS", "40"))):
        print(f"tick {number} {'x' * 60}")
        print(f"tock {number}", file=sys.stderr)
        time.sleep(0.05)
    sys.exit(7)
"""


def ticker_log(ticks: int = 40) -> bytes:
    """What TICKER writes, byte for byte."""
    return b"".join(f"tick {n} {'x' * 60}\ntock {n}\n".encode() for n in range(ticks))


LEDGER = """
    import os, tempfile, time
    print("begun", flush=True)
    for number in range(3000):
        if os.path.exists(os.path.join(tempfile.gettempdir(), "go")):
            print("the end")
            break
        print("tick", number, flush=True)
        time.sleep(0.1)
"""
"""Goes on until `let_end`, or for five minutes."""


def slot_folders(cluster: Cluster) -> list[Path]:
    """Folders of the slots that the first agent has now."""
    return list((Path(cluster.agent.settings["FASTFLOW_DATA_DIR"]) / "slots").iterdir())


def let_end(slots: Iterable[Path], file: str = "go") -> None:
    """Has LEDGER, or whatever waits for the same file, end in these slots; one that is being removed is passed over."""
    for slot in slots:
        with suppress(FileNotFoundError):
            (slot / "tmp" / file).touch()


def is_whole_ledger(log: bytes) -> bool:
    """Whether this is all that LEDGER says when it is let end, and each line once."""
    first, *ticks, last = log.splitlines()
    return (first, last) == (b"begun", b"the end") and ticks == [b"tick %d" % n for n in range(len(ticks))]


def wait_for_output(cluster: Cluster, text: bytes) -> None:
    """Waits until a program of the first agent has written `text`, whether or not anybody reads it."""
    logs = [slot / "log" for slot in slot_folders(cluster)]
    cluster.until(lambda: any(text in content_of(log) for log in logs), f"{text!r} to be written")
