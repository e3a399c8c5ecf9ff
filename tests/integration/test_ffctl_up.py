"""`ffctl up`: both programs in one command, told apart, ended in order."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.ports import HeldPort

FFCTL = Path(sys.executable).parent / "ffctl"
SECONDS = 120.0
NO_DOCKER = "unix:///nowhere/docker.sock"


class Up:
    """`ffctl up` in a folder of its own, where no Docker engine can be had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = HeldPort()
        self.port = self._held.number
        self.started: list[subprocess.Popen[str]] = []
        self.settings: dict[str, str] = {}
        pipeline = folder / "pipelines" / "hello"
        pipeline.mkdir(parents=True)
        (pipeline / "main.py").write_text("print('hello')\n")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [str(FFCTL), "up", "--listen", f"127.0.0.1:{self.port}", *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.started.append(process)
        return process

    def beside(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Starts one more in the same folder, which is to end by itself."""
        return subprocess.run(
            [str(FFCTL), "up", *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def until_ready(self) -> str:
        """Returns what was printed on stdout up to the hint how to stop."""
        stdout = self.started[-1].stdout
        assert stdout is not None
        said = ""
        for line in stdout:
            said += line
            if "Ctrl-C stops both" in line:
                return said
        raise AssertionError(f"it ended before it was ready:\n{self.stderr}")

    def end(self) -> None:
        """Ends what a test left running."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
        self._held.close()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def children(self) -> dict[str, psutil.Process]:
        """The two programs by name."""
        found = {}
        for child in psutil.Process(self.started[-1].pid).children():
            match = re.search(r"fastflow-(\w+)", " ".join(child.cmdline()))
            if match:
                found[match.group(1)] = child
        return found

    def ffctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(FFCTL), *arguments],
            env={**self.environment(), "FASTFLOW_SERVER": f"127.0.0.1:{self.port}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
        return {**kept, "DOCKER_HOST": NO_DOCKER, **self.settings}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="class")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, str]]:
    """One that is ready, and what it said then on stdout."""
    made = Up(tmp_path_factory.mktemp("up"))
    made.start()
    yield made, made.until_ready()
    made.end()


class TestReady:
    def test_it_says_where_it_is_and_runs_pipelines_of_the_folder(self, ready: tuple[Up, str]) -> None:
        up, said = ready
        assert f"ready at 127.0.0.1:{up.port}" in said
        assert f"export FASTFLOW_SERVER=127.0.0.1:{up.port}" in said
        assert str(up.folder / "pipelines") in said
        done = up.ffctl("run", "hello", "--follow")
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr

    def test_without_docker_it_says_what_is_not_isolated_or_limited(self, ready: tuple[Up, str]) -> None:
        up, _ = ready
        assert "Docker can not be had here: there is no /nowhere/docker.sock." in up.stderr
        assert "no isolation" in up.stderr
        assert "neither cpu_hard_limit nor mem_hard_limit is enforced" in up.stderr

    def test_lines_of_both_programs_carry_their_name(self, ready: tuple[Up, str]) -> None:
        up, _ = ready
        names = {line.partition("|")[0].strip() for line in up.stderr.splitlines() if "|" in line}
        assert {"controlplane", "agent"} <= names


def test_sources_of_the_settings_are_named_and_a_folder_that_is_not_among_them_is_warned_of(up: Up) -> None:
    sources = [{"name": "flows", "url": "/srv/flows.git"}, {"name": "local", "folder": str(up.folder / "more")}]
    up.settings["FASTFLOW_SOURCES"] = json.dumps(sources)
    up.start("--pipelines", str(up.folder / "pipelines"))
    assert f"Pipelines from /srv/flows.git, {up.folder / 'more'}, run by process" in up.until_ready()
    assert f"warning: {up.folder / 'pipelines'} is not used, as the settings name sources" in up.stderr


def test_ctrl_c_ends_both_and_nothing_is_left(up: Up) -> None:
    process = up.start()
    up.until_ready()
    children = up.children()
    assert set(children) == {"controlplane", "agent"}
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert not any(child.is_running() for child in children.values())


def test_a_second_start_finds_the_runs_of_the_first(up: Up) -> None:
    process = up.start()
    up.until_ready()
    run = up.ffctl("run", "hello", "--wait").stdout.strip()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    up.start()
    up.until_ready()
    assert run in up.ffctl("runs", "list").stdout


@pytest.mark.parametrize("name", ["agent", "controlplane"])
def test_a_program_that_dies_is_told_with_its_last_lines_and_ends_the_other(up: Up, name: str) -> None:
    process = up.start()
    up.until_ready()
    children = up.children()
    children[name].kill()
    assert process.wait(SECONDS) == 1
    assert f"the {name} ended by itself with exit code -9. Its last lines:" in up.stderr
    assert not any(child.is_running() for child in children.values())


def test_a_port_that_is_taken_is_told_by_name(up: Up) -> None:
    with socket.create_server(("127.0.0.1", up.port)):
        assert up.start().wait(SECONDS) == 1
    assert f"another program listens at 127.0.0.1:{up.port} already" in up.stderr
    assert "Traceback" not in up.stderr


def test_where_another_control_plane_answers_it_does_not_pass_for_ours(up: Up, tmp_path: Path) -> None:
    up.start()
    up.until_ready()
    second = up.beside("--listen", f"127.0.0.1:{up.port}", "--data", str(tmp_path / "other"))
    assert (second.returncode, second.stdout) == (1, "")
    assert "--listen HOST:PORT" in second.stderr


def test_a_second_one_with_the_same_data_is_refused_by_pid(up: Up) -> None:
    first = up.start()
    up.until_ready()
    with closing(HeldPort()) as other:
        second = up.beside("--listen", f"127.0.0.1:{other.number}")
    assert second.returncode == 1
    assert f"pid {first.pid}" in second.stderr


def test_the_programs_do_not_outlive_a_killed_ffctl(up: Up) -> None:
    process = up.start()
    up.until_ready()
    children = list(up.children().values())
    process.kill()
    process.wait(SECONDS)
    gone, alive = psutil.wait_procs(children, timeout=SECONDS)
    assert (len(gone), alive) == (2, [])
