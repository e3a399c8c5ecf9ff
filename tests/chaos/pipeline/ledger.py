"""What a run writes down of itself, out of the product's reach: each record on disk before the run goes on.

One line of JSON per record: `begin`, then `say` and `said` around each output, then `end`. Between `say` and `said` any
part of the output may have been written. A recorder on the host keeps it, asked over TCP and answering after its sync.
"""

import base64
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOST, _, PORT = os.environ["LEDGER_ADDRESS"].rpartition(":")
ANSWER_SECONDS = 60.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MOUNTS = Path("/proc/self/mountinfo")
LOG = str(Path("/proc/self/fd/1").readlink())
"""Where standard output goes: the log of the slot, by whatever path it is seen here."""
CONTAINED = LOG == "/fastflow/log"


class Ledger:
    """The ledger of one start of one run."""

    def __init__(self, key: str, fate: dict[str, Any]) -> None:
        slot = _slot()
        self._recorder = socket.create_connection((HOST, int(PORT)), ANSWER_SECONDS)
        self._recorder.sendall(f"{key} {slot}\n".encode())
        # Known by the connection of the other: a second start of the same run sees it for as long as that one lives.
        alone = self._answer() == b"1"
        boot = BOOT_ID.read_text().strip()
        self.record("begin", key=key, slot=slot, pid=os.getpid(), boot=boot, alone=alone, **fate)

    def record(self, step: str, **details: Any) -> None:
        """Returns once the record is on disk."""
        line = json.dumps({"step": step, "monotonic": time.monotonic(), **details}).encode() + b"\n"
        self._recorder.sendall(line)
        self._answer()

    @contextmanager
    def saying(self, data: bytes) -> Iterator[None]:
        """Records before and after what is done within, which prints `data`."""
        self.record("say", data=base64.b64encode(data).decode())
        yield
        self.record("said")

    def say(self, data: bytes) -> None:
        """Prints."""
        with self.saying(data):
            _write(data)

    def burst(self, seed: int, size: int) -> None:
        """Prints `size` bytes that can be made again from `seed`."""
        self.record("say", seed=seed, size=size)
        _write(random.Random(seed).randbytes(size))
        self.record("said")

    def _answer(self) -> bytes:
        answer = self._recorder.recv(1)
        if not answer:
            raise SystemExit("the recorder of the ledger has gone")
        return answer


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _slot() -> str:
    """The slot this runs in, in whose folder the log is: in a container that is known of the mount alone."""
    mounts = [line.split() for line in MOUNTS.read_text().splitlines()] if CONTAINED else []
    path = next((source for _, _, _, source, target, *_ in mounts if target == LOG), LOG)
    return path.split("/")[-2]
