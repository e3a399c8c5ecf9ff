"""Programs of the previous version, run with stubs that are made of its protocol."""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.unit.agent.world import World

PREVIOUS = Path(__file__).parent / "previous"
PATIENCE_SECONDS = 240.0


class PreviousProgram:
    """One program of the previous version; a context manager that ends it."""

    def __init__(self, stubs: Path, program: str, arguments: Sequence[str]) -> None:
        # Without this project's own folders on the path: there is one package of the name in a process.
        environment = {**os.environ, "PYTHONPATH": str(stubs)}
        self._process = subprocess.Popen(
            [sys.executable, str(PREVIOUS / program), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._deadline = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        self._deadline.start()
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        self._process.kill()
        self._process.communicate()

    def until(self, words: str) -> str:
        """Returns the first line from here on that has these words; fails when the program ends without it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.strip())
            if words in line:
                return line.strip()
        raise AssertionError(f"{words!r} was not said, but: {self.said}")

    def kill(self) -> None:
        """Ends it without a word."""
        self._process.kill()
        self._process.wait()

    def ends(self) -> int:
        """Returns the exit code, once the program ended by itself."""
        assert self._process.stdout is not None
        self.said += [line.strip() for line in self._process.stdout]
        return self._process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stubs of the previous protocol, in a folder of their own."""
    import grpc_tools

    folder = tmp_path_factory.mktemp("previous")
    proto = PREVIOUS / "proto"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={proto}"),
        f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--python_out={folder}", f"--grpc_python_out={folder}"),
        *(str(file.relative_to(proto)) for file in sorted(proto.rglob("*.proto"))),
    ]
    subprocess.run(command, check=True)
    # Regular packages, which come before those of the project; a folder without this would come after them.
    for package in (folder / "fastflow", *(path for path in (folder / "fastflow").rglob("*") if path.is_dir())):
        (package / "__init__.py").touch()
    return folder


@pytest.fixture
def previous(stubs: Path) -> Iterator[Callable[..., PreviousProgram]]:
    """Starts a program of the previous version: `previous("agent.py", address)`."""
    started: list[PreviousProgram] = []

    def start(program: str, *arguments: str) -> PreviousProgram:
        started.append(PreviousProgram(stubs, program, arguments))
        return started[-1]

    yield start
    for program in started:
        program.__exit__()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A worker host in memory, on which no agent runs yet."""
    async with World(tmp_path) as made:
        yield made
