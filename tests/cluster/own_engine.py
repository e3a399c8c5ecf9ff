"""A Docker engine beside the machine's own, which may be maltreated."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.program import PATIENCE_SECONDS, thread_states

GIVEN_UP = b"cleaning up dead shim"
TASKS_LOADED = b"io.containerd.service.v1.tasks-service"
"""What containerd writes of a shim that is gone, and once it has looked at all shims of before its start."""


@contextmanager
def own_engine(image: str) -> Iterator["OwnEngine"]:
    """An engine that has `image`; all that is left of it goes at the end."""
    # Not tmp_path: the path of a Unix socket ends at 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ff-own-"))
    engine = OwnEngine(folder)
    try:
        engine.start()
        engine.load(image)
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder)


class OwnEngine:
    """A Docker engine in `folder`.

    It lives in namespaces of its own: a daemon takes the machine's docker0 for its own, and all that it leaves behind
    goes with them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "dockerd.log"
        self._started_at = 0
        namespaces = ["unshare", "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        # Under an init that reaps: to a daemon, its containerd of before is alive as long as it is a zombie.
        self._home = subprocess.Popen([*namespaces, "docker-init", "--", "sleep", "infinity"])
        self._daemon = 0

    @property
    def host(self) -> str:
        return f"unix://{self._folder}/docker.sock"

    def start(self, *, live_restore: bool = True) -> None:
        """Start the daemon and wait until it answers. With `live_restore` containers outlive it."""
        self.restores = live_restore
        options = [f"--{name}={self._folder / name}" for name in ("data-root", "exec-root", "pidfile")]
        options += [f"--host={self.host}", "--iptables=false", "--bridge=none"]
        options += ["--live-restore"] if live_restore else []
        inside = ["nsenter", f"--target={_child(self._home.pid)}", "--net", "--mount", "--pid"]
        self._started_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            # Its containerd gives up on a shim that does not answer within 5 s, and on an exit code with it: on a
            # crowded machine all of them go first, where that may be asked for.
            command = ["nice", "-n", "-10", *inside, "dockerd", *options]
            self._entrance = subprocess.Popen(command, stdout=log, stderr=log)
        self._daemon = _child(self._entrance.pid)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.answers():
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.1)

    def load(self, image: str) -> None:
        """Give it an image of the machine's engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                ["docker", "-H", self.host, "load", "-q"], stdin=saved.stdout, check=True, timeout=PATIENCE_SECONDS
            )
        assert saved.returncode == 0

    def hang(self) -> None:
        """Have the daemon take calls and answer none."""
        os.kill(self._daemon, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while thread_states(self._daemon) != {"T"}:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._daemon, signal.SIGCONT)
        # nsenter stops with its child, but does not go on with it.
        self._entrance.send_signal(signal.SIGCONT)

    @contextmanager
    def hung_shim(self) -> Iterator[None]:
        """Meanwhile nothing tells a daemon that starts of its container: containerd gives up on that after 5 s."""
        shims = [
            int(entry.name)
            for entry in Path("/proc").glob("[0-9]*")
            if str(self._folder).encode() in (words := _command(entry)) and b"containerd-shim" in words
        ]
        assert shims
        for shim in shims:
            os.kill(shim, signal.SIGSTOP)
        try:
            yield
        finally:
            for shim in shims:
                # It was killed meanwhile, as a rule.
                with suppress(ProcessLookupError):
                    os.kill(shim, signal.SIGCONT)

    def lost_an_end(self) -> bool:
        """Whether its containerd has given up on a shim at the last start, and with it on how its container ended.

        That is no fault of ours, and happens on a crowded machine: a shim has 5 s to answer. False where containerd has
        other words for it.
        """
        with self._log.open("rb") as log:
            log.seek(self._started_at)
            return GIVEN_UP in log.read().partition(TASKS_LOADED)[0]

    def stop(self) -> None:
        """End the daemon; containers go on where it was started so, else it ends them first."""
        os.kill(self._daemon, signal.SIGTERM)
        self._entrance.wait(timeout=PATIENCE_SECONDS)

    def kill(self) -> None:
        """End the daemon as a crash would."""
        os.kill(self._daemon, signal.SIGKILL)
        self._entrance.wait(timeout=PATIENCE_SECONDS)

    def docker(self, *arguments: str) -> str:
        """Does by hand what an operator does with the docker command; returns what it says."""
        command = ["docker", "-H", self.host, *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        ).stdout.strip()

    def close(self) -> None:
        """End all of it."""
        # Its init, whose end is told once nothing in its namespace lives and writes into the folder any more.
        os.kill(_child(self._home.pid), signal.SIGKILL)
        self._home.wait(timeout=PATIENCE_SECONDS)
        self._entrance.wait(timeout=PATIENCE_SECONDS)

    def answers(self) -> bool:
        """Whether the daemon is there."""
        command = ["docker", "-H", self.host, "version"]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS).returncode == 0


def _command(process: Path) -> bytes:
    with suppress(OSError):
        return (process / "cmdline").read_bytes()
    return b""


def _child(pid: int) -> int:
    """The one child of a process, once there is one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0])
