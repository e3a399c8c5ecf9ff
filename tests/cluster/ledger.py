"""A ledger in which pipelines write what they do: kept apart from Fast-Flow, so that nothing of it can be wrong there.

A pipeline reaches it by network, as all it writes in its container goes with it; it goes on once it is written down.
"""

import socketserver
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

ENTER = """
import os, socket

def enter(word):
    address = os.environ["LEDGER_HOST"], int(os.environ["LEDGER_PORT"])
    with socket.create_connection(address, timeout=60) as ledger:
        ledger.sendall(f"{os.environ['LEDGER_PAGE']} {word}\\n".encode())
        assert ledger.recv(1) == b"!"
"""
"""Begins a pipeline's program: defines `enter`."""


class Ledger:
    """Listens on `host` and writes to `file`; a context manager. Its pages are one per run."""

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        file.touch()
        writing = threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline()
                with writing, file.open("ab") as ledger:
                    ledger.write(line)
                self.wfile.write(b"!")

        self._server = socketserver.ThreadingTCPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, page: str) -> dict[str, str]:
        """What a run of this page needs."""
        host, port = self._server.server_address[:2]
        return {"LEDGER_HOST": str(host), "LEDGER_PORT": str(port), "LEDGER_PAGE": page}

    def words(self, page: str) -> Sequence[str]:
        """What was entered on a page, in order."""
        return list(self._of(page))

    def _of(self, page: str) -> Iterator[str]:
        for line in self._file.read_text().splitlines():
            name, _, word = line.partition(" ")
            if name == page:
                yield word
