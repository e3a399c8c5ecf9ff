"""What runs left behind on a worker host: nothing may be there once all of them are forgotten."""

import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from tests.cluster.program import Program

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def left_behind(agent: Program, slots: Collection[str]) -> Iterator[str]:
    """Names what is left of an agent's work, in words for people; `slots` are all it ever used.

    Caches may stay (bundles, generations), and what belongs to the agent itself. What is quick to see comes first.
    """
    data, environments = (Path(agent.settings[name]) for name in ("FASTFLOW_DATA_DIR", "FASTFLOW_ENV_DIR"))
    cache = data / ("uv" if agent.settings["FASTFLOW_RUNTIME"] == "docker" else "uv-process")
    for folder in (data / "slots", data / "preparers", cache / "staging", environments):
        with suppress(FileNotFoundError):
            yield from (f"path {path}" for path in folder.iterdir())
    yield from (f"path {path}" for path in (data / "bundles").glob(".*"))
    yield from _generations_without_a_name(cache)
    for parent, names, _ in os.walk(CONTROL_GROUPS):
        yield from (f"control group {parent}/{name}" for name in names if any(slot in name for slot in slots))
    yield from (f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(data) in line)
    yield from _processes(agent, data)
    if agent.settings["FASTFLOW_RUNTIME"] == "docker":
        yield from _of_the_engine((data / "agent-id").read_text().strip(), slots)


def _generations_without_a_name(cache: Path) -> Iterator[str]:
    with suppress(FileNotFoundError):
        index = (cache / "index.json").read_text()
        for path in (cache / "generations").iterdir():
            if f'"number": {path.name},' not in index:
                yield f"generation {path}"


def _processes(agent: Program, data: Path) -> Iterator[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(data) in command or str(data) in str((folder / "cwd").readlink()):
                yield f"process {folder.name} {command}"


def _of_the_engine(agent_id: str, slots: Collection[str]) -> Iterator[str]:
    label = f"label=org.fastflow.agent={agent_id}"
    yield from (f"container {name}" for name in _docker("ps", "-a", "--filter", label, "--format", "{{.Names}}"))
    volumes = _docker(
        "volume", "ls", "--filter", "label=org.fastflow.slot", "--format", '{{.Label "org.fastflow.slot"}}'
    )
    yield from (f"volume of slot {slot}" for slot in volumes if slot in slots)


def _docker(*arguments: str) -> list[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.split()
