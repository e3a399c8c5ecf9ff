"""A guest: a User Mode Linux kernel with a host's whole user space, real cgroup v2 and its own Docker engine.

It boots in seconds as an ordinary process. Its root file system is a folder of this machine (an overlay over the
cached layers), so the lab reads its logs and writes its settings from outside; Docker's data and the agent's data
(`/var/lib/fastflow`) are disks of its own, which outlive a power cut as real disks do.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import LabError, read_log
from .image import HostImage
from .init import INSIDE, Init
from .network import COMMAND_TIMEOUT, Link, Network
from .prerequisites import PLAIN_ENVIRONMENT
from .scope import Completed, Scope, ScopedProcess

BOOT_TIMEOUT = 90.0
"""Seconds from power-on until a guest executes commands: about three on a quiet machine, ten with systemd."""

ENGINE_TIMEOUT = 100.0
"""Seconds for a guest's Docker engine to answer: about eight on a quiet machine; the guest itself gives up first."""

POWER_OFF_TIMEOUT = 60.0
"""Seconds for an orderly shutdown: agent and engine may each take ten to end."""

COMMAND_TIME = 60.0
"""Seconds a command in a guest may take when its test names no time: `docker run` there takes four to nine."""

ANSWER_MARGIN = 15.0
"""Seconds a guest may take beyond a command's own time to report it, when its one processor is busy."""

POLL_INTERVAL = 0.1
"""Seconds between two tries to reach a guest that boots."""

CONNECT_TIMEOUT = 1.0
"""Seconds to reach a guest's command server, and between two looks whether a silent guest is still on."""

MEMORY = "2G"
"""Memory of a guest, its page cache in it; taken from this machine as the guest touches it."""

DATA_DISK = "8G"
"""Size of a guest's disk for the agent's data; a sparse file."""

COMMAND_PORT = 7070
"""Where a guest executes commands, on its manage address."""


class Guest:
    """One virtual host. It is off until `boot`; after a power cut or power-off `boot` starts it with its disks."""

    def __init__(
        self, name: str, folder: Path, *, scope: Scope, network: Network, image: HostImage, init: Init
    ) -> None:
        self.name = name
        self.link: Link = network.add_host()
        self._folder = folder
        self._scope = scope
        self._network = network
        self._image = image
        self._init = init
        self._console = folder / "console.log"
        self._kernel: ScopedProcess | None = None
        self._was_up = False
        self.false_start = ""
        """Why the first boot of all was ended and begun anew; "" if it was not."""
        self._lay_root()
        self._make_data_disk()

    def boot(self) -> None:
        """Power on and wait until the guest executes commands. Raises LabError with the end of its console."""
        self.power_on()
        self.wait_until_up()

    def power_on(self) -> None:
        """Start the kernel without waiting, so that several guests can boot at once; see `wait_until_up`."""
        if self.is_on():
            raise LabError(f"guest {self.name} is on already")
        preload = str(self._image.registers)
        environment = {**PLAIN_ENVIRONMENT, "TMPDIR": "/dev/shm", "HOME": str(self._folder), "LD_PRELOAD": preload}
        self._kernel = self._scope.start(self._kernel_command(), log=self._console, env=environment)

    def wait_until_up(self) -> None:
        """Wait until the guest executes commands. Raises LabError with the end of its console."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self._answers():
            if not self.is_on():
                raise self._error("stopped while it booted")
            if time.monotonic() > deadline:
                self._begin_anew(self._error(f"was not up within {BOOT_TIMEOUT:.0f} s"))
                deadline = time.monotonic() + BOOT_TIMEOUT
            time.sleep(POLL_INTERVAL)
        self._was_up = True

    def wait_for_docker(self) -> None:
        """Wait until the guest's Docker engine answers. Raises LabError with the end of the engine's log."""
        done = self.run(["python3", "/lab/wait_for_docker.py"], timeout=ENGINE_TIMEOUT, check=False)
        if done.exit_code != 0:
            raise LabError(f"guest {self.name}: {done.stderr.strip()}", output=self.read("/lab/dockerd.log"))

    def is_on(self) -> bool:
        return self._kernel is not None and self._kernel.is_alive()

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = COMMAND_TIME,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command in the guest, as root: a string with the guest's `sh`, a list as it is.

        Works while the guest is partitioned too. Raises LabError when the command is not done after `timeout`
        seconds, when the guest is off or does not answer, and, with `check`, for a non-zero exit code.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(argv)
        answer = self._request({"argv": argv, "environment": dict(environment or {}), "timeout": timeout}, timeout)
        exit_code: int | None = answer["exit_code"]
        stdout, stderr = (base64.b64decode(answer[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        if exit_code is None:
            raise LabError(f"guest {self.name}: not done after {timeout:.0f} s: {shown}", output=stdout + stderr)
        if check and exit_code != 0:
            raise LabError(f"guest {self.name}: exit code {exit_code}: {shown}", output=stdout + stderr)
        return Completed(exit_code, stdout, stderr)

    def read(self, path: str) -> str:
        """Return the text of a file of the guest's root file system; "" if it is not there. Works when it is off.

        Not for files below `/var/lib/docker`, `/var/lib/fastflow`, `/run` and `/tmp`, which only the guest sees.
        """
        return read_log(self._outside(path))

    def write(self, path: str, text: str) -> None:
        """Write a file of the guest's root file system while the guest is off, for what it reads at its next boot."""
        if self.is_on():
            raise LabError(f"guest {self.name} is on: it would not see a file that changes under it; use run()")
        target = self._outside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def console(self) -> str:
        """Return all that the kernel and the first process have printed, over all boots."""
        return read_log(self._console)

    def power_cut(self) -> None:
        """Pull the plug: what the guest had not yet written to its disks is lost. Nothing in it can react."""
        if self._kernel is not None:
            self._kernel.kill()

    def power_off(self) -> None:
        """Shut down in order: SIGTERM to the agent, stop of the Docker engine, disks synced, power off."""
        if self._kernel is None or not self._kernel.is_alive():
            return
        self.run(self._init.power_off)
        try:
            self._kernel.wait(POWER_OFF_TIMEOUT)
        except LabError:
            raise self._error(f"did not shut down within {POWER_OFF_TIMEOUT:.0f} s") from None

    def partition(self) -> None:
        """Cut the guest off the control plane: packets vanish both ways. `run` still works."""
        self._network.partition(self.link)

    def heal(self) -> None:
        """End a partition."""
        self._network.heal(self.link)

    def _kernel_command(self) -> list[str]:
        link = self.link
        return [
            "linux.uml",
            f"mem={MEMORY}",
            f"umid={self.name}",
            f"uml_dir={self._folder}/",
            *("root=/dev/root", "rootfstype=hostfs", f"rootflags={self._root}", "rw", *self._init.kernel_words),
            f"ubdb={self._folder / 'docker.cow'},{self._image.docker_data}",
            f"ubdc={self._folder / 'data.ext4'}",
            *(
                f"{device}:transport=tap,ifname={tap},depth=128,gro=1,mac={link.hardware_address(tap)}"
                for device, tap in (("vec0", link.lab_tap), ("vec1", link.manage_tap))
            ),
            *("con=null", "con0=fd:0,fd:1"),
        ]

    @property
    def _root(self) -> Path:
        """The guest's root file system, as processes of the lab's scope see it."""
        return self._folder / "root"

    def _outside(self, path: str) -> Path:
        return self._scope.seen_from_outside(self._root) / path.lstrip("/")

    def _lay_root(self) -> None:
        upper, work = self._folder / "upper", self._folder / "work"
        for folder in (self._root, upper, work):
            folder.mkdir(parents=True)
        options = f"lowerdir={':'.join(map(str, self._image.layers))},upperdir={upper},workdir={work}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(self._root)]
        self._scope.run(mount, timeout=COMMAND_TIMEOUT)
        shutil.copytree(INSIDE, self._outside("/lab"), ignore=shutil.ignore_patterns("__pycache__"))
        self.write("/etc/machine-id", f"{os.urandom(16).hex()}\n")
        settings = {
            "GUEST_NAME": self.name,
            "LAB_ADDRESS": self.link.lab_address,
            "MANAGE_ADDRESS": self.link.manage_address,
            "COMMAND_PORT": str(COMMAND_PORT),
            "DATA_FOLDER": self._init.data_folder,
        }
        self.write("/lab/settings", shell_assignments(settings))
        self._init.lay(self._outside("/"))

    def _make_data_disk(self) -> None:
        disk = self._folder / "data.ext4"
        command = ["mkfs.ext4", "-q", "-F", str(disk), DATA_DISK]
        self._scope.run(command, timeout=COMMAND_TIMEOUT, env=PLAIN_ENVIRONMENT)

    def _begin_anew(self, stuck: LabError) -> None:
        """Power the guest off and on, once and before it was ever up; else raise `stuck`.

        One first boot in some hundred stands still for good in these kernels. Of a host that has been up, and after
        what a test did to it, a boot that does not come is a finding.
        """
        if self._was_up or self.false_start:
            raise stuck
        self.false_start = str(stuck)
        self.power_cut()
        self.power_on()

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except OSError:
            return False
        return True

    def _request(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if not self.is_on():
            raise self._error("is off")
        deadline = time.monotonic() + timeout + ANSWER_MARGIN
        try:
            with self._reach(deadline) as connection:
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = self._receive(connection, deadline)
        except OSError as error:
            raise self._error(f"does not execute commands: {error}") from error
        return dict(json.loads(answer))

    def _reach(self, deadline: float) -> socket.socket:
        """Connect, however busy the guest's one processor is with the rest of its boot."""
        while True:
            try:
                return self._connect()
            except TimeoutError:
                if time.monotonic() > deadline or not self.is_on():
                    raise

    def _receive(self, connection: socket.socket, deadline: float) -> bytes:
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                chunk = connection.recv(1 << 16)
            except TimeoutError:
                # A guest without power closes no connection.
                if not self.is_on():
                    raise self._error("stopped while it executed a command") from None
                if time.monotonic() > deadline:
                    raise self._error("does not report the end of a command") from None
                continue
            if not chunk:
                raise self._error("did not answer a command")
            received += chunk
        return bytes(received)

    def _connect(self) -> socket.socket:
        return self._scope.connect((self.link.manage_address, COMMAND_PORT), CONNECT_TIMEOUT)

    def _error(self, what: str) -> LabError:
        return LabError(f"guest {self.name} {what}; its console:", output=self.console())


def shell_assignments(values: Mapping[str, str]) -> str:
    """Return lines NAME='value' that any POSIX shell reads back exactly."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
