"""Fast-Flow on the lab: the control plane in the lab's network, agents on guests."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from fastflow.service.failpoints import VARIABLE, AgentPoint

from tests.cluster import Cluster
from tests.cluster.cluster import TERMINAL
from tests.hosts.lab.errors import LabError, tail
from tests.hosts.lab.guest import Guest, shell_assignments
from tests.hosts.lab.init import PLAIN, Init
from tests.hosts.lab.lab import Lab
from tests.hosts.lab.network import CONTROL_PLANE_ADDRESS
from tests.hosts.lab.scope import Completed

AGENT_READY_TIMEOUT = 120.0
"""Seconds from the start of a host until its agent takes runs: about half a minute, most of it Docker's engine."""

AGENT_STOP_TIMEOUT = 30.0
"""Seconds for an agent in a guest to end on SIGTERM, or to be gone when killed."""

CANCEL_TIMEOUT = 60.0
"""Seconds for a cancelled run to be over: ten of grace, and a guest takes some for each call to its engine."""

FAIL_POINTS = "/lab/fail-points"
"""The file of a host by which its agent is armed."""

AGENT_POLL_INTERVAL = 0.5
"""Seconds between two questions for an agent: each is a whole ffctl, on processors that the guest needs to boot."""


class HostCluster(Cluster):
    """A control plane in the lab's network, and `ffctl` beside it. Hosts are added to it; it has no local agent."""

    def __init__(self, lab: Lab, folder: Path, **settings: str) -> None:
        self.token = secrets.token_hex(16)
        self._lab = lab
        remote = {"FASTFLOW_ALLOW_REMOTE": "true", "FASTFLOW_TOKEN": self.token}
        super().__init__(
            folder,
            "docker",
            host=CONTROL_PLANE_ADDRESS,
            entrance=lab.scope.network_entrance(),
            **{**remote, **settings},
        )

    # The public API is out of reach for the tests themselves: they ask with ffctl, which runs where it is.

    def show(self, run: str) -> dict[str, Any]:
        done = self.ffctl("runs", "show", run, "-o", "json")
        assert done.exit_code == 0, done.stderr
        return dict(json.loads(done.stdout))

    def known_agent(self, name: str) -> dict[str, Any] | None:
        done = self.ffctl("agents", "show", name, "-o", "json")
        return dict(json.loads(done.stdout)) if done.exit_code == 0 else None

    def log(self, run: str) -> bytes:
        done = self.ffctl("logs", run)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def finish(self, run: str, timeout: float = 60.0) -> dict[str, Any]:
        # One follower that waits costs less than asking again and again, on a machine of two cores.
        self.ffctl("logs", run, "--follow", timeout=timeout)
        return super().finish(run, timeout)

    def wait_for_log(self, run: str, text: bytes, timeout: float = 60.0) -> None:
        follower = self.spawn_ffctl("logs", run, "--follow")
        assert follower.stdout is not None
        deadline = threading.Timer(timeout, follower.kill)
        deadline.start()
        seen = b""
        while text not in seen and (more := os.read(follower.stdout.fileno(), 65536)):
            seen += more
        deadline.cancel()
        follower.kill()
        follower.communicate()
        assert text in seen, f"{text!r} is not in the log of run {run}: {seen[-2000:]!r}"

    def ffctl_environment(self) -> dict[str, str]:
        return {**super().ffctl_environment(), "FASTFLOW_TOKEN": self.token}

    def cancel_all(self) -> None:
        """Cancel every run that has not ended and wait until it has: none that a failed test left is in the way."""
        listed = json.loads(self.ffctl("runs", "list", "-o", "json").stdout)["runs"]
        for run in (run["id"] for run in listed if run["state"] not in TERMINAL):
            self.ffctl("runs", "cancel", run)
            self.finish(run, CANCEL_TIMEOUT)

    def add_host(self, name: str, init: Init = PLAIN, **settings: str) -> HostAgent:
        """Make a host with an agent of this cluster, both off; `settings` are the agent's. See `HostAgent.boot`."""
        guest = self._lab.add_guest(name, init)
        defaults = {
            "FASTFLOW_CONTROLPLANE": self.server,
            "FASTFLOW_TOKEN": self.token,
            "FASTFLOW_DATA_DIR": f"{init.data_folder}/agent",
            "FASTFLOW_AGENT_NAME": name,
            "FASTFLOW_IMAGE": self._lab.image.runner_image,
            # A guest has no way out of the lab, and Docker starts a container without a network fastest.
            "FASTFLOW_NETWORK": "none",
            VARIABLE: f"@{FAIL_POINTS}",
        }
        guest.write(init.agent_settings, shell_assignments({**defaults, **settings}))
        return HostAgent(guest, init, self)


class HostAgent:
    """A worker host: one guest whose agent starts with it."""

    def __init__(self, guest: Guest, init: Init, cluster: HostCluster) -> None:
        self.guest = guest
        self._init = init
        self._cluster = cluster

    @property
    def name(self) -> str:
        """Name of the agent and of its host."""
        return self.guest.name

    def boot(self) -> None:
        """Power on, also after a power cut, and wait until the control plane has the agent's new session as ACTIVE.

        To boot while the control plane is away: `guest.boot()`.
        """
        before = self._session()
        self.guest.boot()
        self._wait_for_session_after(before)

    def recover(self) -> None:
        """Bring the host back to where tests begin, whatever the last one left: on, reachable, its agent active."""
        if self.guest.is_on():
            self.heal()
            if not self._agent_lives():
                self.start_agent()
        else:
            self.boot()
        self._cluster.cancel_all()
        self._cluster.wait_for_agent(self.name, timeout=AGENT_READY_TIMEOUT)

    def run(self, command: str, *, timeout: float = 60.0, check: bool = True) -> Completed:
        """Run a shell command on the host; see `Guest.run`."""
        return self.guest.run(command, timeout=timeout, check=check)

    def log(self) -> str:
        """Return all that the agent has printed, over all its starts; also when the host is off."""
        return self.guest.read("/lab/agent.log")

    def stop_agent(self) -> None:
        """Send SIGTERM to the agent alone and wait for its end; its containers live on."""
        self._end_agent("TERM")

    def kill_agent(self) -> None:
        """Kill -9 the agent alone and wait until it is gone; its containers live on."""
        self._end_agent("KILL")

    def start_agent(self) -> None:
        """Start the agent again, after `stop_agent` or `kill_agent`, and wait as `boot` does."""
        before = self._session()
        self.guest.run(self._init.start_agent)
        self._wait_for_session_after(before)

    def power_cut(self) -> None:
        """Pull the host's plug; `boot` starts it again with what was on its disks."""
        self.guest.power_cut()

    def power_off(self) -> None:
        """Shut the host down in order."""
        self.guest.power_off()

    def arm(self, point: AgentPoint) -> None:
        """Have the agent freeze where it comes to that point next."""
        self.run(f"echo {point}=freeze >{FAIL_POINTS}")

    def disarm(self) -> None:
        """Let the agent pass all points again."""
        self.run(f"rm {FAIL_POINTS}")

    def partition(self) -> None:
        """Cut the host off the control plane: packets vanish both ways. `run` still works."""
        self.guest.partition()

    def heal(self) -> None:
        """End a partition."""
        self.guest.heal()

    def _session(self) -> tuple[int, str]:
        """Return epoch and state of the agent's last session as the control plane has it; 0 before the first."""
        agent = self._cluster.known_agent(self.name)
        return (int(agent.get("session_epoch", 0)), agent["state"]) if agent else (0, "")

    def _wait_for_session_after(self, before: tuple[int, str]) -> None:
        # The epoch tells: for some seconds the control plane still has the session that a power cut ended as ACTIVE.
        def active() -> bool:
            self._check_agent()
            time.sleep(AGENT_POLL_INTERVAL)
            epoch, state = self._session()
            return epoch > before[0] and state == "AGENT_STATE_ACTIVE"

        try:
            self._cluster.until(active, f"a new session of agent {self.name}", AGENT_READY_TIMEOUT)
        except AssertionError as error:
            error.add_note(f"--- agent.log of {self.name}\n{tail(self.log())}")
            raise

    def _check_agent(self) -> None:
        """Raise LabError when the agent was started and has ended."""
        if self.guest.run(self._init.agent_died, check=False).exit_code == 0:
            raise LabError(f"the agent of {self.name} has ended; its log:", output=self.log())

    def _agent_lives(self) -> bool:
        return self.guest.run(self._init.agent_lives, check=False).exit_code == 0

    def _end_agent(self, signal: str) -> None:
        self.guest.run(self._init.end_agent.format(signal=signal), timeout=AGENT_STOP_TIMEOUT)
