"""The ledger on the host: its recorder, which the runs themselves reach over TCP, and its reader.

What it holds is said in `pipeline/ledger.py`.
"""

import base64
import fcntl
import json
import os
import random
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


class Recorder:
    """Writes down what runs say, and answers each record after its sync; a context manager.

    A run waits for its first answer before it does anything: until then `begins` is called with its slot. `address` is
    "host:port" as runs reach it, on the bridge of the engine.
    """

    def __init__(self, folder: Path, host: str, begins: Callable[[str], None]) -> None:
        class Connection(socketserver.StreamRequestHandler):
            timeout = None

            def handle(self) -> None:
                _record(self, folder, begins)

        self._server = socketserver.ThreadingTCPServer((host, 0), Connection)
        self._server.daemon_threads = True
        self.address = "{}:{}".format(*self._server.server_address[:2])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="recorder", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _record(connection: socketserver.StreamRequestHandler, folder: Path, begins: Callable[[str], None]) -> None:
    connection.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    words = connection.rfile.readline().decode().split()
    if len(words) != 2:
        return
    key, slot = (Path(word).name for word in words)
    begins(slot)
    lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    file = os.open(folder / f"{key}.{slot}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        connection.wfile.write(b"1" if _locked(lock) else b"0")
        while (line := connection.rfile.readline()).endswith(b"\n"):
            os.write(file, line)
            os.fsync(file)
            connection.wfile.write(b"1")
    except OSError:
        pass  # the run was ended in the middle of a record
    finally:
        os.close(file)
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class Start:
    """One start of a run's program, as the program itself wrote it down. Times are monotonic seconds.

    `said` was printed whole; of `saying` any part from its beginning may have been. `code` None = no end was recorded.
    """

    key: str
    slot: str
    pid: int
    boot: str
    alone: bool
    fate: str
    planned_code: int | None
    begin: float
    last: float
    code: int | None = None
    said: bytes = b""
    saying: bytes = b""
    children: list[int] = field(default_factory=list)


class BrokenLedger(Exception):
    """A file of the ledger that no program can have written."""


def read_ledger(folder: Path) -> list[Start]:
    """Every start in the ledger. Raises BrokenLedger."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".lock"]
    return [start for path in files for start in _read(path)]


def _read(path: Path) -> list[Start]:
    starts: list[Start] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            if record["step"] == "begin":
                starts.append(_begun(record))
            else:
                _go_on(starts[-1], record)
        except (ValueError, KeyError, IndexError) as error:
            raise BrokenLedger(f"{path.name}: {error!r} at {line[:200]!r}") from error
    return starts


def _begun(record: dict[str, Any]) -> Start:
    same = {name: record[name] for name in ("key", "slot", "pid", "boot", "alone", "fate")}
    at = record["monotonic"]
    return Start(**same, planned_code=record.get("code"), begin=at, last=at)


def _go_on(start: Start, record: dict[str, Any]) -> None:
    start.last = record["monotonic"]
    match record["step"]:
        case "say" if "seed" in record:
            start.saying = random.Random(record["seed"]).randbytes(record["size"])
        case "say":
            start.saying = base64.b64decode(record["data"])
        case "said":
            start.said, start.saying = start.said + start.saying, b""
        case "child":
            start.children.append(record["pid"])
        case "end":
            start.code = record["code"]
