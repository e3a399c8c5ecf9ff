"""What was done to whom and what clients were answered, written down at once: whatever fails later, it is known."""

import json
import threading
import time
from pathlib import Path
from typing import Any, Self


class Diary:
    """Two files of JSON lines, "deeds.jsonl" and "answers.jsonl"; for several threads; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._deeds = (folder / "deeds.jsonl").open("a")
        self._answers = (folder / "answers.jsonl").open("a")
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deeds.close()
        self._answers.close()

    def deed(self, what: str, target: str = "", **details: Any) -> None:
        """Something was done, or went wrong (FAULT), just now."""
        self._write(self._deeds, what=what, target=target, **details)

    def answer(self, what: str, target: str, **details: Any) -> None:
        """A client got its answer."""
        self._write(self._answers, what=what, target=target, **details)

    def _write(self, file: Any, **what: Any) -> None:
        # The ledger goes by the one clock, rows and logs by the other.
        line = json.dumps({"monotonic": time.monotonic(), "wall": time.time(), **what})
        with self._writing:
            file.write(line + "\n")
            file.flush()
