"""The folders of a slot on the host, and the template every container sees as /fastflow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fastflow.deletion import delete_trees

from fastflow_agent.runtime.base import SlotPaths
from fastflow_agent.runtime.release import Gate

WRAPPER = Path(__file__).parent / "wrapper"
"""The start wrapper's scripts, as this agent has them."""

MOUNT_FOLDERS = ("code", "out", "env")
MOUNT_FILES = ("log", "ca.pem")
"""What is mounted over the template; a mount needs something to be mounted on."""


def make_template(data_dir: Path) -> Path:
    """The folder that is /fastflow, made once for each version of the wrapper: `<data_dir>/template/<hash>`.

    A container keeps the one it was created with, so an upgraded agent changes nothing under it.
    """
    scripts = {script.name: script.read_bytes() for script in sorted(WRAPPER.iterdir()) if script.is_file()}
    digest = hashlib.sha256(repr((scripts, MOUNT_FOLDERS, MOUNT_FILES)).encode()).hexdigest()[:16]
    template = data_dir / "template" / digest
    if template.exists():
        return template
    draft = template.with_name(f"{digest}.draft")
    delete_trees(draft)
    draft.mkdir(parents=True)
    for name, content in scripts.items():
        (draft / name).write_bytes(content)
        (draft / name).chmod(0o555)
    for name in MOUNT_FOLDERS:
        (draft / name).mkdir(mode=0o755)
    for name in MOUNT_FILES:
        (draft / name).touch(mode=0o444)
    draft.chmod(0o755)
    draft.rename(template)
    return template


def make_slot_folders(paths: SlotPaths, owner: int) -> None:
    """Make what a slot's container is mounted on, owned by uid `owner` where it writes. Idempotent.

    Raises OSError, and HostFault where there is no folder on a tmpfs any more for its environment.
    """
    paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (paths.out, paths.tmp, paths.upper, paths.work):
        _make_owned(folder, owner)
    # Never truncated, and never opened through a link: the container may have it already.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(paths.log, flags, 0o600)
    try:
        os.fchown(descriptor, owner, owner)
    finally:
        os.close(descriptor)
    Gate(paths, owner).make()


def _make_owned(folder: Path, owner: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    # Also one that was there: whoever made it may have died before it came to this.
    os.chown(folder, owner, owner, follow_symlinks=False)
