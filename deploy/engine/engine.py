#!/usr/bin/env python3
"""Makes sure a Docker engine answers, and stops the one it started.

`ensure` looks for an engine; where none answers and it may, it installs Debian's `docker.io` and starts the daemon:
through systemd where that runs the machine, else `dockerd` itself, in the background, with its log and its pid in the
state folder. `stop` ends a daemon that `ensure` started itself, and no other.

Exit codes: 0 done; 1 `stop` could not end the daemon; 2 usage; 3 no Docker engine can be had here (the last line says
why).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_SOCKET = Path("/var/run/docker.sock")
NO_ENGINE = 3

# An idle engine answers in milliseconds; one that takes longer than this is of no use to us.
ANSWER_SECONDS = 5.0
# 2 s on a common machine, 9 s in a slow virtual one.
START_SECONDS = 60.0
# The daemon gives each container 10 s to end before it ends itself.
STOP_SECONDS = 60.0
# About 100 MB of packages.
INSTALL_SECONDS = 900.0
POLL_SECONDS = 0.1

# Debian's docker.io has or depends on all a daemon needs: containerd, runc, iptables, the init of `docker run --init`.
PACKAGES = ["docker.io"]
# Newer releases have the `docker` command in a package of its own.
PACKAGES_WHERE_THERE_ARE = ["docker-cli"]
POLICY = Path("/usr/sbin/policy-rc.d")

NOTHING_AT_DOCKER_HOST = "nothing answers at {}, where DOCKER_HOST points: start it, or unset DOCKER_HOST"


class NoEngineError(Exception):
    """No Docker engine can be had. The text is one sentence for a person: why, and what to do."""


@dataclass(frozen=True)
class Daemon:
    """A dockerd that we started, told apart from a later process with the same pid by its start time."""

    pid: int
    start_ticks: int
    boot_id: str
    socket: str

    @property
    def alive(self) -> bool:
        return self.boot_id == read_boot_id() and self.start_ticks == read_start_ticks(self.pid)


class StateFolder:
    """Where the log and the record of our daemon are kept between `ensure` and `stop`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "dockerd.log"
        self.install_log = self.path / "install.log"
        self._record = self.path / "dockerd.json"

    def read(self) -> Daemon | None:
        try:
            return Daemon(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None

    def write(self, daemon: Daemon) -> None:
        draft = self._record.with_suffix(".new")
        draft.write_text(json.dumps(asdict(daemon)))
        draft.replace(self._record)

    def forget(self) -> None:
        self._record.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder if need be, and lets one program at a time start or stop a daemon."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def main() -> int:
    arguments = parse_arguments()
    state = StateFolder(arguments.state)
    try:
        if arguments.command == "stop":
            return stop(state)
        ensure(state, arguments.socket, arguments.dockerd_options)
    except NoEngineError as error:
        print(f"Docker engine: {error}", file=sys.stderr)
        return NO_ENGINE
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Makes sure a Docker engine answers, and stops the one it started.")
    parser.add_argument(
        "--state", type=Path, default=".fastflow/engine", help="log and pid folder (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ensuring = commands.add_parser("ensure", help="find an engine, else install and start one")
    ensuring.add_argument(
        "--socket", type=Path, help=f"where it is to answer (default: $DOCKER_HOST, else {DEFAULT_SOCKET})"
    )
    ensuring.add_argument(
        "dockerd_options", nargs="*", metavar="-- option", help="more options for a dockerd it starts"
    )
    commands.add_parser("stop", help="stop the daemon that `ensure` started")
    return parser.parse_args()


def ensure(state: StateFolder, path: Path | None, options: list[str]) -> None:
    """Returns once an engine answers; NoEngineError if none can be had."""
    address = os.environ.get("DOCKER_HOST", "")
    if not path and address and not address.startswith("unix://"):
        ask_the_command(address)
        return
    chosen = not path and bool(address)
    path = path or Path(address.removeprefix("unix://") or DEFAULT_SOCKET)
    version = find_engine(path)
    if version:
        say(f"{version} answers at {path}")
        return
    if chosen:
        raise NoEngineError(NOTHING_AT_DOCKER_HOST.format(path))
    say(f"none answers at {path}")
    if os.geteuid() != 0:
        raise NoEngineError("only root can install or start one: run this as root, or start Docker and join its group")
    with state.locked():
        if path == DEFAULT_SOCKET and Path("/run/systemd/system").is_dir():
            start_service(state, path)
        else:
            start_daemon(state, path, options)


def find_engine(path: Path) -> str:
    """The version of the engine at this socket; empty if none listens; NoEngineError if it is of no use to us."""
    try:
        return ask_version(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return ""
    except PermissionError as error:
        hint = "run this as root, or `adduser USER docker` and log in again"
        raise NoEngineError(f"this user may not use {path}: {hint}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoEngineError(f"something listens at {path}, but gives no answer of a Docker engine: {error}") from error


def ask_version(path: Path) -> str:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.sock.connect(str(path))
        connection.request("GET", "/version")
        return str(json.load(connection.getresponse())["Version"])


def ask_the_command(address: str) -> None:
    """An engine elsewhere, perhaps behind TLS: the docker command knows how to reach it."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS)
    except FileNotFoundError as error:
        raise NoEngineError(f"DOCKER_HOST is {address}, but there is no docker command to reach it with") from error
    except subprocess.SubprocessError as error:
        raise NoEngineError(NOTHING_AT_DOCKER_HOST.format(address)) from error
    say(f"{answer.stdout.strip()} answers at {address}")


def start_service(state: StateFolder, path: Path) -> None:
    if not shutil.which("dockerd"):
        install(state)
    say("asking systemd to start docker.service")
    answer = subprocess.run(["systemctl", "start", "docker.service"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise NoEngineError("docker.service does not start: `journalctl -u docker` says why")
    version = wait_until_ready(path, None)
    say(f"{version} is ready at {path}; systemd keeps it running")


def start_daemon(state: StateFolder, path: Path, options: list[str]) -> None:
    daemon = state.read()
    process = None
    if not (daemon and daemon.alive and daemon.socket == str(path)):
        if not shutil.which("dockerd", path=daemon_path()):
            install(state)
        say(f"starting dockerd (log: {state.log})")
        process = launch(state, path, options)
        daemon = Daemon(process.pid, read_start_ticks(process.pid), read_boot_id(), str(path))
        state.write(daemon)
    try:
        version = wait_until_ready(path, process)
    except NoEngineError as error:
        if process:
            terminate(daemon)
            state.forget()
        raise NoEngineError(f"{error}; the log's last line: {last_line(state.log)}") from error
    say(f"{version} is ready at {path}; {Path(__file__).name} stop ends it (pid {daemon.pid})")


def launch(state: StateFolder, path: Path, options: list[str]) -> subprocess.Popen[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with state.log.open("ab") as log:
        return subprocess.Popen(
            ["dockerd", "--host", f"unix://{path}", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "PATH": daemon_path()},
            # It outlives us, and a Ctrl-C at our terminal is not for it.
            start_new_session=True,
        )


def daemon_path() -> str:
    """dockerd calls iptables by name, and that is in sbin, which not every root shell has in its PATH."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def wait_until_ready(path: Path, process: subprocess.Popen[bytes] | None) -> str:
    deadline = time.monotonic() + START_SECONDS
    while not (version := find_engine(path)):
        if process and process.poll() is not None:
            raise NoEngineError("dockerd does not run on this machine")
        if time.monotonic() > deadline:
            raise NoEngineError(f"dockerd was not ready after {START_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    return version


def install(state: StateFolder) -> None:
    if not shutil.which("apt-get"):
        raise NoEngineError("it is not installed, and there is no apt here to install it with: install Docker by hand")
    say(f"installing Debian's docker.io (log: {state.install_log})")
    apt_get(state, "update")
    packages = [*PACKAGES, *filter(is_package, PACKAGES_WHERE_THERE_ARE)]
    if apparmor_is_on():
        # Without its parser dockerd can not load the profile of containers, and starts none.
        packages.append("apparmor")
    with services_held_back():
        apt_get(state, "install", "-y", "--no-install-recommends", *packages)


def apt_get(state: StateFolder, *arguments: str) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with state.install_log.open("ab") as log:
        try:
            subprocess.run(command, stdout=log, stderr=log, check=True, timeout=INSTALL_SECONDS, env=environment)
        except subprocess.SubprocessError as error:
            raise NoEngineError(f"`apt-get {arguments[0]}` failed: {last_line(state.install_log)}") from error


def is_package(name: str) -> bool:
    return subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode == 0


def apparmor_is_on() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False


@contextlib.contextmanager
def services_held_back() -> Iterator[None]:
    """Keeps the package from starting the daemon, where systemd does not run the machine.

    Its init script mounts cgroups wherever it misses some, and those mounts are not ours to change.
    """
    if Path("/run/systemd/system").is_dir() or POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def stop(state: StateFolder) -> int:
    if not state.read():
        say("none was started from here, nothing to stop")
        return 0
    with state.locked():
        daemon = state.read()
        if daemon and daemon.alive:
            say(f"stopping the dockerd started from here (pid {daemon.pid})")
            if not terminate(daemon):
                say(f"it still runs {STOP_SECONDS:.0f} s after it was told to end")
                return 1
        state.forget()
    say("stopped")
    return 0


def terminate(daemon: Daemon) -> bool:
    """Asks our daemon to end and tells whether it has. It is never killed: that would leave its containers' shims."""
    deadline = time.monotonic() + STOP_SECONDS
    if daemon.alive:
        os.kill(daemon.pid, signal.SIGTERM)
    while daemon.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def read_start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot (field 22 of proc(5) stat); -1 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(empty)")


def say(text: str) -> None:
    print(f"Docker engine: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
