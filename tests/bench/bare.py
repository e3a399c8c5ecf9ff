"""The yardstick: the same container without Fast-Flow."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

UID = 1000
CPU_PERIOD_USEC = 100_000


@dataclass(frozen=True)
class Bare:
    """A pipeline folder run by hand: same image, command, limits and mounts as an agent gives it.

    `cache` is the uv cache generation to lay the overlay over; `folder` takes the container's own folders.
    """

    image: str
    code: Path
    cache: Path
    folder: Path
    cpus: float
    memory: int
    options: str = ""
    """Of `uv run`."""

    def docker_run(self, number: int) -> tuple[float, float, Path]:
        """Runs it once with the `docker run` command.

        Returns when it was begun (seconds since the epoch), how long it took, and its log.
        """
        paths = self._folders(number)
        name = f"fastflow-bench-{os.getpid()}-{number}"
        mounts = [
            f"--mount=type=bind,source={source},target={target}{',readonly' if read_only else ''}"
            for source, target, read_only in self._binds(paths)
        ]
        overlay = f"lowerdir={self.cache},upperdir={paths / 'upper'},workdir={paths / 'work'}"
        mounts.append(
            "--mount=type=volume,target=/uvcache,volume-nocopy,volume-driver=local,volume-opt=type=overlay,"
            f'volume-opt=device=overlay,"volume-opt=o={overlay}"'
        )
        command = [
            *("docker", "run", "--name", name, "--init", "--read-only", "--cap-drop=ALL", f"--user={UID}:{UID}"),
            *("--security-opt=no-new-privileges:true", "--pids-limit=4096", "--ulimit=core=0", "--log-driver=none"),
            *(f"--cpu-period={CPU_PERIOD_USEC}", f"--cpu-quota={int(self.cpus * CPU_PERIOD_USEC)}"),
            *(f"--memory={self.memory}", f"--memory-swap={self.memory}", "--workdir=/fastflow/code", *mounts),
            *(f"--env={name}={value}" for name, value in ENVIRONMENT.items()),
            *("--entrypoint=/bin/sh", self.image, "-c", self._script),
        ]
        begun = time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.time() - begun
        subprocess.run(["docker", "rm", "-v", name], check=True, stdout=subprocess.DEVNULL)
        return begun, seconds, paths / "log"

    def sdk_loop(self, count: int, at_once: int) -> float:
        """Runs it `count` times, `at_once` at a time, with the Docker SDK; returns runs per second."""
        client = docker.from_env(max_pool_size=at_once)
        folders = [self._folders(1000 + number) for number in range(count)]
        begun = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda paths: self._sdk_run(client, paths), folders))
        return count / (time.monotonic() - begun)

    def _sdk_run(self, client: Any, paths: Path) -> None:
        overlay = f"lowerdir={self.cache},upperdir={paths / 'upper'},workdir={paths / 'work'}"
        driver = docker.types.DriverConfig("local", {"type": "overlay", "device": "overlay", "o": overlay})
        mounts = [
            docker.types.Mount(target, str(source), type="bind", read_only=read_only)
            for source, target, read_only in self._binds(paths)
        ]
        container = client.containers.create(
            self.image,
            ["-c", self._script],
            entrypoint="/bin/sh",
            environment=ENVIRONMENT,
            user=f"{UID}:{UID}",
            working_dir="/fastflow/code",
            init=True,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=4096,
            cpu_period=CPU_PERIOD_USEC,
            cpu_quota=int(self.cpus * CPU_PERIOD_USEC),
            mem_limit=self.memory,
            memswap_limit=self.memory,
            log_config=docker.types.LogConfig(type="none"),
            mounts=[*mounts, docker.types.Mount("/uvcache", None, no_copy=True, driver_config=driver)],
        )
        container.start()
        result = container.wait()
        container.remove(v=True)
        assert result["StatusCode"] == 0, (paths / "log").read_text()

    @property
    def _script(self) -> str:
        return f"exec >>/fastflow/log 2>&1; exec /usr/local/bin/uv run --offline {self.options} main.py"

    def _binds(self, paths: Path) -> list[tuple[Path, str, bool]]:
        return [
            (paths / "template", "/fastflow", True),
            (self.code, "/fastflow/code", True),
            (paths / "log", "/fastflow/log", False),
            (paths / "out", "/fastflow/out", False),
            (paths / "env", "/fastflow/env", False),
            (paths / "tmp", "/tmp", False),
        ]

    def _folders(self, number: int) -> Path:
        paths = self.folder / str(number)
        for name in ("template/code", "template/out", "template/env", "out", "env", "tmp", "upper", "work"):
            (paths / name).mkdir(parents=True)
        (paths / "template" / "log").touch()
        (paths / "log").touch()
        for name in ("log", "out", "env", "tmp", "upper", "work"):
            os.chown(paths / name, UID, UID)
        return paths


ENVIRONMENT = {
    "HOME": "/tmp",
    "PYTHONUNBUFFERED": "1",
    "UV_NO_PROJECT": "1",
    "UV_NO_CONFIG": "1",
    "UV_PYTHON": "/usr/bin/python3",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_CACHE_DIR": "/uvcache",
    "UV_LINK_MODE": "symlink",
}
