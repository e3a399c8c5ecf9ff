"""What is left on this machine after a chaos run: containers, volumes, control groups, mounts, processes, files."""

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

LABEL_AGENT = "org.fastflow.agent"
LABEL_SLOT = "org.fastflow.slot"
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Host:
    """Everything found: containers of the agents, labelled volumes and slots' control groups of the whole machine by
    slot, mounts below the folder, processes that know the ledger, and paths in folders that should be empty."""

    containers: list[str]
    volumes: dict[str, str]
    cgroups: dict[str, str]
    mounts: list[str]
    processes: list[str]
    files: list[str]

    @classmethod
    def look(cls, folder: Path, recorder: str, agent_folders: Iterable[Path], environments: Iterable[Path]) -> "Host":
        """Looks now. `folder` is where all of the run's files are, `recorder` the address of its ledger."""
        emptied = [path for agent in agent_folders for path in (agent / "slots", agent / "preparers")]
        ids = [agent.joinpath("agent-id").read_text().strip() for agent in agent_folders]
        return cls(
            containers=[line for agent_id in ids for line in _containers(agent_id)],
            volumes=_volumes(),
            cgroups=control_groups(CGROUPS),
            mounts=[line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line],
            processes=_processes(f"LEDGER_ADDRESS={recorder}".encode()),
            files=[str(path) for parent in (*emptied, *environments) if parent.is_dir() for path in parent.iterdir()],
        )

    @classmethod
    def from_json(cls, text: str) -> "Host":
        """What `to_json` gave."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """As it is kept with the evidence."""
        return json.dumps(asdict(self), indent=1)


def control_groups(base: Path) -> dict[str, str]:
    """The control groups of slots by slot, at any depth: there are two versions of groups and two drivers of them."""
    found: dict[str, str] = {}
    for folder, names, _ in os.walk(base):
        parent = Path(folder).name
        for name in names if parent in ("fastflow", "fastflow.slice") else []:
            found[name.removeprefix("fastflow-").removesuffix(".slice")] = f"{folder}/{name}"
    return found


def _containers(agent_id: str) -> list[str]:
    shown = "{{.Names}} {{.Status}}"
    return _docker("ps", "--all", "--filter", f"label={LABEL_AGENT}={agent_id}", "--format", shown)


def _volumes() -> dict[str, str]:
    shown = f'{{{{.Label "{LABEL_SLOT}"}}}} {{{{.Name}}}}'
    lines = _docker("volume", "ls", "--filter", f"label={LABEL_SLOT}", "--format", shown)
    return dict(line.split() for line in lines)


def _docker(*arguments: str) -> list[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def _processes(variable: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # A zombie has no environment any more.
            if variable in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{folder.name} {command}")
        except OSError:
            continue
    return found
