"""One slot of the process runtime: what stands in its `process` folder, and the processes it names. All of it blocks.

What is a mount in a container is a link here, so that the start wrapper is the same. `command` says how the slot is
to be started, `identity` and `exit` are the shim's.
"""

from __future__ import annotations

import json
import os
import signal as signals
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fastflow.deletion import delete_trees

from fastflow_agent.runtime import folders
from fastflow_agent.runtime.base import WRAPPER_FAILED, HostFault, Observation, SlotPaths, SlotState
from fastflow_agent.runtime.release import Gate

SHIM_START_SECONDS = 20.0
"""The shim starts within milliseconds; a host on which it takes this long is out of memory or processes."""

INHERITED = (
    *("PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""What a program gets of the agent's environment: how this host reaches the world, and nothing else."""

_PARENT, _START = 1, 19
"""Fields 4 and 22 of /proc/PID/stat, counted behind the name of the program (proc(5))."""

BOX = "process"
"""Name of the folder, under `SlotPaths.root`."""


@dataclass(frozen=True)
class Box:
    """One slot's processes. Kept as files, so that another agent process finds them again."""

    paths: SlotPaths

    @property
    def folder(self) -> Path:
        """What /fastflow is in a container."""
        return self.paths.root / BOX

    @property
    def gate(self) -> Gate:
        """Where the slot is released."""
        return Gate(self.paths, os.geteuid())

    def make(self, code: Path, cache: Path, uv: str, command: Sequence[str]) -> None:
        """Lay out the folder; `command` is a wrapper script's name and arguments. `command` is written last."""
        delete_trees(self.folder)
        self.folder.mkdir(mode=0o700, parents=True)
        mounts = {"code": code, "log": self.paths.log, "out": self.paths.out, "env": self.paths.env}
        scripts = {script.name: script for script in folders.WRAPPER.iterdir()}
        for name, target in (mounts | scripts).items():
            (self.folder / name).symlink_to(target.absolute())
        tmp = str(self.paths.tmp.absolute())
        program = {
            "arguments": ["/bin/sh", str(self.folder.absolute() / command[0]), *command[1:]],
            # Not the agent's own environment, which may hold its token.
            "environment": {
                **{name: value for name in INHERITED if (value := os.environ.get(name))},
                "TMPDIR": tmp,
                "FASTFLOW_HOME": tmp,
                "FASTFLOW_CACHE": str(cache.absolute()),
                "FASTFLOW_UV": uv,
            },
        }
        draft = self.folder / "command.draft"
        draft.write_text(json.dumps(program))
        draft.rename(self.folder / "command")

    def exists(self) -> bool:
        """Whether the slot was made."""
        return (self.folder / "command").exists()

    def start(self, outlives: float | None = None) -> None:
        """Start the slot's program; no error if it was. Raises HostFault: then it never begins.

        `outlives` is how long it may go on after the end of this process, in seconds; None = to its own end.
        """
        try:
            program = json.loads((self.folder / "command").read_text())
            shim = Path(__file__).with_name("shim.py")
            attendant = [sys.executable, "-I", "-S", str(shim), str(self.folder.absolute())]
            done = subprocess.run(
                [*attendant, str(os.getpid()), "" if outlives is None else str(outlives), *program["arguments"]],
                env=program["environment"],
                cwd=self.paths.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=SHIM_START_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise HostFault(f"The slot's process could not be started: {error}.") from error
        if done.returncode != 0:
            why = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
            raise HostFault(f"The slot's process could not be started: {why}.")

    def was_started(self) -> bool:
        """Whether the program was started, whatever became of it."""
        return (self.folder / "identity").exists()

    def observe(self) -> Observation:
        """The slot's state now. ABSENT, too, if its processes are gone without a word, after a reboot say."""
        if not self.exists():
            return Observation(SlotState.ABSENT)
        if not self.was_started():
            return Observation(SlotState.CREATED)
        # In this order: the shim writes its last word before it ends.
        shim = self.open_shim()
        if shim is not None:
            os.close(shim)
        try:
            code = int((self.folder / "exit").read_text())
            finished = datetime.fromtimestamp((self.folder / "exit").stat().st_mtime, UTC)
        except FileNotFoundError:
            return Observation(SlotState.ABSENT if shim is None else SlotState.RUNNING)
        failed = code == WRAPPER_FAILED and self.gate.wrapper_failed()
        return Observation(SlotState.EXITED, exit_code=code, wrapper_failed=failed, finished_at=finished)

    def signal(self, signal: int) -> bool:
        """Signal the program, and thaw it; SIGKILL goes to all it started, as in a container. False if it had ended."""
        if signal == signals.SIGKILL:
            return self.signal_group(signal)
        found = self._open(1)
        if found is None:
            return False
        pid, descriptor = found
        try:
            sent = _send(descriptor, signal)
            _send_group(pid, descriptor, signals.SIGCONT)
        finally:
            os.close(descriptor)
        return sent

    def signal_group(self, signal: int) -> bool:
        """Signal the program and what it started; false if it had ended."""
        found = self._open(1)
        if found is None:
            return False
        pid, descriptor = found
        try:
            return _send_group(pid, descriptor, signal)
        finally:
            os.close(descriptor)

    def open_shim(self) -> int | None:
        """A pid descriptor of the shim, readable once it has ended; None if it has."""
        found = self._open(0)
        return found[1] if found else None

    def delete(self) -> None:
        """Delete the folder and the environment; the processes are to be gone. Raises OSError."""
        # First of all what makes it a slot, so that half a removal is finished by the next one.
        (self.folder / "command").unlink(missing_ok=True)
        delete_trees(self.folder, self.paths.env)

    def recover(self, shim: int, program: int) -> None:
        """Lay out again what is needed to signal and remove processes whose folder was lost, if they live still."""
        try:
            identity = " ".join(f"{pid}:{_stat(pid)[_START]}" for pid in (shim, program))
        except (FileNotFoundError, ProcessLookupError):
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "identity").write_text(identity)
        (self.folder / "command").write_text("{}")

    def _open(self, which: int) -> tuple[int, int] | None:
        """Pid and descriptor of the shim (0) or the program (1), if it lives and its pid went to no other process."""
        try:
            word = (self.folder / "identity").read_text().split()[which]
        except FileNotFoundError:
            return None
        pid, _, start = word.partition(":")
        try:
            descriptor = os.pidfd_open(int(pid))
        except ProcessLookupError:
            return None
        try:
            fields = _stat(int(pid))
        except OSError:
            fields = ["X"]
        if fields[0] in "ZX" or fields[_START] != start:
            os.close(descriptor)
            return None
        return int(pid), descriptor


def lost_processes(slots_dir: Path) -> dict[str, tuple[int, int]]:
    """Shim and program by slot name of processes that run for slots under `slots_dir` whose folder is gone.

    Their command line names the folder.
    """
    shims: dict[int, Path] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parents[int(entry.name)] = int(_stat(int(entry.name))[_PARENT])
        except OSError:
            continue  # it ended meanwhile
        folder = Path(os.fsdecode(words[4])) if len(words) > 4 and words[3].endswith(b"/shim.py") else None
        if folder and folder.name == BOX and folder.parent.parent == slots_dir and not folder.exists():
            shims[int(entry.name)] = folder
    return {
        shims[parent].parent.name: (parent, pid)
        for pid, parent in parents.items()
        if parent in shims and pid not in shims
    }


def _send(descriptor: int, signal: int) -> bool:
    """Signal one process; false if it had ended."""
    try:
        signals.pidfd_send_signal(descriptor, signal)
    except ProcessLookupError:
        return False
    return True


def _send_group(pid: int, descriptor: int, signal: int) -> bool:
    """Signal a process that leads a session, and its group; false if it had ended."""
    try:
        os.killpg(pid, signal)
    except ProcessLookupError:
        # In its first moment it has no group of its own yet.
        return _send(descriptor, signal)
    return True


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
