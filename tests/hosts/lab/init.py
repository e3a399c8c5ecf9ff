"""The first process of a guest, and what it starts: a script that is quick, or systemd as on most real hosts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .image import REPOSITORY

INSIDE = Path(__file__).with_name("inside")
"""What runs inside guests, in their folder /lab."""


@dataclass(frozen=True)
class Init:
    """What kind of host a guest is."""

    kernel_words: tuple[str, ...]
    data_folder: str
    """Where the disk for the agent's data is mounted."""

    agent_settings: str
    """File with the agent's settings, as shell assignments."""

    power_off: str
    """Shell command that begins an orderly shutdown; like all below it returns at once, or when it is done."""

    start_agent: str
    end_agent: str
    """Has `{signal}`, and returns when the agent is gone for good."""

    agent_lives: str
    """Exits 0 while it does."""

    agent_died: str
    """Exits 0 when the agent was started and has ended, though nobody ended it."""

    systemd: bool = False

    def lay(self, root: Path) -> None:
        """Write into a guest's root what it starts, beyond its folder /lab."""
        if not self.systemd:
            return
        inside, units = INSIDE / "systemd", root / "etc/systemd/system"
        (root / "etc/docker").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside / "daemon.json", root / "etc/docker/daemon.json")
        (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
        delivered = REPOSITORY / "deploy/systemd"
        for unit in ("run-fastflow-env.mount", "fastflow.slice", "fastflow-confirm-logs.service"):
            shutil.copyfile(delivered / unit, units / unit)
        shutil.copytree(delivered / "fastflow-.slice.d", units / "fastflow-.slice.d")
        for unit in (*inside.glob("*.service"), delivered / "fastflow-agent.service"):
            shutil.copyfile(unit, units / unit.name)
            (units / "multi-user.target.wants" / unit.name).symlink_to(f"../{unit.name}")
        (units / "fastflow-agent.service.d").mkdir()
        shutil.copyfile(inside / "agent-log.conf", units / "fastflow-agent.service.d/log.conf")


PLAIN = Init(
    ("init=/lab/guest-init",),
    "/var/lib/fastflow",
    "/lab/agent.env",
    power_off="setsid --fork /lab/power-off",
    start_agent="setsid --fork /lab/start-agent </dev/null >/dev/console 2>&1",
    end_agent="""
        pid=$(cat /run/fastflow-agent.pid) && kill -{signal} "$pid" &&
        while [ -d "/proc/$pid" ]; do sleep 0.1; done && rm /run/fastflow-agent.pid
    """,
    agent_lives='[ -d "/proc/$(cat /run/fastflow-agent.pid)" ]',
    agent_died='pid=$(cat /run/fastflow-agent.pid 2>/dev/null) && [ ! -d "/proc/$pid" ]',
)
"""A script: Docker's engine with its cgroupfs driver and the agent, up in half the time."""

SYSTEMD = Init(
    # Nobody logs in on the console, whose file is no terminal.
    ("init=/lib/systemd/systemd", "systemd.unified_cgroup_hierarchy=1", "systemd.mask=getty@tty1.service"),
    "/var/lib/fastflow-agent",
    "/etc/fastflow/agent.env",
    power_off="systemctl poweroff --no-block",
    start_agent="systemctl start fastflow-agent",
    # The unit would start the agent anew; the stop keeps it from that, and waits.
    end_agent="systemctl kill --kill-who=main --signal={signal} fastflow-agent && systemctl stop fastflow-agent",
    agent_lives="systemctl is-active --quiet fastflow-agent",
    # The unit restarts what ends. A start by hand begins to count anew.
    agent_died='[ "$(systemctl show --property=NRestarts --value fastflow-agent)" -gt 0 ]',
    systemd=True,
)
"""systemd: Docker's engine with its systemd cgroup driver, and the agent as the unit that is delivered."""
