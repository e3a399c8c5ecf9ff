"""Control plane, agents and ffctl together."""

import json
import os
import re
import secrets
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from ffctl.output import as_mapping

from tests.cluster.api import Api
from tests.cluster.program import BIN, PATIENCE_SECONDS, Program
from tests.ports import HeldPort

T = TypeVar("T")

TERMINAL = {
    "RUN_STATE_SUCCEEDED",
    "RUN_STATE_FAILED",
    "RUN_STATE_CANCELLED",
    "RUN_STATE_TIMED_OUT",
    "RUN_STATE_LOST",
}
POLL_SECONDS = 0.05
OTHER_VERSION = """
import importlib.metadata, sys
true, other = importlib.metadata.version, sys.argv.pop()
importlib.metadata.version = lambda name: other if name == "fast-flow" else true(name)
sys.argv = ["fastflow-agent", "run"]
from fastflow_agent.__main__ import main
main()
"""
"""Runs the agent under another version, named as the last argument: what a journal was written by is no matter."""


@dataclass(frozen=True)
class Completed:
    """How one ffctl command ended."""

    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Standard output as text, without the space around it."""
        return self.stdout.decode(errors="replace").strip()


class Cluster:
    """A control plane and its agents in one folder; a context manager that stops what it started.

    `runtime` is what agents run containers with: "docker" or "process". `settings` are those of the control plane.
    `host` is the address it listens on; `entrance` is a command line that runs the command after it in another
    network, where that address is. `engine` is the address of a Docker engine other than the machine's own.
    """

    def __init__(
        self,
        folder: Path,
        runtime: str,
        *,
        host: str = "127.0.0.1",
        entrance: Sequence[str] = (),
        engine: str = "",
        **settings: str,
    ) -> None:
        self.folder = folder
        self.runtime = runtime
        self.pipelines = folder / "pipelines"
        self.pipelines.mkdir(parents=True)
        self._port = HeldPort()
        self.server = f"{host}:{self._port.number}"
        self._entrance = entrance
        self._api = Api(self.server)
        self._engine = engine
        self.agents: dict[str, Program] = {}
        self.controlplane = Program(
            ["fastflow-controlplane", "serve"],
            folder / "controlplane.log",
            {
                "FASTFLOW_LISTEN": self.server,
                "FASTFLOW_DATA_DIR": str(folder / "controlplane"),
                "FASTFLOW_PIPELINES_DIR": str(self.pipelines),
                **settings,
            },
            entrance,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()
        for program in [*self.agents.values(), self.controlplane]:
            if program.alive:
                program.thaw()
                program.stop()
        for name in self.agents:
            self._remove_containers(name)
        self._api.close()

    def start(self, **agent_settings: str) -> Self:
        """Starts the control plane and one agent, "worker-1", and waits until the agent takes runs."""
        self.controlplane.start()
        self.add_agent("worker-1", **agent_settings)
        self.wait_for_agent("worker-1")
        return self

    def add_agent(self, name: str, *, entrance: Sequence[str] = (), **settings: str) -> Program:
        """Starts one more agent; `entrance` is a command line that runs the command after it elsewhere."""
        chosen = self._agent_settings(name, settings)
        agent = Program(["fastflow-agent", "run"], self.folder / f"{name}.log", chosen, entrance)
        self.agents[name] = agent
        agent.start()
        return agent

    def upgrade_agent(self, name: str, version: str) -> None:
        """Stops the agent as a service manager does, and starts another version of it in its place."""
        former = self.agents[name]
        assert former.stop() == 0
        self.agents[name] = Program(["python", "-c", OTHER_VERSION, version], former.log, former.settings)
        self.agents[name].start()

    @property
    def programs(self) -> list[Program]:
        """Control plane and agents."""
        return [self.controlplane, *self.agents.values()]

    @property
    def agent(self) -> Program:
        """The first agent."""
        return next(iter(self.agents.values()))

    def add_pipeline(self, name: str, main: str | bytes, **files: str | dict[str, Any]) -> Path:
        """Writes a pipeline folder. `files` are further files: `requirements` (.txt), `pipeline` (.json, a dict)."""
        folder = self.pipelines / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_bytes(main if isinstance(main, bytes) else textwrap.dedent(main).encode())
        for stem, content in files.items():
            if isinstance(content, dict):
                (folder / f"{stem}.json").write_text(json.dumps(content))
            else:
                (folder / f"{stem}.txt").write_text(content)
        return folder

    def ffctl(self, *arguments: str, value: str | None = None, timeout: float = PATIENCE_SECONDS) -> Completed:
        """Runs one ffctl command to its end; `value` is its standard input."""
        done = subprocess.run(
            [*self._entrance, str(BIN / "ffctl"), *arguments],
            env=self.ffctl_environment(),
            input=value.encode() if value is not None else b"",
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def spawn_ffctl(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts one ffctl command that the test reads from, signals or waits for itself."""
        return subprocess.Popen(
            [*self._entrance, str(BIN / "ffctl"), *arguments],
            env=self.ffctl_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Else what a readline() has buffered is lost to communicate().
            bufsize=0,
        )

    @staticmethod
    def read_until(command: subprocess.Popen[bytes], text: str) -> str:
        """What an ffctl of `spawn_ffctl` says on standard error from here up to a line with `text`."""
        assert command.stderr is not None
        told = ""
        for line in command.stderr:
            told += line.decode()
            if text in told:
                return told
        raise AssertionError(f"it ended before it said {text!r}: {told}")

    def ffctl_environment(self) -> dict[str, str]:
        """The environment in which ffctl speaks to this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
        return {**kept, "FASTFLOW_SERVER": self.server}

    def run(self, pipeline: str, *arguments: str) -> str:
        """Queues a run and returns its id."""
        done = self.ffctl("run", pipeline, *arguments)
        assert done.exit_code == 0, done.stderr
        return done.text

    def show(self, run: str) -> dict[str, Any]:
        """The run as `ffctl runs show -o json` gives it, by proto field name; waits for a control plane that starts."""
        return as_mapping(self._api.run(run))

    def show_agent(self, name: str) -> dict[str, Any]:
        """The agent as `ffctl agents show -o json` gives it, by proto field name; waits as `show` does."""
        agent = self.known_agent(name)
        assert agent is not None, f"there is no agent {name}"
        return agent

    def known_agent(self, name: str) -> dict[str, Any] | None:
        """The agent as `show_agent` gives it; nothing before it was ever there, and while nobody can tell."""
        try:
            return as_mapping(self._api.agent(name))
        except grpc.RpcError:
            return None

    def log(self, run: str) -> bytes:
        """The run's whole log so far."""
        return self._api.log(run)

    def finish(self, run: str, timeout: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Waits until the run is terminal with its log sealed, and returns it."""
        return self.until(lambda: self._finished(run), f"the end of run {run}", timeout)

    def wait_for_state(self, run: str, state: str, timeout: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Waits until the run is in `state` ("RUNNING")."""

        def seen() -> dict[str, Any] | None:
            shown = self.show(run)
            return shown if shown["state"] == f"RUN_STATE_{state}" else None

        return self.until(seen, f"run {run} to be {state}", timeout)

    def wait_for_log(self, run: str, text: bytes, timeout: float = PATIENCE_SECONDS) -> None:
        """Waits until `text` stands in the run's stored log."""
        deadline = time.monotonic() + timeout
        while text not in (seen := self.log(run)):
            assert time.monotonic() < deadline, f"{text!r} is not in the log of run {run}: {seen[-2000:]!r}"
            time.sleep(POLL_SECONDS)

    def wait_for_agent(self, name: str, state: str = "ACTIVE", timeout: float = PATIENCE_SECONDS) -> None:
        """Waits until the agent is in `state`."""

        def seen() -> bool:
            if state == "ACTIVE" and name in self.agents:
                self.agents[name].check()
            agent = self.known_agent(name)
            return agent is not None and agent["state"] == f"AGENT_STATE_{state}"

        self.until(seen, f"agent {name} to be {state}", timeout)

    def until(self, condition: Callable[[], T | None], what: str, timeout: float = PATIENCE_SECONDS) -> T:
        """Polls until `condition` gives something true and returns it; fails with the programs' logs."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s in vain for {what}")
            time.sleep(POLL_SECONDS)
        return found

    def _finished(self, run: str) -> dict[str, Any] | None:
        shown = self.show(run)
        attempts = shown.get("attempts", [])
        sealed = all(attempt.get("log_sealed") for attempt in attempts)
        return shown if shown["state"] in TERMINAL and sealed else None

    def _agent_settings(self, name: str, settings: dict[str, str]) -> dict[str, str]:
        chosen = {
            "FASTFLOW_CONTROLPLANE": self.server,
            "FASTFLOW_DATA_DIR": str(self.folder / name),
            "FASTFLOW_AGENT_NAME": name,
            "FASTFLOW_RUNTIME": self.runtime,
            "FASTFLOW_ENV_DIR": f"/dev/shm/fastflow-test-{secrets.token_hex(4)}",
        }
        if "SSL_CERT_FILE" in os.environ:
            chosen["FASTFLOW_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"]
        if self._engine:
            chosen["FASTFLOW_DOCKER_HOST"] = self._engine
        return chosen | settings

    def _remove_containers(self, name: str) -> None:
        shutil.rmtree(self.agents[name].settings["FASTFLOW_ENV_DIR"], ignore_errors=True)
        if self.runtime != "docker":
            return
        agent_id = self.folder / name / "agent-id"
        if not agent_id.exists() or not re.fullmatch(r"[0-9a-f-]+", agent_id.read_text().strip()):
            return
        label = f"label=org.fastflow.agent={agent_id.read_text().strip()}"
        docker = ["docker", *(["-H", self._engine] if self._engine else [])]
        listed = subprocess.run([*docker, "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
        if listed.stdout.split():
            subprocess.run([*docker, "rm", "-fv", *listed.stdout.split()], capture_output=True, check=True)
