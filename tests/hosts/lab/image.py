"""What a guest boots from: its root file system, in overlay layers, and Docker's data with the runner image in it.

From bottom to top: Debian with Docker's engine (built once), the agent's dependencies (once per constraints), the
project itself (once per state of its sources). A guest lays a writable folder of its own over them. All of it is
cached, so a change of code costs one wheel.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import prerequisites
from .cache import Cache, digest, hash_of_files, remove_tree
from .errors import LabError, read_log
from .prerequisites import PLAIN_ENVIRONMENT
from .scope import POLL_INTERVAL, Scope

REPOSITORY = Path(__file__).parents[3]

REGISTERS = Path(__file__).parent / "registers.c"
COMPILE = ("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror")

BUILD_TIMEOUT = 900.0
"""Seconds for one step of a build, all bounded by the network: about one minute where the mirror is near."""

ENGINE_TIMEOUT = 60.0
"""Seconds for an idle Docker engine to start, answer or stop: about two on a quiet machine."""

DOCKER_DATA_BYTES = 8 << 30
"""Size of a guest's Docker disk. The file is sparse: it takes what is written to it."""

PACKAGES = (
    "ca-certificates",
    "crun",
    "dbus",
    "docker.io",
    "iproute2",
    "kmod",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
)
"""Debian packages of a guest, beyond the smallest system."""

PACKAGES_WHERE_THERE_ARE = ("docker-cli",)
"""More of them that only newer releases have: there the `docker` command is not in docker.io."""

VENV = "/opt/fastflow"
"""Where a guest has the project installed."""

SOURCES = ("agent", "cli", "clients", "controlplane", "proto", "pyproject.toml", "README.md", "hatch_build.py")
"""All that goes into the project's wheel."""

BUILD_ROOT = f"""
set -eu
root=$1 suite=$2 mirror=$3 kernel=$4 packages=$5
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror"
mkdir -p "$root/lib/modules"
cp -a {prerequisites.KERNEL_MODULES}/"$kernel" "$root/lib/modules/"
chroot "$root" python3 -m venv {VENV}
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/*
"""

INSTALL_WHEELS = f"""
set -eu
layer=$1 lowers=$2 wheels=$3
shift 3
mkdir "$layer/upper" "$layer/work" "$layer/merged"
mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$layer/upper,workdir=$layer/work" "$layer/merged"
mount --bind "$wheels" "$layer/merged/mnt"
chroot "$layer/merged" {VENV}/bin/pip install --quiet --no-index --find-links /mnt "$@"
umount "$layer/merged/mnt" "$layer/merged"
rm -rf "$layer/work" "$layer/merged"
"""

MAKE_DOCKER_DISK = """
set -eu
mkfs.ext4 -q -F "$1" "$2"
mkdir "$3"
mount -o loop "$1" "$3"
mount -t tmpfs tmpfs /run
"""


@dataclass(frozen=True)
class HostImage:
    """What guests boot from. Nothing of it is ever written to."""

    layers: tuple[Path, ...]
    """Lower folders for an overlay mount, topmost first."""

    docker_data: Path
    """An ext4 disk image with the runner image in a Docker data folder."""

    runner_image: str
    registers: Path
    """A library for the guest's kernel; see `registers.c`."""


def build(cache: Cache, runner_image: str) -> HostImage:
    """Return the image of a guest whose Docker engine has `runner_image`, building what the cache lacks.

    Installs missing Debian packages first. Raises LabError naming the step that failed, with the end of its output.
    """
    prerequisites.install_missing()
    root = _root(cache)
    dependencies = _dependencies(cache, root)
    project = _project(cache, (dependencies, root))
    layers, docker_data = (project, dependencies, root), _docker_data(cache, runner_image)
    return HostImage(layers, docker_data, runner_image, _registers(cache))


def _root(cache: Cache) -> Path:
    mirror, kernel = prerequisites.mirror(), prerequisites.kernel_version()
    packages = ",".join([*PACKAGES, *filter(prerequisites.has_package, PACKAGES_WHERE_THERE_ARE)])

    def bootstrap(folder: Path) -> None:
        # With this machine's environment, which may name a proxy on the way to the mirror.
        arguments = [str(folder / "root"), mirror.suite, mirror.address, kernel, packages]
        _run_script(BUILD_ROOT, *arguments, environment={**os.environ, **PLAIN_ENVIRONMENT})

    return cache.entry("root", digest(BUILD_ROOT, mirror.suite, kernel, packages), bootstrap) / "root"


def _dependencies(cache: Cache, root: Path) -> Path:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["agent"]]
    constraints = REPOSITORY / "constraints.txt"

    def install(layer: Path) -> None:
        _require_same_python(root)
        wheels = layer / "wheels"
        _make_wheels(wheels, "--constraint", str(constraints), *requirements)
        _install_wheels(layer, (root,), wheels, [str(Path("/mnt") / wheel.name) for wheel in wheels.iterdir()])
        remove_tree(wheels)

    key = digest(str(root), INSTALL_WHEELS, constraints.read_text(), *requirements)
    return cache.entry("dependencies", key, install) / "upper"


def _project(cache: Cache, lowers: tuple[Path, ...]) -> Path:
    def install(layer: Path) -> None:
        # Built from a copy: the build hook writes generated stubs into the tree it builds from.
        sources, wheels = layer / "sources", layer / "wheels"
        for path in _source_files():
            target = sources / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # Without isolation: the development environment this runs in has the build's requirements already.
        _make_wheels(wheels, "--no-deps", "--no-build-isolation", "--check-build-dependencies", str(sources))
        _install_wheels(layer, lowers, wheels, ["--no-deps", "fast-flow"])
        remove_tree(sources)
        remove_tree(wheels)

    key = digest(str(lowers), INSTALL_WHEELS, hash_of_files(REPOSITORY, _source_files()))
    return cache.entry("project", key, install) / "upper"


def _registers(cache: Cache) -> Path:
    def compile_library(folder: Path) -> None:
        _run_script('"$@"', *COMPILE, "-o", str(folder / "registers.so"), str(REGISTERS), environment=PLAIN_ENVIRONMENT)

    return cache.entry("registers", digest(*COMPILE, REGISTERS.read_text()), compile_library) / "registers.so"


def _docker_data(cache: Cache, runner_image: str) -> Path:
    image_id = _docker("image", "inspect", "--format", "{{.Id}}", runner_image).strip()

    def load(folder: Path) -> None:
        archive, disk, data = folder / "image.tar", folder / "docker.ext4", folder / "data"
        _docker("image", "save", "--output", str(archive), runner_image)
        with Scope(own_network=True) as scope:
            arguments = [str(disk), f"{DOCKER_DATA_BYTES >> 20}M", str(data)]
            script = ["sh", "-c", MAKE_DOCKER_DISK, "sh", *arguments]
            scope.run(script, timeout=ENGINE_TIMEOUT, env=PLAIN_ENVIRONMENT)
            _load_with_private_engine(scope, archive, data, folder / "dockerd.log")
            scope.run(["umount", str(data)], timeout=ENGINE_TIMEOUT)
        archive.unlink()

    # By name too: the disk holds the tag under which guests start it.
    return cache.entry("docker", digest(image_id, runner_image, MAKE_DOCKER_DISK), load) / "docker.ext4"


def _load_with_private_engine(scope: Scope, archive: Path, data: Path, log: Path) -> None:
    """Load an image with an engine of the scope's own: /run is private there, and so are the engine's default paths."""
    client = ["docker", "--host", "unix:///run/docker.sock"]
    engine = scope.start(
        ["dockerd", f"--data-root={data}", "--storage-driver=overlay2", "--bridge=none", "--iptables=false"],
        log=log,
        env=PLAIN_ENVIRONMENT,
    )
    deadline = time.monotonic() + ENGINE_TIMEOUT
    while scope.run([*client, "version"], timeout=ENGINE_TIMEOUT, env=PLAIN_ENVIRONMENT, check=False).exit_code != 0:
        if not engine.is_alive() or time.monotonic() > deadline:
            raise LabError("the lab's own Docker engine did not come up", output=read_log(log))
        time.sleep(POLL_INTERVAL)
    scope.run([*client, "load", "--input", str(archive)], timeout=BUILD_TIMEOUT, env=PLAIN_ENVIRONMENT)
    engine.signal(signal.SIGTERM)
    engine.wait(ENGINE_TIMEOUT)


def _source_files() -> Iterator[Path]:
    for name in SOURCES:
        path = REPOSITORY / name
        for file in [path] if path.is_file() else path.rglob("*"):
            # Stubs are generated while the wheel is built.
            if file.is_file() and "__pycache__" not in file.parts and "_pb2" not in file.name:
                yield file


def _make_wheels(folder: Path, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    with Scope(own_network=False) as scope:
        scope.run([*pip, "--wheel-dir", str(folder), *arguments], timeout=BUILD_TIMEOUT, cwd=REPOSITORY)


def _install_wheels(layer: Path, lowers: tuple[Path, ...], wheels: Path, arguments: list[str]) -> None:
    _run_script(INSTALL_WHEELS, str(layer), ":".join(map(str, lowers)), str(wheels), *arguments)


def _run_script(script: str, *arguments: str, environment: Mapping[str, str] = PLAIN_ENVIRONMENT) -> None:
    with Scope(own_network=False) as scope:
        scope.run(["sh", "-c", script, "sh", *arguments], timeout=BUILD_TIMEOUT, env=environment)


def _require_same_python(root: Path) -> None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (root / "usr/bin" / name).exists():
        raise LabError(f"guests have Debian's own Python and this is {name}: run the host lab with /usr/bin/python3")


def _docker(*arguments: str) -> str:
    """Run a command of the machine's own Docker client, with its own configuration."""
    argv = ["docker", *arguments]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise LabError(f"exit code {done.returncode}: {shlex.join(argv)}", output=done.stdout + done.stderr)
    return done.stdout
