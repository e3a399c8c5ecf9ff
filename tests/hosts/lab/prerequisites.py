"""What the lab needs from Debian on the machine it runs on, installed where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError

APT_TIMEOUT = 600.0
"""Seconds for one apt-get call: Docker's engine is about 60 MB to download, from a slow mirror in minutes."""

PACKAGES_OF = {
    "linux.uml": ["user-mode-linux"],
    "debootstrap": ["debootstrap"],
    "dockerd": ["docker.io"],
    "ip": ["iproute2"],
    "mkfs.ext4": ["e2fsprogs"],
    "nsenter": ["util-linux"],
    "gcc": ["gcc", "libc6-dev"],
}
"""Programs that are called by name, and the Debian packages that each needs."""

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian has its programs; the PATH of a root shell may lack the `sbin` folders."""

PLAIN_ENVIRONMENT = {"PATH": PROGRAM_PATH, "LC_ALL": "C.UTF-8"}
"""Environment of programs that must not see this machine's own pip or Docker configuration."""

KERNEL_MODULES = Path("/usr/lib/uml/modules")


@dataclass(frozen=True)
class Mirror:
    """Where this machine's apt gets the packages of its own release."""

    address: str
    suite: str


def install_missing() -> None:
    """Install every package of which a program is missing. Raises LabError without root or when apt-get fails."""
    if os.geteuid() != 0:
        raise LabError("the host lab makes namespaces, mounts and taps: run it as root")
    absent = [program for program in PACKAGES_OF if not shutil.which(program, path=PROGRAM_PATH)]
    missing = [package for program in absent for package in PACKAGES_OF[program]]
    if missing:
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *missing)


def mirror() -> Mirror:
    """Return the mirror and suite that apt is configured for. Raises LabError when there is none for the release."""
    suite = _release_codename()
    shown = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    targets = _output("apt-get", "indextargets", "--format", shown, "Created-By: Packages")
    for target in targets.splitlines():
        codename, component, address = target.split(maxsplit=2)
        if (codename, component) == (suite, "main"):
            return Mirror(address, suite)
    raise LabError(f"apt has no source for '{suite} main' (is there a list? `apt-get update`)", output=targets)


def has_package(name: str) -> bool:
    """Tell whether apt knows a package of this name."""
    return subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode == 0


def kernel_version() -> str:
    """Return the version of the User Mode Linux kernel, which names its folder of modules too."""
    return _output("linux.uml", "--version").strip()


def _release_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise LabError("/etc/os-release names no VERSION_CODENAME: the host lab needs a Debian machine")


def _apt_get(*arguments: str) -> None:
    _output("apt-get", *arguments)


def _output(*argv: str) -> str:
    # Run level 1 keeps the package from starting Docker's daemon, which is not the lab's to start (invoke-rc.d(8)).
    environment = {**os.environ, "PATH": PROGRAM_PATH, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=APT_TIMEOUT, check=False)
    if done.returncode != 0:
        raise LabError(f"exit code {done.returncode}: {' '.join(argv)}", output=done.stdout + done.stderr)
    return done.stdout
