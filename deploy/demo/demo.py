"""`make demo`: the whole of Fast-Flow on this machine, then cleaned up; `make up`: left running by `ffctl up`.

Makes sure of a Docker engine and the runner image, starts a control plane and an agent as two processes, and types
the `ffctl` commands a person would type. Each command is printed before it runs, so that it can be typed again.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ffctl.children import readable

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STATE = ROOT / ".fastflow"
PIPELINES = ROOT / "examples" / "pipelines"
ENGINE = [sys.executable, str(ROOT / "deploy" / "engine" / "engine")]
IMAGE = [sys.executable, str(ROOT / "deploy" / "runner" / "build")]
NO_ENGINE = 3
"""Exit code of `engine ensure` where Docker can not be had."""
READY_SECONDS = 120.0
STOP_SECONDS = 20.0
LAST_LINES = 3

BOLD, GREEN, YELLOW, RESET = ("\033[1m", "\033[32m", "\033[33m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


class DemoFailed(Exception):
    """The demo can not go on; the message says why and what to do."""


def main() -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--up", action="store_true", help="leave control plane and agent running until Ctrl-C")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with ExitStack() as cleanup:
        try:
            runtime = _container_runtime(cleanup)
            if arguments.up:
                return _stay(runtime)
            _tour(_start(cleanup, runtime, STATE / "demo"), runtime)
        except DemoFailed as error:
            print(f"{YELLOW}{error}{RESET}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        heading("That was all. Stopping what was started.")
    print(f"Next: {BOLD}make up{RESET} leaves it running; README.md tells how to write a pipeline and add a worker.")
    return 0


def heading(text: str) -> None:
    """Prints one step of the demo."""
    print(f"\n{BOLD}{GREEN}==> {text}{RESET}", flush=True)


def _container_runtime(cleanup: ExitStack) -> str:
    """Returns "docker" with engine and image in place, or "process" where Docker can not be had."""
    heading("Docker engine and runner image")
    _hold_engine(cleanup)
    ensured = subprocess.run([*ENGINE, "ensure", str(STATE / "engine")], check=False)
    if ensured.returncode == NO_ENGINE:
        print(
            f"{YELLOW}Docker can not be had here, so pipelines run as plain processes of this machine:\n"
            f"no isolation (they see your files and network), and no CPU or memory limits.{RESET}"
        )
        return "process"
    if ensured.returncode != 0:
        raise DemoFailed("The Docker engine could not be started; its message stands above.")
    if subprocess.run(IMAGE, check=False).returncode != 0:
        raise DemoFailed("The runner image could not be built; the message stands above.")
    return "docker"


def _hold_engine(cleanup: ExitStack) -> None:
    """Keeps other `make`s from stopping the engine; at the end stops it, if it was started here and none uses it."""
    folder = STATE / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    cleanup.callback(subprocess.run, [*ENGINE, "stop", str(folder)], check=False)
    in_use = cleanup.enter_context((folder / "in-use").open("a"))
    fcntl.flock(in_use, fcntl.LOCK_SH)


def _start(cleanup: ExitStack, runtime: str, data: Path) -> str:
    """Starts control plane and agent as two processes and returns the control plane's address."""
    heading("Control plane and agent, two processes")
    data.mkdir(parents=True, exist_ok=True)
    server = f"127.0.0.1:{_free_port()}"
    controlplane = _spawn(
        cleanup,
        data / "controlplane.log",
        ["fastflow-controlplane", "serve"],
        FASTFLOW_LISTEN=server,
        FASTFLOW_DATA_DIR=str(data / "controlplane"),
        FASTFLOW_PIPELINES_DIR=str(PIPELINES),
    )
    settings = {
        "FASTFLOW_CONTROLPLANE": server,
        "FASTFLOW_DATA_DIR": str(data / "agent"),
        "FASTFLOW_AGENT_NAME": "worker-1",
        "FASTFLOW_RUNTIME": runtime,
    }
    if "SSL_CERT_FILE" in os.environ:
        settings["FASTFLOW_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"]
    agent = _spawn(cleanup, data / "agent.log", ["fastflow-agent", "run"], **settings)
    _until_agent_connected(server, [controlplane, agent])
    return server


@dataclass(frozen=True)
class Started:
    """A program of ours and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises DemoFailed with the program's last words if it has ended."""
        if self.process.poll() is not None:
            words = "\n".join(map(readable, self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]))
            raise DemoFailed(f"{self.name} ended with exit code {self.process.returncode}:\n{words}")


def _spawn(cleanup: ExitStack, log: Path, command: list[str], **settings: str) -> Started:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    print(f"{' '.join(command)}  (pid {process.pid}, log {log.relative_to(ROOT)})")
    cleanup.callback(_stop, process)
    return Started(command[0], process, log)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _until_agent_connected(server: str, programs: list[Started]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        for program in programs:
            program.check()
        listed = _ffctl(server, "agents", "list", "-o", "json", capture=True)
        if "AGENT_STATE_ACTIVE" in listed:
            return
        time.sleep(0.2)
    logs = " and ".join(str(program.log) for program in programs)
    raise DemoFailed(f"No agent connected within {READY_SECONDS:.0f} s; {logs} say why.")


def _ffctl(server: str, *arguments: str, capture: bool = False, value: str | None = None, expected: int = 0) -> str:
    """Runs one ffctl command against `server`; prints it first unless its output is captured.

    Raises DemoFailed where a printed one ends with another exit code than `expected`.
    """
    if not capture:
        print(f"\n{BOLD}$ ffctl {shlex.join(arguments)}{RESET}", flush=True)
    done = subprocess.run(
        [str(BIN / "ffctl"), *arguments],
        env={**os.environ, "FASTFLOW_SERVER": server},
        input=value,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.DEVNULL if capture else None,
        check=False,
    )
    if not capture and done.returncode != expected:
        raise DemoFailed(f"The last command ended with exit code {done.returncode}, not with {expected}.")
    return done.stdout or ""


def _tour(server: str, runtime: str) -> None:
    heading("Folders with a main.py are pipelines; nothing is registered")
    _ffctl(server, "pipelines", "list")
    _ffctl(server, "agents", "list")

    heading("Run one and follow its output")
    _ffctl(server, "run", "hello", "--follow")

    heading("Parameters and secrets are environment variables; secrets are masked in the log")
    _ffctl(server, "secrets", "set", "GREETING_TOKEN", "--pipeline", "greeting", value="open-sesame-2026\n")
    _ffctl(server, "run", "greeting", "--env", "NAME=Ada", "--follow")

    heading("requirements.txt is installed from a shared cache: the second start is warm")
    _ffctl(server, "run", "weather_report", "--follow")
    _ffctl(server, "run", "weather_report", "--follow")
    _ffctl(server, "run", "inline_requirements", "--follow")

    heading("An uncaught exception is a failed run")
    _ffctl(server, "run", "broken", "--follow", expected=1)

    if runtime == "docker":
        heading("A soft limit only warns")
        _ffctl(server, "run", "memory_soft_limit", "--follow")
        _ffctl(server, "runs", "show", _newest(server, "memory_soft_limit"))

        heading("A hard memory limit ends the container, and the verdict says so")
        _ffctl(server, "run", "memory_hog", "--follow", expected=1)
        _ffctl(server, "runs", "show", _newest(server, "memory_hog"))

    heading("Everything that ran")
    _ffctl(server, "runs", "list")


def _newest(server: str, pipeline: str) -> str:
    """Returns the short id of the newest run of `pipeline`."""
    runs = json.loads(_ffctl(server, "runs", "list", "-o", "json", capture=True))["runs"]
    return str(next(run["id"] for run in runs if run["pipeline"] == pipeline))[-8:]


def _stay(runtime: str) -> int:
    """Runs `ffctl up` until Ctrl-C and returns its exit code."""
    folders = {"--pipelines": PIPELINES, "--data": STATE / "up"}
    options = [word for name, folder in folders.items() for word in (name, str(folder.relative_to(ROOT)))]
    command = ["ffctl", "up", *options, "--runtime", runtime]
    heading("Control plane and agent in one command")
    print(f"\n{BOLD}$ {shlex.join(command)}{RESET}", flush=True)
    process = subprocess.Popen([str(BIN / command[0]), *command[1:]], cwd=ROOT)
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal sent it to ffctl as well, which ends its two programs in order
    finally:
        _stop(process)


if __name__ == "__main__":
    sys.exit(main())
