"""`ffctl run --local` on folders that a test writes."""

import json
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.cluster.cluster import Completed
from tests.cluster.program import BIN, PATIENCE_SECONDS


class LocalRuns:
    """Pipelines in one folder, run with `runtime` ("docker" or "process"); a context manager that clears up.

    `settings` are environment variables of every run.
    """

    def __init__(self, folder: Path, runtime: str, **settings: str) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.environments = Path(tempfile.mkdtemp(prefix="fastflow-local-tests-", dir="/dev/shm"))
        self._runtime = runtime
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
        self.settings = {**inherited, "FASTFLOW_ENV_DIR": str(self.environments), **settings}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.environments, ignore_errors=True)

    def pipeline(self, name: str, main: str | bytes, **files: str | dict[str, Any]) -> Path:
        """Writes a pipeline folder; `files` as of `Cluster.add_pipeline`."""
        folder = self.folder / "pipelines" / name
        folder.mkdir(parents=True)
        (folder / "main.py").write_bytes(main if isinstance(main, bytes) else textwrap.dedent(main).encode())
        for stem, content in files.items():
            if isinstance(content, dict):
                (folder / f"{stem}.json").write_text(json.dumps(content))
            else:
                (folder / f"{stem}.txt").write_text(content)
        return folder

    def run(self, folder: Path, *arguments: str) -> Completed:
        """Runs a folder to its end."""
        with self.started(folder, *arguments) as process:
            return self.end_of(process)

    @contextmanager
    def started(self, folder: Path, *arguments: str, terminal: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A run of a folder, on a `terminal` of its own if one is given; killed in the end if it still lives."""
        command = [str(BIN / "ffctl"), "run", "--local", str(folder), "--runtime", self._runtime]
        on_terminal = [] if terminal is None else ["setsid", "--ctty"]
        with subprocess.Popen(
            [*on_terminal, *command, "--cache", str(self.cache), *arguments],
            env=self.settings,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE if terminal is None else terminal,
            # Else what a readline() has buffered is lost to communicate().
            bufsize=0,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def line_of(process: subprocess.Popen[bytes]) -> bytes:
        """The next line of its output."""
        assert process.stdout is not None
        return process.stdout.readline()

    @staticmethod
    def end_of(process: subprocess.Popen[bytes], seconds: float = PATIENCE_SECONDS) -> Completed:
        """How it ended, with the rest of its output."""
        output, errors = process.communicate(timeout=seconds)
        return Completed(process.returncode, output, errors.decode())

    @property
    def data_dir(self) -> Path:
        """The data folder of a run that is alone."""
        return self.cache / "1"

    @property
    def agent_id(self) -> str:
        """By which the engine knows what is ours."""
        return (self.data_dir / "agent-id").read_text().strip()

    @property
    def left_behind(self) -> list[str]:
        """Paths of what runs left besides caches."""
        places = [self.data_dir / name for name in ("slots", "code", "preparers")]
        return [str(path) for place in [*places, self.environments] if place.exists() for path in place.iterdir()]
