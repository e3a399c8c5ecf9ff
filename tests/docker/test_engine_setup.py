"""`deploy/engine/engine`: finds an engine, starts one of its own, and stops no other."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "deploy" / "engine" / "engine"
NO_ENGINE = 3


class Setup:
    """The script with a state folder, and a socket and data of its own beside the machine's engine."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.socket = folder / "docker.sock"
        self._options = [f"--{name}={folder / name}" for name in ("data-root", "exec-root", "pidfile")]

    def ensure(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("ensure", str(self.state), "--socket", str(self.socket), "--", *self._options, *options)

    def stop(self) -> subprocess.CompletedProcess[str]:
        return self.run("stop", str(self.state))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            # A daemon takes the machine's docker0 for its own and even removes it (--bridge=none): keep them apart.
            ["unshare", "--net", str(ENGINE), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env={**os.environ, **environment},
        )

    @property
    def record(self) -> Path:
        return self.state / "dockerd.json"


@pytest.fixture
def setup() -> Iterator[Setup]:
    # Not tmp_path: the path of a Unix socket ends at 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ff-engine-"))
    made = Setup(folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # A zombie has ended: its new parent, init, reaps it when it likes.
    return state != "Z"


def test_it_starts_a_daemon_finds_it_again_and_stops_it(setup: Setup) -> None:
    started = setup.ensure()
    assert started.returncode == 0, started
    assert "is ready at" in started.stdout
    pid = json.loads(setup.record.read_text())["pid"]

    found = setup.ensure()
    assert (found.returncode, f"answers at {setup.socket}" in found.stdout) == (0, True)
    assert json.loads(setup.record.read_text())["pid"] == pid

    stopped = setup.stop()
    assert (stopped.returncode, is_alive(pid), setup.record.exists()) == (0, False, False)


def test_a_daemon_that_another_user_of_the_state_folder_needs_is_left_running(setup: Setup) -> None:
    setup.ensure()
    pid = json.loads(setup.record.read_text())["pid"]
    with (setup.state / "in-use").open("a") as in_use:
        fcntl.flock(in_use, fcntl.LOCK_SH)
        assert "left running" in setup.stop().stdout
        assert is_alive(pid)
    assert "stopped" in setup.stop().stdout
    assert not is_alive(pid)


def test_it_stops_no_daemon_that_it_did_not_start(setup: Setup) -> None:
    assert setup.run("ensure", str(setup.state)).returncode == 0
    stopped = setup.stop()
    assert (stopped.returncode, "nothing to stop" in stopped.stdout) == (0, True)
    assert setup.run("ensure", str(setup.state)).returncode == 0


def test_a_later_process_with_the_daemons_pid_is_left_alone(setup: Setup) -> None:
    setup.state.mkdir()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with subprocess.Popen(["sleep", "60"]) as other:
        record = {"pid": other.pid, "start_ticks": 1, "boot_id": boot_id, "socket": str(setup.socket)}
        setup.record.write_text(json.dumps(record))
        assert setup.stop().returncode == 0
        assert other.poll() is None
        other.terminate()


def test_a_daemon_that_can_not_start_is_explained(setup: Setup, tmp_path: Path) -> None:
    config = tmp_path / "daemon.json"
    config.write_text("{")
    failed = setup.ensure(f"--config-file={config}")
    assert failed.returncode == NO_ENGINE
    assert f"unable to configure the Docker daemon with file {config}" in failed.stderr
    assert not setup.record.exists()


def test_an_engine_named_by_the_user_is_never_replaced(setup: Setup) -> None:
    asked = setup.run("ensure", str(setup.state), DOCKER_HOST=f"unix://{setup.socket}")
    assert (asked.returncode, "where DOCKER_HOST points" in asked.stderr) == (NO_ENGINE, True)
    assert not setup.state.exists()


def test_an_engine_that_hangs_is_told_apart_from_none(setup: Setup) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(setup.socket))
        listener.listen()
        asked = setup.ensure()
    assert (asked.returncode, "gives no answer of a Docker engine" in asked.stderr) == (NO_ENGINE, True)
