"""Who this agent is: its data folder, its id, the cluster it belongs to, and the host it stands on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from fastflow.durable import replace_file
from fastflow.ids import new_id

AGENT_ID_FILE = "agent-id"
CLUSTER_FILE = "cluster.json"
LOCK_FILE = "lock"


class DataFolderInUse(Exception):
    """Another agent works in this data folder; the message names it."""


class IdentityGiven(Exception):
    """The control plane knows this agent under another id, from before its data folder was lost."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"this agent is known as {agent_id}")
        self.agent_id = agent_id


class DataFolderLock:
    """Exclusive hold of a data folder, given back when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock; raises DataFolderInUse."""
        # Runs own folders in it: nobody else of this host may reach what one of them leaves there with its user id.
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = data_dir / LOCK_FILE
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise DataFolderInUse(
                f"another agent (process {holder}) works in {data_dir}; stop it, or give this one another data_dir"
            ) from None
        # For whoever finds it held, and no more: a full disk must not keep an agent from its runs, whose output it
        # takes from that disk.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def stands(self) -> bool:
        """Whether the folder is still the one that was taken, and not lost or replaced; blocks."""
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a disk that fails is another trouble
        held = os.fstat(self._descriptor)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class Membership:
    """The cluster the agent last belonged to ("" = none yet), and the highest revision of desired state it saw."""

    cluster_id: str = ""
    last_revision: int = 0


@dataclass(frozen=True)
class Identity:
    """Ids of agent, process and host; fixed for the life of the process."""

    agent_id: str
    instance_id: str
    boot_id: str
    machine_id: str
    host_name: str
    kernel: str

    @classmethod
    def load(cls, data_dir: Path) -> Identity:
        """Read the agent's id, or make one at the first start; OSError if the folder can not be used."""
        return cls(
            agent_id=_agent_id(data_dir / AGENT_ID_FILE),
            instance_id=new_id(),
            boot_id=load_boot_id(),
            machine_id=_read(Path("/etc/machine-id")),
            host_name=socket.gethostname(),
            kernel=platform.release(),
        )


def load_boot_id() -> str:
    """Which boot of the host this is; "" where that can not be told."""
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def save_agent_id(data_dir: Path, agent_id: str) -> None:
    """Make `agent_id` the agent's id from its next start on; blocks. Raises OSError."""
    replace_file(data_dir / AGENT_ID_FILE, agent_id + "\n")


def load_membership(data_dir: Path) -> Membership:
    """The membership as `save_membership` left it; an unreadable file is no membership."""
    try:
        values = json.loads((data_dir / CLUSTER_FILE).read_text())
        return Membership(str(values["cluster_id"]), int(values["last_revision"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Membership()


def save_membership(data_dir: Path, membership: Membership) -> None:
    """Keep the membership on disk; blocks. OSError if the disk refuses: then the old one stands."""
    text = json.dumps({"cluster_id": membership.cluster_id, "last_revision": membership.last_revision})
    replace_file(data_dir / CLUSTER_FILE, text)


def _agent_id(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        kept = path.read_text().strip()
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", kept):
            return kept
        raise ValueError(f"{path} does not hold an agent id; restore it, or delete it to become a new agent")
    # Random from its first digit on, unlike run ids: the first digits of those are a clock.
    fresh = str(uuid.uuid4())
    # What is left of another agent: no cluster has told the new one anything yet.
    (path.parent / CLUSTER_FILE).unlink(missing_ok=True)
    save_agent_id(path.parent, fresh)
    return fresh


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
