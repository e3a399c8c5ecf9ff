"""What the engine is told to create, as plain data in the words of its API (v1.41). Pure.

Nothing in it names a run or holds a value of its environment: `docker inspect` shows all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import Egress, PreparerSpec, PreparerStep, RuntimeFault, SlotSpec
from fastflow_agent.runtime.docker_image import RunnerImage
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.indexes import Indexes

LABEL_CLUSTER = "org.fastflow.cluster"
LABEL_AGENT = "org.fastflow.agent"
LABEL_SLOT = "org.fastflow.slot"
LABEL_PREPARER = "org.fastflow.preparer"

CPU_PERIOD_USEC = 100_000
"""The kernel's default: long enough that a small quota is not all switching, short enough to answer within it."""

CA_BUNDLE = "/fastflow/ca.pem"
"""Where the certificate bundle is mounted."""

UV_CACHE = "/uvcache"


@dataclass(frozen=True)
class Folders:
    """Host paths mounted into every container of ours."""

    template: Path
    code: Path
    log: Path
    out: Path
    tmp: Path
    env: Path


def container_name(slot: SlotId) -> str:
    """Name of a slot's container."""
    return f"ff-{slot}"


def preparer_name(agent_id: str, name: str) -> str:
    """Name of a preparer's container, and of its folders."""
    return f"ff-prepare-{agent_id[-8:]}-{name}"


def preparers_label(agent_id: str) -> list[str]:
    """Label filters that find the preparers of one agent."""
    return [f"{LABEL_AGENT}={agent_id}", LABEL_PREPARER]


def slot_container(
    spec: SlotSpec, options: DockerOptions, image: RunnerImage, template: Path, cgroup_parent: str | None
) -> dict[str, Any]:
    """The container of a slot. Raises RuntimeFault for a Python the image has not, and for paths no mount can take."""
    python = image.interpreters.path(spec.python_version)
    paths = spec.paths
    folders = Folders(template, spec.code, paths.log, paths.out, paths.tmp, paths.env)
    config = _container(
        options,
        image,
        command=["/fastflow/start", python, *(["--offline"] if spec.offline else [])],
        labels={LABEL_CLUSTER: spec.cluster, LABEL_AGENT: options.agent_id, LABEL_SLOT: spec.slot},
        mounts=[*_mounts(folders, options.egress), _overlay(spec)],
    )
    quota = spec.limits.cpu_hard_milli_cores * CPU_PERIOD_USEC // 1000
    config["HostConfig"] |= _memory(spec.limits.memory_hard_bytes)
    # Never NanoCpus: the engine refuses to update it beside a quota.
    config["HostConfig"] |= {"CpuPeriod": CPU_PERIOD_USEC, "CpuQuota": quota}
    if cgroup_parent:
        config["HostConfig"]["CgroupParent"] = cgroup_parent
    return config


def preparer_container(
    spec: PreparerSpec, options: DockerOptions, image: RunnerImage, folders: Folders, cgroup_parent: str | None
) -> dict[str, Any]:
    """The container of a preparer: as a slot's, but its cache is written through, and it gives way to runs.

    `cgroup_parent` is where slots have their groups: elsewhere its weight would be none against theirs. Raises
    RuntimeFault likewise.
    """
    name, *words = preparer_program(spec.step)
    config = _container(
        options,
        image,
        command=[f"/fastflow/{name}", image.interpreters.path(spec.python_version), *words],
        labels={LABEL_AGENT: options.agent_id, LABEL_PREPARER: spec.name},
        mounts=[*_mounts(folders, options.egress), _bind(spec.cache, UV_CACHE)],
    )
    config["HostConfig"] |= _memory(options.preparer_memory_bytes)
    config["HostConfig"] |= {
        "CpuShares": options.preparer_cpu_shares,
        "OomScoreAdj": options.preparer_oom_score_adj,
    }
    if cgroup_parent:
        config["HostConfig"]["CgroupParent"] = cgroup_parent
    if spec.step is PreparerStep.INSTALL:
        config["HostConfig"]["NetworkMode"] = "none"
    return config


def preparer_program(step: PreparerStep) -> list[str]:
    """The wrapper script of a preparer's step, and the options for uv that follow the interpreter."""
    return {
        PreparerStep.FETCH: ["fetch"],
        PreparerStep.INSTALL: ["prepare", "--offline"],
        PreparerStep.BUILD: ["prepare"],
    }[step]


def egress_environment(egress: Egress, ca_bundle: str = CA_BUNDLE) -> dict[str, str]:
    """The variables by which programs find certificates, proxies and package indexes. Proxies may hold logins.

    Indexes have none: a preparer gets them on top, by `Indexes.environment_with_logins`. `ca_bundle` is where the
    program finds the bundle, if there is one.
    """
    values: dict[str, str] = {}
    if egress.ca_bundle:
        values |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ca_bundle)
    # Programs differ in which spelling they read: curl only the lower one for http.
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        if value := getattr(egress, name):
            values |= {name: value, name.upper(): value}
    return values | Indexes.of(egress).environment()


def _container(
    options: DockerOptions,
    image: RunnerImage,
    command: Sequence[str],
    labels: Mapping[str, str],
    mounts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    user = f"{options.container_uid}:{options.container_uid}"
    return {
        # By id: what was looked at is what runs, whatever the tag means by now.
        "Image": image.id,
        "Entrypoint": ["/bin/sh"],
        "Cmd": list(command),
        "User": user,
        "WorkingDir": "/fastflow/code",
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Init": True,
            "PidsLimit": options.pids_limit,
            "OomScoreAdj": options.oom_score_adj,
            # A core file would fill the slot's disk, or be piped to a program of the host.
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "NetworkMode": options.egress.network,
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Mounts": list(mounts),
        },
    }


def _memory(size: int) -> dict[str, int]:
    # The second is memory and swap together, so there is no swap to escape to. Both are updated together, or not.
    return {"Memory": size, "MemorySwap": size}


def _mounts(folders: Folders, egress: Egress) -> list[dict[str, Any]]:
    mounts = [
        _bind(folders.template, "/fastflow", read_only=True),
        _bind(folders.code, "/fastflow/code", read_only=True),
        _bind(folders.log, "/fastflow/log"),
        _bind(folders.out, "/fastflow/out"),
        _bind(folders.env, "/fastflow/env"),
        # On disk: a tmpfs would count as the program's memory, and Docker's is noexec.
        _bind(folders.tmp, "/tmp"),
    ]
    if egress.ca_bundle:
        mounts.append(_bind(egress.ca_bundle, CA_BUNDLE, read_only=True))
    return mounts


def _bind(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source.absolute()), "Target": target, "ReadOnly": read_only}


def _overlay(spec: SlotSpec) -> dict[str, Any]:
    """The uv cache as a volume without a name, which the engine mounts, and removes with the container."""
    layers = {
        "lowerdir": spec.cache.absolute(),
        "upperdir": spec.paths.upper.absolute(),
        "workdir": spec.paths.work.absolute(),
    }
    for path in layers.values():
        # Overlay's options know no way to write these that the engine passes on.
        if set(",:\\") & set(str(path)):
            raise RuntimeFault(f"{path} holds a comma, colon or backslash; choose a data folder without.")
    options = {
        "type": "overlay",
        "device": "overlay",
        "o": ",".join(f"{name}={path}" for name, path in layers.items()),
    }
    driver = {"Name": "local", "Options": options}
    volume = {"NoCopy": True, "Labels": {LABEL_SLOT: spec.slot}, "DriverConfig": driver}
    return {"Type": "volume", "Target": UV_CACHE, "VolumeOptions": volume}
