"""Every setting of the agent, once."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from fastflow.addresses import is_loopback
from fastflow.client import DEFAULT_SERVER
from fastflow.pipelines.sizes import parse_size
from fastflow.service.settings import SecretUrl, ServiceSettings
from pydantic import Field, SecretStr, field_validator, model_validator

from fastflow_agent.runtime.base import PREPARE_SECONDS, Egress
from fastflow_agent.runtime.indexes import Index

VERSION = version("fast-flow")


class AgentSettings(ServiceSettings):
    """Settings of `fastflow-agent run`."""

    controlplane: str = Field(DEFAULT_SERVER, description="Address of the control plane, host:port.")
    token: SecretStr | None = Field(
        None, description="Shared token of the cluster; required unless the control plane is on this host."
    )
    data_dir: Path = Field(
        Path(".fastflow/agent"),
        description="Folder for journals, logs not yet delivered, code and the uv cache; one agent per folder.",
    )
    env_dir: Path | None = Field(
        None,
        description="Folder in memory (tmpfs) through which secrets reach containers. "
        "Not set: /run/fastflow/env, or a folder under /dev/shm where /run is no tmpfs.",
    )
    agent_name: str = Field(
        default_factory=socket.gethostname, description="Name of this agent, unique in the cluster."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of this agent, shown and used by placement."
    )
    runtime: Literal["docker", "process"] = Field(
        "docker", description='What runs pipelines; "process" neither isolates nor limits them.'
    )
    docker_host: str = Field("unix:///var/run/docker.sock", description="Address of the Docker engine.")
    image: str = Field(f"fastflow/runner:{VERSION}", description="Runner image: Python, uv and the unprivileged user.")
    container_uid: int = Field(
        1000, ge=1, description="User and group id inside containers; the image has an account for it."
    )
    cpu_capacity: float | None = Field(
        None, gt=0, description="Cores that runs may reserve together. Not set: all of this host's."
    )
    memory_capacity: str | None = Field(
        None, description="Memory that runs may reserve together, such as 6g. Not set: all of this host's."
    )
    slots: int = Field(0, ge=0, description="Runs that may live here at once; 0 = as many as CPU and memory allow.")
    network: str = Field("bridge", description="Docker network of runs and preparers.")
    ca_bundle: Path | None = Field(
        None,
        description="File of certificate authorities on this host, mounted read-only into runs and preparers "
        "(SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE).",
    )
    http_proxy: SecretUrl = Field(SecretUrl(""), description="Proxy for http, in runs and preparers.")
    https_proxy: SecretUrl = Field(SecretUrl(""), description="Proxy for https, in runs and preparers.")
    no_proxy: str = Field("", description="Hosts reached without proxy, in runs and preparers.")
    index_url: SecretUrl = Field(
        SecretUrl(""),
        description="Package index for uv. Empty: uv's default. A login in it (https://user:password@host/simple) is "
        "for what fetches packages; no run gets to see it. But code of packages may where one of a set has to be built "
        "or a PEP 723 header asks for what a requirements file can not say, such as sources of its own: one that may "
        "only read is enough, and wheels are better.",
    )
    extra_index_urls: SecretUrl = Field(
        SecretUrl(""),
        description="More package indexes, separated by spaces. They are asked first: a package that one of them has "
        "is taken from it, whatever the others have.",
    )
    index_netrc: Path | None = Field(
        None,
        description="File in the format of netrc with logins for package indexes; read anew for each preparation.",
    )
    env_max_age: float = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="Seconds after which an environment that was prepared ahead is prepared again in the background, "
        "with what the index has then; runs keep the old one until that has succeeded. 0 = never.",
    )
    prepare_timeout: float = Field(
        PREPARE_SECONDS,
        gt=0,
        description="Seconds after which a preparation of packages is stopped, and what waits for it fails: longer "
        "than the largest download or build takes. One that takes more than ten minutes holds up no other meanwhile.",
    )
    spool_quota: str = Field(
        "4g",
        description="Output kept per run while the control plane can not take it; then the oldest is dropped, or the "
        "program paused (on_log_backlog of its pipeline).",
    )
    spool_total: str = Field(
        "20g",
        description="Output kept of all runs together; past it those that hold most give way as past spool_quota.",
    )
    bundle_cache_size: str = Field(
        "2g",
        description="Room for unpacked code; what was not used for the longest time goes first, never what a run uses.",
    )
    uv_cache_size: str = Field(
        "20g",
        description="Room for installed packages, files that environments share counted once. What was not used for "
        "the longest time goes first, never what a run uses.",
    )
    env_max_idle: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        description="Seconds after which an environment that no run used may be removed. 0 = never.",
    )
    disk_reserve: str = Field(
        "256m",
        description="Free space below which the data folder's disk counts as full: no new runs, and what runs can "
        "still end properly.",
    )
    start_patience: float = Field(
        20.0,
        ge=0,
        description="Seconds a run waits here for a container engine that does not answer, before it is placed "
        "elsewhere; longer than an engine takes to restart.",
    )
    probe_interval: float = Field(
        3.0,
        gt=0,
        description="Seconds between two looks at engine, image and disk; how soon a trouble, or its end, is told.",
    )
    log_poll_interval: float = Field(
        0.02, gt=0, description="Seconds between two looks at a run's output: the agent's share of a line's delay."
    )
    reconnect_initial: float = Field(
        0.5, gt=0, description="Seconds of back-off after the first lost connection to the control plane."
    )
    reconnect_maximum: float = Field(
        15.0,
        gt=0,
        description="Seconds of back-off that are never exceeded: how soon a returned control plane is found.",
    )

    @field_validator("controlplane")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{value!r} is no address; write host:port, such as {DEFAULT_SERVER}")
        return value

    @field_validator(
        "memory_capacity", "spool_quota", "spool_total", "bundle_cache_size", "uv_cache_size", "disk_reserve"
    )
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @field_validator("index_url", "extra_index_urls")
    @classmethod
    def _indexes(cls, value: SecretUrl) -> SecretUrl:
        for url in value.get_secret_value().split():
            Index.parse(url)
        return value

    @model_validator(mode="after")
    def _token_for_the_network(self) -> Self:
        if not self.token and not is_loopback(self.controlplane.rpartition(":")[0]):
            raise ValueError("a control plane on another host needs the cluster's shared token: set token")
        return self

    @property
    def token_value(self) -> str | None:
        """The token as it goes over the wire."""
        return self.token.get_secret_value() if self.token else None

    @property
    def egress(self) -> Egress:
        """How runs and preparers reach the world."""
        return Egress(
            network=self.network,
            ca_bundle=self.ca_bundle,
            http_proxy=self.http_proxy.get_secret_value(),
            https_proxy=self.https_proxy.get_secret_value(),
            no_proxy=self.no_proxy,
            index_url=self.index_url.get_secret_value(),
            extra_index_urls=tuple(self.extra_index_urls.get_secret_value().split()),
            index_netrc=self.index_netrc,
        )

    @property
    def cpu_milli_cores(self) -> int:
        """CPU that runs may reserve, in thousandths of a core."""
        return round((self.cpu_capacity or os.cpu_count() or 1) * 1000)

    @property
    def memory_bytes(self) -> int:
        """Memory that runs may reserve, in bytes."""
        if self.memory_capacity is not None:
            return parse_size(self.memory_capacity)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @property
    def spool_quota_bytes(self) -> int:
        """Output kept per run, in bytes."""
        return parse_size(self.spool_quota)

    @property
    def spool_total_bytes(self) -> int:
        """Output kept of all runs together, in bytes."""
        return parse_size(self.spool_total)

    @property
    def bundle_cache_bytes(self) -> int:
        """Room for unpacked code, in bytes."""
        return parse_size(self.bundle_cache_size)

    @property
    def uv_cache_bytes(self) -> int:
        """Room for installed packages, in bytes."""
        return parse_size(self.uv_cache_size)

    @property
    def disk_reserve_bytes(self) -> int:
        """Free space below which the disk counts as full, in bytes."""
        return parse_size(self.disk_reserve)
